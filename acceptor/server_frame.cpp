#include <cstdio>

#include "acceptor/server_run.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

OwnedFd open_listener(const ServerOptions& options) {
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
      listener_(open_listener(options)),
      address_(SocketAddress::local(listener_.get())),
      queue_(accept_queue(listener_.get())),
      started_ns_(monotonic_ns()) {}

void ServerFrame::announce(Loop& loop, std::function<ServerReport()> report) {
  report_ = std::move(report);
  fmt::print("listening {}\n", address_.text());
  std::fflush(stdout);
  if (options_.stats_interval_ns != 0) {
    loop.after(options_.stats_interval_ns, [this, &loop] { print_interval(loop); });
  }
}

ServerReport ServerFrame::full_report() const {
  ServerReport report = report_();
  report.options = options_.to_json();
  report.uptime_s = static_cast<double>(monotonic_ns() - started_ns_) / 1e9;
  report.address = address_.text();
  // The limit as it was: a method may have put listeners of its own in this one's place.
  report.queue = {listener_ ? accept_queue(listener_.get()).length : 0, queue_.limit};
  report.drops = drops_.since_start();
  return report;
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
