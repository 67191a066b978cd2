// The process that leads a run: it forks the client processes, takes them through the phases in step,
// shows the progress, and ends them.
#pragma once

#include "experiments/client/engines.hpp"
#include "experiments/client/shared_run.hpp"

namespace c10k {

/// Carries out all phases of the run with the engine, and returns when every client process has
/// ended. SIGINT and SIGTERM stop the run: what is in flight is waited for, and after a second signal
/// not even that. Throws when a client process ends before its time; none is left behind in any case.
void conduct(const SharedRun& run, const Engine& engine);

}  // namespace c10k
