// CPython's multiprocessing.resource_sharer (3.11) and what multiprocessing.reduction has in its place
// (2.7): descriptors wait in the sending process under a ticket, and one thread serves those who come
// for them, one at a time.
//
// CPython's thread waits for ever for a worker that is stopped in the middle of an exchange, and
// everybody else waits for the thread. Here a second thread looks whether an exchange stands still and
// shuts its connection down: the ticket stays, and the worker comes for it anew. It is asleep while
// nobody is served: the first exchange after such a time wakes it, and no other makes a system call on its
// account.
#pragma once

#include <signal.h>
#include <sys/un.h>

#include <condition_variable>
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
  explicit ResourceSharer(const Settings& settings);
  ~ResourceSharer();
  ResourceSharer(const ResourceSharer&) = delete;
  ResourceSharer& operator=(const ResourceSharer&) = delete;

  [[nodiscard]] const Key& key() const { return key_; }
  /// Lent: workers connect to the listener through it.
  [[nodiscard]] int path_descriptor() const { return path_.get(); }

  /// Starts the thread, if it does not run yet. CPython does so with the first ticket.
  void start();
  /// DupFd, and reduce_handle: takes a duplicate of `fd`, or borrows `fd` itself when there are to be no
  /// duplicates, and returns its ticket; 0, with errno set, when this process has no number free. A
  /// connection that is handed over again replaces its earlier ticket.
  std::uint32_t add(int fd, std::uint64_t connection, const void* owner);
  /// Closes what nobody has fetched: of one connection, and of one owner.
  void drop_connection(std::uint64_t connection);
  void drop_all_of(const void* owner);

 private:
  struct Entry {
    OwnedFd duplicate;
    int number;
    std::uint64_t connection;
    const void* owner;
  };

  void open_listener();
  void start_locked();
  void drop(std::uint32_t ticket);
  Entry take(std::uint32_t ticket);
  OwnedFd accept_one();
  bool set_serving(int fd);
  void end_what_stands_still();
  void serve_each_anew();
  void serve_kept();
  void serve_one(int connection);

  Settings settings_;
  Key key_;
  OwnedFd listener_;
  OwnedFd path_;
  std::mutex mutex_;                                          // for all that follows
  std::unordered_map<std::uint32_t, Entry> cache_;            // by ticket
  std::unordered_map<std::uint64_t, std::uint32_t> tickets_;  // by connection
  std::uint32_t last_ticket_ = 0;
  int serving_ = -1;              // lent; -1: nobody can hold the thread up
  std::uint64_t exchanges_ = 0;   // begun
  bool ended_ = false;            // that of serving_ has been shut down
  bool asleep_ = false;           // the one who looks; woken by a new exchange
  std::condition_variable news_;  // for it
  bool stopping_ = false;
  std::thread thread_;
  std::thread looking_;
};

/// Where to connect to for a listener that `path_descriptor` names.
[[nodiscard]] sockaddr_un listener_address(int path_descriptor);

}  // namespace c10k::multiprocessing
