// Who of a SO_REUSEPORT group gets a connection: the programs that the kernel runs to decide.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "ipc/owned_fd.hpp"

namespace c10k {

enum class Steer : std::uint8_t { hash, cpu, least_loaded };

/// The most workers that steer=least-loaded can choose among.
inline constexpr std::size_t most_steered = 64;

/// How loaded a worker is: the sum of two numbers with one writer each, modulo 2^64. A map's value, so
/// the kernel's program and the worker both see it without a system call.
struct alignas(64) WorkerLoad {
  std::atomic<std::uint64_t> steered{0};  ///< By the kernel's program: connections sent here.
  std::atomic<std::uint64_t> own{0};  ///< By the worker: connections open, less those of `steered`
                                      ///< that it has seen come (or knows not to come).

  /// Nobody serves here: only chosen when that is so everywhere.
  void set_absent() {
    own.store((std::uint64_t{1} << 38) - steered.load(std::memory_order_relaxed),
              std::memory_order_release);
  }
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

/// The loads of all workers, mapped from an eBPF array; children see the same memory.
class WorkerLoads {
 public:
  /// All are absent. Throws SystemError.
  WorkerLoads();
  ~WorkerLoads();
  WorkerLoads(const WorkerLoads&) = delete;
  WorkerLoads& operator=(const WorkerLoads&) = delete;

  [[nodiscard]] WorkerLoad& operator[](std::size_t worker) const { return loads_[worker]; }
  [[nodiscard]] int map() const { return map_.get(); }

 private:
  OwnedFd map_;
  WorkerLoad* loads_;
};

/// What the method does in the kernel. With steer=hash and no migration that is nothing; with
/// migration, the programs choose among the workers' listeners alone.
class ReuseportSteering {
 public:
  /// Throws SystemError for what this process may not do, UsageError for more workers than
  /// most_steered.
  /// `adopted`: without migration, the listeners() of another server, whose places are taken already.
  ReuseportSteering(Steer steer, bool migrate, std::size_t workers, OwnedFd adopted = OwnedFd());

  /// Worker `worker` has a new listener: steers to it from now on.
  void add(std::size_t worker, int listener);
  /// The same, while another server's program decides for the group: it counts from attach() on.
  void place(std::size_t worker, int listener);
  /// The group of this listener is steered by this program from now on.
  void attach(int listener) const;

  /// Without migration, where an eBPF program steers: the listeners by worker, which another program can use
  /// too (a listener has a place in one map at a time). Lent; -1 when there is no map.
  [[nodiscard]] int listeners() const { return listeners_.get(); }
  /// Whether a descriptor of which nothing is known can be that of listeners().
  [[nodiscard]] static bool are_listeners(int map);

  /// Migrating: a listener that is chosen only when no worker has one.
  void set_last_resort(int listener);

  /// Null unless steer=least-loaded.
  [[nodiscard]] std::shared_ptr<WorkerLoads> loads() const { return loads_; }

 private:
  [[nodiscard]] bool extended() const { return steer_ == Steer::least_loaded || migrate_; }
  [[nodiscard]] OwnedFd load_program() const;

  Steer steer_;
  bool migrate_;
  std::size_t workers_;
  OwnedFd listeners_;  // BPF_MAP_TYPE_REUSEPORT_SOCKARRAY: a listener's place is its worker's slot
  std::shared_ptr<WorkerLoads> loads_;
  OwnedFd program_;
};

}  // namespace c10k
