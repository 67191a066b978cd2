// --strategy select | poll | epoll: one process that accepts and serves in one loop.
#include <signal.h>

#include "acceptor/server_run.hpp"
#include "ipc/listener_source.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"

namespace c10k {

int run_single_server(ServerOptions& options) {
  ServerFrame frame(options);
  if (options.user) become(*options.user);
  const SharedArray<ProcessCounters> counters(1);
  const SharedArray<Counter> active(1);
  auto source = std::make_unique<ListenerSource>(duplicate(frame.listener()), options.accept_drain,
                                                 first_id_of_worker(0), Sharing::none);
  Worker worker(*options.loop, std::move(source), true, options.worker, counters[0], active.all(),
                0);

  // The worker's loop goes before the frame does.
  const auto leave_loop = [](ServerFrame* of) { of->leave_loop(); };
  const std::unique_ptr<ServerFrame, decltype(leave_loop)> leaving(&frame, leave_loop);

  const auto report = [&] {
    ServerReport result;
    ProcessTotals& process = result.processes.emplace_back();
    process.role = "server";
    process.pid = ::getpid();
    process.add(counters[0], true);
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    process.add(usage, counters[0].at_ready);
    return result;
  };
  const SignalWatch signals(worker.loop(), {SIGTERM, SIGINT, SIGUSR1, SIGHUP}, [&](int number) {
    if (number == SIGUSR1) return frame.try_write_report();
    if (number == SIGHUP) return frame.start_successor();
    if (frame.drains_already()) return;
    frame.stop_upgrades();
    frame.close_listener();
    return worker.draining() ? worker.end_drain() : worker.drain();
  });
  const auto retire = [&](bool) {
    frame.close_listener();
    worker.retire([&] { frame.upgrade()->left(); });
  };
  frame.announce(worker.loop(),
                 {.report = report, .retire = retire, .look_again = [&] { worker.look_again(); }});
  // Everything is open by now, and not one byte of a client has been read.
  if (options.user) forbid_other_calls(options.worker.allowed_calls);
  frame.run([&] { worker.run(); }, [] {});
  return 0;
}

}  // namespace c10k
