#include "experiments/client/progress.hpp"

#include <cstdio>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {
constexpr std::int64_t interval_ns = 250'000'000;
}  // namespace

Progress::Progress(EventLoop& loop, const SharedRun& run) : loop_(loop), run_(run) {
  if (run_.options.progress) schedule();
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
  const SharedRun::State& state = run_.state();
  const std::size_t begun = state.progress.phases_begun;
  if (begun == 0) return;
  const SharedBooks::Counts counts = run_.books.counts();
  // Carriage return, and "erase to the end of the line" (ECMA-48, EL).
  fmt::print(stderr, "\r{:.1f} s, {}: {} attempts, {} failed, {} connections open\x1b[K",
             static_cast<double>(monotonic_ns() - run_.begin_ns()) / 1e9,
             run_.phases[begun - 1].name, counts.attempts, counts.failed, state.open.load());
  std::fflush(stderr);
}

}  // namespace c10k
