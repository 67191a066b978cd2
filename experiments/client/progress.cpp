#include "experiments/client/progress.hpp"

#include <cstdio>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {
constexpr std::int64_t interval_ns = 250'000'000;
}  // namespace

Progress::Progress(EventLoop& loop, const Run& run) : loop_(loop), run_(run) {
  if (run_.options().progress) schedule();
}

Progress::~Progress() {
  if (timer_ == 0) return;
  loop_.cancel(timer_);
  fmt::print(stderr, "\r\x1b[K");
}

void Progress::schedule() {
  timer_ = loop_.after(interval_ns, [this] {
    show();
    schedule();
  });
}

void Progress::show() {
  const SharedTally::Counts counts = run_.counts();
  // Carriage return, and "erase to the end of the line" (ECMA-48, EL).
  fmt::print(stderr, "\r{:.1f} s, {}: {} attempts, {} failed, {} connections open\x1b[K",
             run_.elapsed_s(monotonic_ns()), run_.phase().name, counts.attempts, counts.failed,
             run_.open());
  std::fflush(stderr);
}

}  // namespace c10k
