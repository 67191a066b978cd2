#include "ipc/resource_sharer.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "ipc/syscall.hpp"

namespace c10k::multiprocessing {
namespace {

/// An exchange takes some 0.1 ms. One that has lasted from a first look to the last of so many more is
/// shut down: after 0.1 to 0.15 s, which with whatever else goes wrong is below a second. Looks are counted
/// and not time, so that nobody is late who was stopped together with this process.
constexpr std::chrono::milliseconds look_every{50};
constexpr int looks_in_vain = 2;

}  // namespace

void block_signals() {
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

sockaddr_un listener_address(int path_descriptor) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  fmt::format_to_n(address.sun_path, sizeof address.sun_path - 1, "/proc/self/fd/{}",
                   path_descriptor);
  return address;
}

ResourceSharer::ResourceSharer(const Settings& settings) : settings_(settings), key_(random_key()) {
  prepare_authentication();
  open_listener();
}

ResourceSharer::~ResourceSharer() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    ::shutdown(listener_.get(), SHUT_RDWR);  // ends a waiting accept
    if (serving_ >= 0) ::shutdown(serving_, SHUT_RDWR);
  }
  news_.notify_one();
  if (thread_.joinable()) thread_.join();
  if (looking_.joinable()) looking_.join();
}

void ResourceSharer::start() {
  const std::lock_guard lock(mutex_);
  start_locked();
}

void ResourceSharer::start_locked() {
  if (thread_.joinable()) return;
  thread_ = std::thread([this] {
    block_signals();
    settings_.keep_connection ? serve_kept() : serve_each_anew();
  });
  looking_ = std::thread([this] {
    block_signals();
    end_what_stands_still();
  });
}

std::uint32_t ResourceSharer::add(int fd, std::uint64_t connection, const void* owner) {
  OwnedFd copy;
  if (settings_.duplicates) {
    // Not below 3, so that a number that is a ticket is never 0.
    copy = OwnedFd(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!copy) return 0;
  }
  const std::lock_guard lock(mutex_);
  start_locked();
  if (const auto earlier = tickets_.find(connection); earlier != tickets_.end())
    drop(earlier->second);
  std::uint32_t ticket = 0;
  if (copy && settings_.dialect.number_is_ticket) {
    ticket = static_cast<std::uint32_t>(copy.get());
  } else {
    do {
      ticket = ++last_ticket_;
    } while (ticket == 0 || cache_.contains(ticket));
  }
  const int number = copy ? copy.get() : fd;
  cache_.emplace(ticket, Entry{std::move(copy), number, connection, owner});
  tickets_.emplace(connection, ticket);
  return ticket;
}

void ResourceSharer::drop_connection(std::uint64_t connection) {
  const std::lock_guard lock(mutex_);
  if (const auto found = tickets_.find(connection); found != tickets_.end()) drop(found->second);
}

void ResourceSharer::drop_all_of(const void* owner) {
  const std::lock_guard lock(mutex_);
  for (auto next = cache_.begin(); next != cache_.end();) {
    const auto here = next++;
    if (here->second.owner == owner) drop(here->first);
  }
}

void ResourceSharer::open_listener() {
  const char* base = ::getenv("TMPDIR");
  std::string folder = fmt::format("{}/pymp-XXXXXX", base != nullptr && *base != 0 ? base : "/tmp");
  if (::mkdtemp(folder.data()) == nullptr) throw_system_error(errno, "mkdtemp {}", folder);
  const std::string path = folder + "/listener-00000000";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  int error = ENAMETOOLONG;
  if (path.size() < sizeof address.sun_path) {
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    listener_ = OwnedFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const bool open =
        ::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
        ::listen(listener_.get(), settings_.dialect.backlog) == 0 &&
        // Workers may be another user (--user). The folder is this user's alone, and soon gone.
        ::chmod(path.c_str(), 0666) == 0;
    if (open) path_ = OwnedFd(::open(path.c_str(), O_PATH | O_CLOEXEC));
    error = errno;
  }
  ::unlink(path.c_str());
  ::rmdir(folder.c_str());
  if (!path_) throw_system_error(error, "bind and listen on {}", path);
}

// With the mutex held.
void ResourceSharer::drop(std::uint32_t ticket) {
  const auto found = cache_.find(ticket);
  tickets_.erase(found->second.connection);
  cache_.erase(found);
}

/// From here on an exchange is not shut down: either its ticket stays where it is, or it is answered. (In
/// 2.7's dialect the ticket is the number of a descriptor. Were it taken in vain and asked for again, it could
/// be another connection's by then.)
ResourceSharer::Entry ResourceSharer::take(std::uint32_t ticket) {
  const std::lock_guard lock(mutex_);
  if (ended_) throw PeerGone("an exchange that was shut down");
  serving_ = -1;
  const auto found = cache_.find(ticket);
  if (found == cache_.end()) throw PeerGone("a ticket that does not exist (any more)");
  Entry entry = std::move(found->second);
  tickets_.erase(entry.connection);
  cache_.erase(found);
  return entry;
}

bool ResourceSharer::set_serving(int fd) {
  const std::lock_guard lock(mutex_);
  serving_ = fd;
  ended_ = false;
  if (fd >= 0) {
    ++exchanges_;
    if (std::exchange(asleep_, false)) news_.notify_one();
  }
  return !stopping_;
}

void ResourceSharer::end_what_stands_still() {
  std::unique_lock lock(mutex_);
  std::uint64_t seen = 0;
  int looks = 0;
  while (!stopping_) {
    if (exchanges_ == seen && serving_ < 0) {
      asleep_ = true;
      news_.wait(lock, [this] { return stopping_ || !asleep_; });
    }
    if (exchanges_ != std::exchange(seen, exchanges_)) looks = 0;
    news_.wait_for(lock, look_every, [this] { return stopping_; });
    if (exchanges_ != seen || serving_ < 0 || ended_ || ++looks < looks_in_vain) continue;
    ended_ = true;
    ::shutdown(serving_, SHUT_RDWR);
  }
}

OwnedFd ResourceSharer::accept_one() {
  OwnedFd socket(
      retry_eintr([&] { return ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC); }));
  return accepted_connection(std::move(socket), settings_.dialect);
}

/// _ResourceSharer._serve, and _serve of 2.7's reduction.
void ResourceSharer::serve_each_anew() {
  while (true) {
    const OwnedFd connection = accept_one();
    if (!set_serving(connection.get())) return;
    if (!connection) {
      // At the descriptor limit the worker waits in the queue until the acceptor has closed some.
      ::poll(nullptr, 0, 1);
      continue;
    }
    try {
      authenticate_client(connection.get(), settings_.auth, key_);
      serve_one(connection.get());
    } catch (const std::exception&) {
      // A worker that died in mid-way. Its queue's end closes what it left.
    }
    if (!set_serving(-1)) return;
  }
}

/// The same with connections that stay. It is still one thread, which waits for all of them where the
/// other waits for the next to come: one system call a descriptor either way.
void ResourceSharer::serve_kept() {
  std::vector<OwnedFd> connections;
  std::vector<pollfd> waits{{listener_.get(), POLLIN, 0}};
  while (true) {
    (void)retry_eintr([&] { return ::poll(waits.data(), waits.size(), -1); });
    for (std::size_t i = connections.size(); i > 0; --i) {
      if (waits[i].revents == 0) continue;
      if (!set_serving(waits[i].fd)) return;
      bool open = true;
      try {
        serve_one(waits[i].fd);
      } catch (const std::exception&) {
        open = false;
      }
      if (!set_serving(-1)) return;
      if (open) continue;
      const auto here = static_cast<std::ptrdiff_t>(i);
      connections.erase(connections.begin() + here - 1);
      waits.erase(waits.begin() + here);
    }
    if (waits[0].revents == 0) continue;
    OwnedFd connection = accept_one();
    if (!set_serving(connection.get())) return;
    if (!connection) {
      ::poll(nullptr, 0, 1);
      continue;
    }
    try {
      authenticate_client(connection.get(), settings_.auth, key_);
    } catch (const std::exception&) {
      if (!set_serving(-1)) return;
      continue;
    }
    if (!set_serving(-1)) return;
    waits.push_back({connection.get(), POLLIN, 0});
    connections.push_back(std::move(connection));
  }
}

/// One ticket of a worker that has been let in.
void ResourceSharer::serve_one(int connection) {
  const auto request = receive_padded<TicketRequest>(connection, settings_.dialect.request_bytes);
  const Entry entry = take(request.ticket);
  send_handle(connection, entry.number, settings_.dialect);
}

}  // namespace c10k::multiprocessing
