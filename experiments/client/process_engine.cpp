// A process per connection, with blocking calls, as the original experiment's clients: the conductor
// makes as many processes as there are connections.
#include "experiments/client/blocking_slot.hpp"
#include "experiments/client/engines.hpp"

namespace c10k {

void run_process_engine(Run& run) {
  const Dialer dialer(run.options(), Dialer::Mode::blocking);
  BlockingSlot slot(run, dialer, 0);
  while (run.next_phase()) {
    if (run.phase().slots == 0) continue;
    run.wait_for_turn();
    slot.work_phase([&] { run.turn_over(); });
  }
}

}  // namespace c10k
