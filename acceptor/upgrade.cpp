#include "acceptor/upgrade.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "acceptor/upgrade_words.hpp"
#include "ipc/scm.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// How long to leave the control socket alone when something has run out.
constexpr std::int64_t rest_ns = 100'000'000;

}  // namespace

Upgrade::Upgrade(Loop& loop, const ServerOptions& options, std::unique_ptr<ControlSocket> control,
                 std::string how, Hooks hooks)
    : loop_(loop),
      options_(options),
      control_(std::move(control)),
      how_(std::move(how)),
      hooks_(std::move(hooks)) {
  if (control_) loop_.watch(control_->fd(), {.read = true, .level = true}, *this);
}

Upgrade::~Upgrade() {
  stop();
  let_go();
  if (state_ == State::retired) child_.detach();
}

void Upgrade::stop() {
  if (std::exchange(stopped_, true)) return;
  if (control_) loop_.forget(control_->fd(), Removal::closing);
  control_.reset();
  if (state_ == State::greeting || state_ == State::starting)
    fail("this server was told to end meanwhile");
}

void Upgrade::on_ready(Readiness) {
  OwnedFd socket(retry_eintr(
      [&] { return ::accept4(control_->fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC); }));
  if (!socket) {
    if (errno == EAGAIN) return;  // it has gone again
    // No descriptor is left: it waits in the queue, which is readable for as long.
    if (!std::exchange(starved_, true)) {
      fmt::print(
          stderr,
          "c10k-server: --control: accept4: {}; who asks to take this server over waits until "
          "a descriptor is free; raise RLIMIT_NOFILE (prlimit, ulimit -n)\n",
          std::strerror(errno));
    }
    loop_.change(control_->fd(), {.level = true});
    loop_.after(rest_ns, [this] {
      if (control_) loop_.change(control_->fd(), {.read = true, .level = true});
    });
    return;
  }
  starved_ = false;
  if (state_ != State::idle || child_.running()) {
    (void)say(socket.get(), Word::refusal, 0, 0, "another server is taking over by now");
    return;
  }
  pid_t pid = 0;
  try {
    pid = check_peer(socket.get(), "--control: who asks to take this server over");
  } catch (const std::exception& error) {
    (void)say(socket.get(), Word::refusal, 0, 0, "it serves another user");
    fmt::print(stderr, "c10k-server: {}\n", error.what());
    return;
  }
  greet(std::move(socket), pid);
}

void Upgrade::greet(OwnedFd socket, pid_t pid) {
  socket_ = std::move(socket);
  pid_ = pid;
  who_ = fmt::format("the successor (process {})", pid);
  state_ = State::greeting;
  loop_.watch(socket_.get(), {.read = true, .level = true}, peer_);
  watching_peer_ = true;
  set_deadline(word_deadline_ns, "said nothing");
}

void Upgrade::set_deadline(std::int64_t delay_ns, const char* what) {
  if (deadline_ != 0) loop_.cancel(deadline_);
  deadline_ = loop_.after(delay_ns, [this, delay_ns, what] {
    deadline_ = 0;
    if (child_.running()) child_.signal(SIGKILL);
    fail(fmt::format("{} {} within {} s", who_, what, delay_ns / 1'000'000'000));
  });
}

void Upgrade::on_peer() {
  try {
    if (state_ == State::retired) {
      // Nothing is expected from it but its end.
      if (!hear(socket_.get(), who_)) return;
      throw std::runtime_error(fmt::format("{} speaks out of turn", who_));
    }
    const auto message = hear(socket_.get(), who_);
    if (!message) return;
    if (message->word == Word::hello && state_ == State::greeting) return answer_hello();
    if (message->word == Word::ready && state_ == State::starting)
      return retire(message->first != 0);
    throw std::runtime_error(fmt::format("{} speaks out of turn", who_));
  } catch (const std::exception& error) {
    if (state_ == State::retired) return let_go();
    fail(error.what());
  }
}

void Upgrade::answer_hello() {
  // The successor compares what both have, as it knows how to say what would fit.
  const std::vector<int> fds = hooks_.listeners();
  if (!say(socket_.get(), Word::offer, fds.size(), 0, how_)) return fail(who_ + " has ended");
  for (std::size_t done = 0; done < fds.size();) {
    std::vector<Handover> part;
    while (done < fds.size() && part.size() < scm_max_descriptors)
      part.push_back({fds[done++], {}});
    if (send_frame(socket_.get(), part) != Channel::more)
      return fail(fmt::format("{} could not be sent the listeners", who_));
  }
  state_ = State::starting;
  set_deadline(start_of_successor_ns, "was not ready");
}

void Upgrade::retire(bool adopts) {
  if (!say(socket_.get(), Word::retiring)) return fail(who_ + " has ended");
  state_ = State::retired;
  loop_.cancel(std::exchange(deadline_, 0));
  if (control_) loop_.forget(control_->fd(), Removal::closing);
  control_.reset();
  hooks_.retire(adopts);
}

void Upgrade::left() {
  if (socket_) (void)say(socket_.get(), Word::left);
}

OwnedFd Upgrade::take_channel() {
  if (std::exchange(watching_peer_, false)) loop_.forget(socket_.get(), Removal::still_open);
  return std::move(socket_);
}

OwnedFd Upgrade::successor() const {
  try {
    return child_.running() ? duplicate(child_.pidfd()) : open_pidfd(pid_);
  } catch (const SystemError&) {
    return {};  // no descriptor is left: the end of the socket tells, but where a table is shared
  }
}

void Upgrade::let_go() {
  if (deadline_ != 0) loop_.cancel(std::exchange(deadline_, 0));
  if (std::exchange(watching_peer_, false)) loop_.forget(socket_.get(), Removal::closing);
  socket_.reset();
}

/// This server stays what it is.
void Upgrade::fail(const std::string& why) {
  fmt::print(stderr, "c10k-server: not taken over: {}{}\n", why,
             stopped_ ? "" : "; this server goes on");
  if (socket_) (void)say(socket_.get(), Word::refusal, 0, 0, why);
  let_go();
  state_ = State::idle;
  try {
    hooks_.reclaim();
  } catch (const std::exception& error) {
    fmt::print(stderr, "c10k-server: {}\n", error.what());
  }
  if (control_ && !control_->is_named()) {
    try {
      auto again = std::make_unique<ControlSocket>(options_.control);
      loop_.forget(control_->fd(), Removal::closing);
      control_ = std::move(again);
      loop_.watch(control_->fd(), {.read = true, .level = true}, *this);
    } catch (const std::exception& error) {
      fmt::print(stderr, "c10k-server: {}\n", error.what());
    }
  }
  if (!child_.running()) return;
  // It ends by itself as it sees the end of the socket, and says why it could not start.
  const pid_t pid = child_.pid();
  loop_.after(word_deadline_ns, [this, pid] {
    if (child_.pid() == pid && state_ != State::retired) child_.signal(SIGKILL);
  });
}

void Upgrade::start_successor() {
  if (stopped_ || state_ != State::idle || child_.running()) {
    fmt::print(stderr, "c10k-server: SIGHUP: {}: ignored\n",
               stopped_                   ? "this server is ending"
               : state_ == State::retired ? "another server has taken over"
                                          : "a take-over is under way");
    return;
  }
  try {
    auto [ours, theirs] = unix_pair(SOCK_SEQPACKET);
    const int channel = theirs.get();
    child_ = ChildProcess::fork([&] { return execute(channel); }, {&channel, 1}, 0);
    loop_.watch(child_.pidfd(), {.read = true, .level = true}, child_watch_);
    greet(std::move(ours), child_.pid());
  } catch (const std::exception& error) {
    fmt::print(stderr, "c10k-server: SIGHUP: no successor: {}; this server goes on\n",
               error.what());
  }
}

/// In the child, which has no other descriptor but the standard ones.
int Upgrade::execute(int channel) const {
  checked([&] { return ::fcntl(channel, F_SETFD, 0); }, "fcntl {} F_SETFD", channel);
  std::vector<std::string> arguments{options_.command[0]};
  for (std::size_t i = 1; i < options_.command.size(); ++i) {
    const std::string& argument = options_.command[i];
    if (argument == "--take-over") {
      ++i;
    } else if (!argument.starts_with("--take-over=")) {
      arguments.push_back(argument);
    }
  }
  arguments.insert(arguments.end(), {"--take-over", fmt::format("fd:{}", channel)});
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  // What this server takes through a signalfd is blocked, and an exec would keep it so.
  sigset_t none;
  sigemptyset(&none);
  checked([&] { return ::sigprocmask(SIG_SETMASK, &none, nullptr); }, "sigprocmask");
  checked([&] { return ::execv(options_.executable.c_str(), argv.data()); }, "execv {}",
          options_.executable);
  return 1;
}

void Upgrade::ChildWatch::on_ready(Readiness) {
  const pid_t pid = upgrade_.child_.pid();
  upgrade_.loop_.forget(upgrade_.child_.pidfd(), Removal::closing);
  const ChildExit exit = upgrade_.child_.wait();
  upgrade_.child_ = ChildProcess();
  fmt::print(stderr, "c10k-server: the successor (process {}) ended: {}\n", pid, exit.text());
}

bool Upgrade::reaped(pid_t pid, const ChildExit& exit) {
  if (!child_.running() || child_.pid() != pid) return false;
  loop_.forget(child_.pidfd(), Removal::closing);
  child_.detach();
  fmt::print(stderr, "c10k-server: the successor (process {}) ended: {}\n", pid, exit.text());
  return true;
}

}  // namespace c10k
