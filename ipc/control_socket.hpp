// Where a running server meets its successor: a named AF_UNIX socket, and who may be at its other end.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "ipc/owned_fd.hpp"

namespace c10k {

/// A listening SOCK_SEQPACKET socket with a name in the file system, mode 0600 from its first moment.
class ControlSocket {
 public:
  /// Whether PATH may become such a name; for the start, when nothing has been done yet. The directory must
  /// be one in which nobody else can replace what is there. What stands at PATH must be a socket that
  /// nobody answers at, or, where `taking_over`, that of the server which is taken over. Throws UsageError.
  static void check(const std::string& path, bool taking_over);

  /// Listens at a temporary name beside PATH, then renames it, so that whoever connects to PATH meets the
  /// old one or the new one. Throws SystemError.
  explicit ControlSocket(std::string path);
  /// Removes the name, unless somebody else's socket has taken it meanwhile.
  ~ControlSocket();
  ControlSocket(const ControlSocket&) = delete;
  ControlSocket& operator=(const ControlSocket&) = delete;

  /// Readable when somebody has connected; non-blocking, owned here.
  [[nodiscard]] int fd() const { return listener_.get(); }
  /// Whether the name still leads here.
  [[nodiscard]] bool is_named() const;

 private:
  std::string path_;
  OwnedFd listener_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

/// Connects to PATH; non-blocking and close-on-exec. Throws std::runtime_error with a remedy.
[[nodiscard]] OwnedFd connect_control(const std::string& path);

/// Throws std::runtime_error unless the process at the other end of an AF_UNIX socket (SO_PEERCRED: of a
/// listener, as it was when it began to listen) ran as this process's effective user, or as root. Returns its pid.
pid_t check_peer(int socket, std::string_view who);

}  // namespace c10k
