#include "workers/intake.hpp"

#include <utility>

namespace c10k {

ReadinessIntake::ReadinessIntake(Loop& loop, ConnectionSource& source,
                                 std::function<void()> arrived)
    : loop_(loop), source_(source), arrived_(std::move(arrived)) {
  loop_.watch(source_.fd(), interest(true), *this);
}

void ReadinessIntake::stop() {
  if (!std::exchange(ended_, true)) loop_.forget(source_.fd(), Removal::still_open);
}

}  // namespace c10k
