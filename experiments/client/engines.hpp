// The engines: ways to drive connections from a process.
#pragma once

#include <span>
#include <string_view>

#include "ipc/handoff.hpp"

namespace c10k {

class Run;

struct Engine {
  std::string_view name;
  std::string_view summary;
  /// What a client process does: carries out all phases of the run.
  void (*run)(Run& run);
  /// Whether it works here; found by trying.
  Support (*probe)() = [] { return Support{}; };
  bool misbehaves = false;  ///< Carries out --misbehave.
};

/// Every engine there is, in the order in which they are listed.
[[nodiscard]] std::span<const Engine> engines();
/// `name` is one of engines(): the options are checked when they are read.
[[nodiscard]] const Engine& find_engine(std::string_view name);

/// One function an engine, defined in the file of that name. The loop engine uses the poller that
/// has the engine's name.
void run_process_engine(Run& run);
void run_loop_engine(Run& run);
void run_thread_engine(Run& run);
void run_uring_engine(Run& run);
void run_coroutine_engine(Run& run);

}  // namespace c10k
