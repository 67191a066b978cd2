#include <cstdio>

#include "acceptor/server_run.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

OwnedFd open_new_listener(const ServerOptions& options) {
  try {
    return listen_tcp(options.listen, options.listener);
  } catch (const SystemError& error) {
    const int code = error.code().value();
    if (code == EADDRINUSE || code == EADDRNOTAVAIL || code == EACCES) {
      throw std::runtime_error(fmt::format(
          "{}; choose another --listen HOST:PORT (port 0 picks a free one)", error.what()));
    }
    throw;
  }
}

}  // namespace

ServerFrame::ServerFrame(const ServerOptions& options)
    : options_(options),
      file_(options.report_file),
      take_over_(options.take_over.empty() ? nullptr
                                           : std::make_unique<TakeOver>(options.take_over)),
      listener_(open_listener()),
      address_(SocketAddress::local(listener_.get())),
      queue_(accept_queue(listener_.get())),
      started_ns_(monotonic_ns()) {}

OwnedFd ServerFrame::open_listener() {
  if (!take_over_) return open_new_listener(options_);
  std::vector<OwnedFd> all = take_over_->listeners(listening(), options_.listen);
  if (options_.method.method)
    return options_.method.method->adopt_listeners(std::move(all), options_.listener);
  if (all.size() != 1) throw std::runtime_error("--take-over: more listeners than one");
  return std::move(all[0]);
}

std::string ServerFrame::listening() const {
  return options_.method.method ? options_.method.method->listening(options_.workers)
                                : "one listener";
}

std::vector<int> ServerFrame::listeners() const {
  if (options_.method.method) return options_.method.method->listeners(listener_.get());
  return {listener_.get()};
}

void ServerFrame::claim_listeners() {
  if (options_.method.method) options_.method.method->claim_listeners(options_.listener);
}

void ServerFrame::announce(Loop& loop, Hooks hooks) {
  hooks_ = std::move(hooks);
  // At once in the place of the old server's. What may fail comes before the point of no return.
  auto control =
      options_.control.empty() ? nullptr : std::make_unique<ControlSocket>(options_.control);
  if (take_over_) {
    claim_listeners();
    take_over_->commit(loop, {.left = [this] { hooks_.look_again(); }, .adopt = hooks_.adopt});
    // Nobody else looks at the listeners any more, so that comes first.
    hooks_.look_again();
    // A worker that the old server has replaced meanwhile has brought its program with it.
    claim_listeners();
  }
  // Of a listener that has listened before, this sets the backlog. (Of a method with listeners of its own
  // it listens no more.)
  if (is_tcp_listener(listener_.get())) {
    checked([&] { return ::listen(listener_.get(), options_.listener.backlog); }, "listen {}",
            address_.text());
    queue_ = accept_queue(listener_.get());
  }
  upgrade_ = std::make_unique<Upgrade>(loop, options_, std::move(control), listening(),
                                       Upgrade::Hooks{.listeners = [this] { return listeners(); },
                                                      .retire = hooks_.retire,
                                                      .reclaim = [this] { claim_listeners(); }});
  fmt::print("listening {}\n", address_.text());
  std::fflush(stdout);
  if (options_.stats_interval_ns != 0) {
    loop.after(options_.stats_interval_ns, [this, &loop] { print_interval(loop); });
  }
}

void ServerFrame::start_successor() {
  if (options_.gives_up_its_rights()) {
    fmt::print(stderr,
               "c10k-server: SIGHUP: with --user this process may start no other: ignored; one of "
               "--strategy pool may\n");
    return;
  }
  if (upgrade_) return upgrade_->start_successor();
  fmt::print(stderr, "c10k-server: SIGHUP: this server is not ready itself yet: ignored\n");
}

ServerReport ServerFrame::full_report() const {
  ServerReport report = hooks_.report();
  report.options = options_.to_json();
  report.uptime_s = static_cast<double>(monotonic_ns() - started_ns_) / 1e9;
  report.address = address_.text();
  // The limit as it was: a method may have put listeners of its own in this one's place.
  report.queue = {listener_ ? accept_queue(listener_.get()).length : 0, queue_.limit};
  report.drops = drops_.since_start();
  return report;
}

void ServerFrame::run(const std::function<void()>& run, const std::function<void()>& failed) {
  try {
    run();
  } catch (...) {
    if (upgrade_) {  // else it has not been announced
      try_write_report();
      failed();
    }
    throw;
  }
  if (upgrade_) write_report();
}

void ServerFrame::write_report() {
  if (!options_.report_file.empty()) file_.write(full_report());
}

void ServerFrame::try_write_report() {
  try {
    write_report();
  } catch (const std::exception& error) {
    fmt::print(stderr, "c10k-server: {}\n", error.what());
  }
}

void ServerFrame::print_interval(Loop& loop) {
  ProcessTotals all;
  const ServerReport report = full_report();
  for (const ProcessTotals& process : report.processes) all.add(process);
  const double seconds = static_cast<double>(options_.stats_interval_ns) / 1e9;
  const auto rate = [&](std::uint64_t now, std::uint64_t before) {
    return static_cast<double>(now - before) / seconds;
  };
  fmt::print(stderr,
             "{:.0f} s: {:.0f} accepts/s, {:.0f} echoes/s, {} open, queue {}, {} overflows, {} "
             "shed, {} lost\n",
             report.uptime_s, rate(all.accepted, last_accepted_), rate(all.echoes, last_echoes_),
             all.active, report.queue.length, report.drops.overflows, all.shed, all.lost);
  last_accepted_ = all.accepted;
  last_echoes_ = all.echoes;
  loop.after(options_.stats_interval_ns, [this, &loop] { print_interval(loop); });
}

}  // namespace c10k
