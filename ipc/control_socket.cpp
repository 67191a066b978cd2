#include "ipc/control_socket.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>
#include <stdexcept>

#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

/// Successors that may wait to be answered. One is served at a time, and the others are told so.
constexpr int waiting_successors = 8;

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string temporary_name(const std::string& path) {
  return fmt::format("{}.{}", path, ::getpid());
}

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    throw UsageError(fmt::format("'{}' is {} bytes long, and a socket's name has at most {}", path,
                                 path.size(), sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

OwnedFd unix_socket() {
  return OwnedFd(
      checked([] { return ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); },
              "socket AF_UNIX"));
}

int connect_to(int socket, const sockaddr_un& address) {
  return retry_eintr([&] {
    return ::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  });
}

}  // namespace

void ControlSocket::check(const std::string& path, bool taking_over) {
  (void)address_of(temporary_name(path));
  const std::string directory = directory_of(path);
  struct stat found {};
  if (::stat(directory.c_str(), &found) != 0 || !S_ISDIR(found.st_mode)) {
    throw UsageError(
        fmt::format("--control: {} is no directory; make it, with mode 0700", directory));
  }
  // In a sticky directory nobody can remove or rename what is somebody else's.
  const bool guarded = (found.st_mode & (S_IWGRP | S_IWOTH)) == 0 || (found.st_mode & S_ISVTX) != 0;
  if (!guarded || (found.st_uid != ::geteuid() && found.st_uid != 0)) {
    throw UsageError(
        fmt::format("--control: others can replace what is in {} (owner {}, mode {:04o}); choose a "
                    "directory of mode 0700 of your own",
                    directory, found.st_uid, found.st_mode & 07777U));
  }
  if (::lstat(path.c_str(), &found) != 0) return;
  if (!S_ISSOCK(found.st_mode))
    throw UsageError(fmt::format("--control: {} exists and is no socket; choose another", path));
  if (taking_over) return;
  const OwnedFd trial = unix_socket();
  // A full queue of connections (EAGAIN) has somebody behind it, too.
  if (connect_to(trial.get(), address_of(path)) == 0 || errno == EAGAIN) {
    throw UsageError(fmt::format(
        "--control: a running server answers at {}; take it over with --take-over {}, or choose "
        "another",
        path, path));
  }
}

ControlSocket::ControlSocket(std::string path) : path_(std::move(path)), listener_(unix_socket()) {
  // The mode of the socket's inode becomes that of its name (net/unix/af_unix.c, unix_bind_bsd), so
  // there is no moment at which anybody else could connect.
  checked([&] { return ::fchmod(listener_.get(), S_IRUSR | S_IWUSR); }, "fchmod of a socket");
  const std::string temporary = temporary_name(path_);
  const sockaddr_un address = address_of(temporary);
  (void)::unlink(temporary.c_str());  // of a dead process that had our number
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    throw std::runtime_error(fmt::format(
        "--control: bind {}: {}; choose a directory of mode 0700 that user {} may write to",
        temporary, std::strerror(error), ::geteuid()));
  }
  struct stat made {};
  const bool named = ::listen(listener_.get(), waiting_successors) == 0 &&
                     ::lstat(temporary.c_str(), &made) == 0 &&
                     ::rename(temporary.c_str(), path_.c_str()) == 0;
  if (!named) {
    const int error = errno;
    (void)::unlink(temporary.c_str());
    throw_system_error(error, "--control: rename {} to {}", temporary, path_);
  }
  device_ = made.st_dev;
  inode_ = made.st_ino;
}

ControlSocket::~ControlSocket() {
  if (is_named()) (void)::unlink(path_.c_str());
}

bool ControlSocket::is_named() const {
  struct stat found {};
  return ::lstat(path_.c_str(), &found) == 0 && found.st_dev == device_ && found.st_ino == inode_;
}

OwnedFd connect_control(const std::string& path) {
  OwnedFd socket = unix_socket();
  if (connect_to(socket.get(), address_of(path)) != 0) {
    const int error = errno;
    throw std::runtime_error(
        fmt::format("--take-over: connect to {}: {}; {}", path, std::strerror(error),
                    error == EACCES   ? "be the user whose server it is, or root"
                    : error == EAGAIN ? "too many wait to take it over already"
                                      : "give the PATH that the running server has as --control"));
  }
  check_peer(socket.get(), fmt::format("the server at {}", path));
  return socket;
}

pid_t check_peer(int socket, std::string_view who) {
  ucred peer{};
  socklen_t size = sizeof peer;
  checked([&] { return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size); },
          "getsockopt SO_PEERCRED");
  if (peer.uid == ::geteuid() || peer.uid == 0) return peer.pid;
  throw std::runtime_error(
      fmt::format("{} (process {}) runs as user {}, and this server as user {}: neither may hand "
                  "the other a connection; run both as one user, or the other as root",
                  who, peer.pid, peer.uid, ::geteuid()));
}

}  // namespace c10k
