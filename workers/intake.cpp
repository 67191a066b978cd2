#include "workers/intake.hpp"

#include <utility>

namespace c10k {

ReadinessIntake::ReadinessIntake(Loop& loop, ConnectionSource& source,
                                 std::function<void()> arrived)
    : loop_(loop), source_(source), arrived_(std::move(arrived)) {
  loop_.watch(source_.fd(), interest(true), *this);
  if (source_.attention_fd() >= 0) loop_.watch(source_.attention_fd(), interest(true), attention_);
}

void ReadinessIntake::change(bool read) {
  for (const int fd : {source_.fd(), source_.attention_fd()}) {
    if (fd >= 0) loop_.change(fd, interest(read));
  }
}

void ReadinessIntake::stop() {
  if (std::exchange(ended_, true)) return;
  for (const int fd : {source_.fd(), source_.attention_fd()}) {
    if (fd >= 0) loop_.forget(fd, Removal::still_open);
  }
}

}  // namespace c10k
