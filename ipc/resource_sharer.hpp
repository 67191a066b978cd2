// CPython's multiprocessing.resource_sharer: descriptors wait in the sending process under a
// ticket, and one thread serves those who come for them, one at a time.
#pragma once

#include <signal.h>
#include <sys/un.h>

#include <cstdint>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "ipc/multiprocessing.hpp"
#include "ipc/owned_fd.hpp"

namespace c10k::multiprocessing {

/// For the threads of the acceptor: its signals belong to its loop, and a worker that is gone is an
/// EPIPE. (In a worker the program ignores SIGPIPE, as CPython does.)
void block_signals();

class ResourceSharer {
 public:
  /// Opens the listener. Its path is gone from the temporary folder before the constructor returns;
  /// it is reached through path_descriptor().
  ResourceSharer();
  ~ResourceSharer();
  ResourceSharer(const ResourceSharer&) = delete;
  ResourceSharer& operator=(const ResourceSharer&) = delete;

  [[nodiscard]] const Key& key() const { return key_; }
  /// Lent: workers connect to the listener through it.
  [[nodiscard]] int path_descriptor() const { return path_.get(); }

  /// DupFd: takes `fd` over and returns its ticket. The thread starts with the first one. A
  /// connection that is handed over again replaces its earlier ticket.
  std::uint64_t add(OwnedFd fd, std::uint64_t connection, const void* owner);
  /// Closes what nobody has fetched of one owner's.
  void drop_all_of(const void* owner);

 private:
  struct Entry {
    OwnedFd fd;
    std::uint64_t connection;
    const void* owner;
  };

  void open_listener();
  void drop(std::uint64_t ticket);
  OwnedFd take(std::uint64_t ticket);
  bool set_serving(int fd);
  void serve();
  void serve_one(int connection);

  Key key_;
  OwnedFd listener_;
  OwnedFd path_;
  std::mutex mutex_;                                          // for all that follows
  std::unordered_map<std::uint64_t, Entry> cache_;            // by ticket
  std::unordered_map<std::uint64_t, std::uint64_t> tickets_;  // by connection
  std::uint64_t last_ticket_ = 0;
  int serving_ = -1;
  bool stopping_ = false;
  std::thread thread_;
};

/// Where to connect to for a listener that `path_descriptor` names.
[[nodiscard]] sockaddr_un listener_address(int path_descriptor);

}  // namespace c10k::multiprocessing
