#include "ipc/resource_sharer.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdlib>
#include <string>

#include "ipc/syscall.hpp"

namespace c10k::multiprocessing {
namespace {

constexpr int listener_backlog = 128;  // resource_sharer.py

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

ResourceSharer::ResourceSharer() : key_(random_key()) {
  open_listener();
}

ResourceSharer::~ResourceSharer() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    ::shutdown(listener_.get(), SHUT_RDWR);  // ends a waiting accept
    if (serving_ >= 0) ::shutdown(serving_, SHUT_RDWR);
  }
  if (thread_.joinable()) thread_.join();
}

std::uint64_t ResourceSharer::add(OwnedFd fd, std::uint64_t connection, const void* owner) {
  const std::lock_guard lock(mutex_);
  if (!thread_.joinable()) thread_ = std::thread([this] { serve(); });
  if (const auto earlier = tickets_.find(connection); earlier != tickets_.end())
    drop(earlier->second);
  const std::uint64_t ticket = ++last_ticket_;
  cache_.emplace(ticket, Entry{std::move(fd), connection, owner});
  tickets_.emplace(connection, ticket);
  return ticket;
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
        ::listen(listener_.get(), listener_backlog) == 0;
    if (open) path_ = OwnedFd(::open(path.c_str(), O_PATH | O_CLOEXEC));
    error = errno;
  }
  ::unlink(path.c_str());
  ::rmdir(folder.c_str());
  if (!path_) throw_system_error(error, "bind and listen on {}", path);
}

// With the mutex held.
void ResourceSharer::drop(std::uint64_t ticket) {
  const auto found = cache_.find(ticket);
  tickets_.erase(found->second.connection);
  cache_.erase(found);
}

OwnedFd ResourceSharer::take(std::uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  const auto found = cache_.find(ticket);
  if (found == cache_.end()) throw PeerGone("a ticket that does not exist (any more)");
  OwnedFd fd = std::move(found->second.fd);
  drop(ticket);
  return fd;
}

bool ResourceSharer::set_serving(int fd) {
  const std::lock_guard lock(mutex_);
  serving_ = fd;
  return !stopping_;
}

void ResourceSharer::serve() {
  block_signals();
  while (true) {
    OwnedFd connection(
        retry_eintr([&] { return ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC); }));
    if (!set_serving(connection.get())) return;
    if (!connection) {
      // At the descriptor limit the worker waits in the queue until the acceptor has closed some.
      ::poll(nullptr, 0, 1);
      continue;
    }
    try {
      serve_one(connection.get());
    } catch (const std::exception&) {
      // A worker that died in mid-way. Its queue's end closes what it left.
    }
    if (!set_serving(-1)) return;
  }
}

// _ResourceSharer._serve, one turn: 21 system calls with the accept.
void ResourceSharer::serve_one(int connection) {
  look_up_family(connection);
  set_blocking(connection);
  deliver_challenge(connection, key_);
  answer_challenge(connection, key_);
  RequestMessage request;
  receive_message(connection, request.bytes.data(), request.bytes.size());
  const OwnedFd fd = take(request.frame().key);
  send_handle(connection, fd.get());
}

}  // namespace c10k::multiprocessing
