// The readiness contract: three operations, one file per system call that offers them.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <span>
#include <string_view>

#include "ipc/confinement.hpp"

namespace c10k {

/// What to wait for on a descriptor.
struct Interest {
  bool read = false;
  bool write = false;
  /// Report as long as it is ready, also where the poller's habit is to report a change once.
  bool level = false;
  /// Wake only one of the processes that wait on the same open file (where the poller can).
  bool exclusive = false;
};

/// What a descriptor is ready for.
struct Readiness {
  bool read = false;
  bool write = false;
  /// Read until nothing comes: no further event may tell of an end of file or of bytes behind an
  /// urgent mark, so a short read does not prove the descriptor empty. (Without it, it does: what
  /// comes later makes a new event.)
  bool read_to_end = false;
};

struct Event {
  int fd = -1;
  Readiness ready;
};

/// The timeout of Poller::wait as system calls take it: null means for ever.
class WaitTime {
 public:
  explicit WaitTime(std::int64_t timeout_ns)
      : time_{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000}, for_ever_(timeout_ns < 0) {}
  /// Some calls write to it.
  [[nodiscard]] timespec* get() { return for_ever_ ? nullptr : &time_; }

 private:
  timespec time_;
  bool for_ever_;
};

/// Why a descriptor leaves a poller.
enum class Removal : std::uint8_t {
  closing,     ///< The caller closes it next and no other process or number holds the open file.
  still_open,  ///< Somebody may still hold the open file: closing would not end its events.
};

class Poller {
 public:
  virtual ~Poller() = default;
  /// Waits up to `timeout_ns` (-1: for ever). The events are valid until the next call.
  virtual std::span<const Event> wait(std::int64_t timeout_ns) = 0;
  /// Adds the descriptor (borrowed) or changes what to wait for.
  virtual void update(int fd, Interest interest) = 0;
  /// Forgets a descriptor that update() has added. No event of it is reported any more.
  virtual void remove(int fd, Removal why) = 0;
};

/// A line of the registry.
struct PollerEntry {
  std::string_view name;
  std::string_view summary;
  bool edge_triggered = false;     ///< Reports a change once, unless asked for the level.
  bool exclusive = false;          ///< Honours Interest::exclusive.
  bool update_is_syscall = false;  ///< Adding a descriptor costs a system call.
  CallGroup calls;                 ///< What it calls.
  std::unique_ptr<Poller> (*make)();
};

/// One function a poller, defined in the file of that name.
PollerEntry select_poller();
PollerEntry poll_poller();
PollerEntry epoll_poller();

/// Every poller there is, in the order in which they are listed.
[[nodiscard]] std::span<const PollerEntry> pollers();
/// Throws UsageError naming the known ones.
[[nodiscard]] const PollerEntry& find_poller(std::string_view name);

}  // namespace c10k
