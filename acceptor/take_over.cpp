#include "acceptor/take_over.hpp"

#include <fcntl.h>
#include <sys/socket.h>

#include <array>
#include <stdexcept>

#include "acceptor/upgrade_words.hpp"
#include "ipc/control_socket.hpp"
#include "ipc/scm.hpp"
#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

constexpr std::string_view the_old = "the running server";

OwnedFd inherited(std::string_view number) {
  const int fd = parse_integer<int>("--take-over fd", number, 3, 1'000'000);
  if (socket_option(fd, SO_DOMAIN) != AF_UNIX || socket_option(fd, SO_TYPE) != SOCK_SEQPACKET) {
    throw UsageError(
        fmt::format("--take-over: descriptor {} is no AF_UNIX SOCK_SEQPACKET socket from a running "
                    "server; give "
                    "the PATH of its --control",
                    fd));
  }
  OwnedFd socket(fd);
  checked([&] { return ::fcntl(fd, F_SETFD, FD_CLOEXEC); }, "fcntl {} F_SETFD", fd);
  checked([&] { return ::fcntl(fd, F_SETFL, O_NONBLOCK); }, "fcntl {} F_SETFL", fd);
  check_peer(fd, the_old);
  return socket;
}

constexpr std::string_view by_number = "fd:";

}  // namespace

TakeOver::TakeOver(const std::string& from)
    : socket_(from.starts_with(by_number)
                  ? inherited(std::string_view(from).substr(by_number.size()))
                  : connect_control(from)) {}

TakeOver::~TakeOver() {
  end();
}

std::vector<OwnedFd> TakeOver::listeners(std::string_view how, const SocketAddress& asked) {
  const auto fail = [](const std::string& why) {
    throw std::runtime_error(fmt::format("--take-over: {}", why));
  };
  // If it has refused already, that is still to be heard.
  (void)say(socket_.get(), Word::hello, 0, 0, how);
  const Message offer = wait_to_hear(socket_.get(), the_old);
  if (offer.word == Word::refusal) fail(fmt::format("refused: {}", offer.words()));
  if (offer.word != Word::offer || offer.first == 0 || offer.first > 2 * most_listeners)
    fail("the running server answered with something else than an offer");

  std::vector<OwnedFd> all;
  std::vector<Received> arrived(receive_room);
  while (all.size() < offer.first) {
    wait_to_read(socket_.get(), the_old);
    const ReceiveResult result = receive_frame(socket_.get(), arrived, false);
    if (result.state == Channel::closed) fail("the running server has ended");
    if (result.refused != 0)
      fail(
          "this process has no descriptor left for its listeners; raise RLIMIT_NOFILE (ulimit -n)");
    for (std::size_t i = 0; i < result.received; ++i) all.push_back(std::move(arrived[i].fd));
  }
  if (all.size() != offer.first) fail("the running server sent more than it had offered");
  if (offer.words() != how) {
    fail(fmt::format(
        "the running server has {}, and this one would have {}, so that connections would "
        "wait where nobody accepts; give --ipc and --workers as it has them",
        offer.words(), how));
  }
  if (!is_tcp_listener(all[0].get()))
    fail("the running server sent a descriptor that is no listener");
  const SocketAddress address = SocketAddress::local(all[0].get());
  if (!address.fits(asked)) {
    fail(fmt::format(
        "the running server listens at {}, which does not fit --listen {}; give that, or "
        "its host with port 0",
        address.text(), asked.text()));
  }
  return all;
}

void TakeOver::commit(Loop& loop, Hooks hooks) {
  hooks_ = std::move(hooks);
  if (!say(socket_.get(), Word::ready, hooks_.adopt ? 1 : 0))
    throw std::runtime_error("--take-over: the running server has ended, or given up waiting");
  const Message answer = wait_to_hear(socket_.get(), the_old);
  if (answer.word != Word::retiring) {
    throw std::runtime_error(
        fmt::format("--take-over: the running server goes on: {}", answer.words()));
  }
  loop_ = &loop;
  loop_->watch(socket_.get(), {.read = true, .level = true}, *this);
}

void TakeOver::on_ready(Readiness) {
  try {
    if (!message_is_next(socket_.get())) return receive_connections();
    const auto message = hear(socket_.get(), the_old);
    if (message && message->word == Word::left) hooks_.left();
  } catch (const std::exception& error) {
    fmt::print(stderr, "c10k-server: --take-over: {}\n", error.what());
    end();
  }
}

void TakeOver::receive_connections() {
  std::vector<Received> arrived(receive_room);
  const ReceiveResult result = receive_frame(socket_.get(), arrived, false);
  if (result.state == Channel::would_block) return;
  if (result.state == Channel::closed) {  // it has handed on what it had, or has died with it
    hooks_.left();
    return end();
  }
  if (!hooks_.adopt && result.received + result.refused != 0)
    throw std::runtime_error("the old server hands connections on that nobody asked for");
  for (std::size_t i = 0; i < result.received; ++i) {
    const int fd = arrived[i].fd.get();
    if (!is_tcp_socket(fd) || socket_option(fd, SO_ACCEPTCONN) != 0)
      throw std::runtime_error("the old server sent a descriptor that is no TCP connection");
  }
  // The word goes first, because until it is said the other side keeps its copies for the case that this
  // process dies. When that side has ended itself it needs no word.
  (void)say(socket_.get(), Word::adopted, result.received, result.refused);
  for (std::size_t i = 0; i < result.received; ++i) hooks_.adopt(std::move(arrived[i].fd));
}

void TakeOver::end() {
  if (loop_ != nullptr) loop_->forget(socket_.get(), Removal::closing);
  loop_ = nullptr;
  socket_.reset();
}

}  // namespace c10k
