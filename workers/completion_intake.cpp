#include "workers/completion_intake.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace c10k {

CompletionIntake::CompletionIntake(CompletionLoop& loop, ConnectionSource& source,
                                   AcceptQueueReader& reader, std::function<void()> arrived)
    : loop_(loop), source_(source), reader_(reader), arrived_(std::move(arrived)) {
  loop_.watch(reader_.listener(), {.read = true, .level = true}, *this);
  loop_.at_end_of_turn([this] { deliver(); });
}

ReceiveResult CompletionIntake::receive(std::span<Received> batch) {
  if (!arrived_connections_.empty()) {
    ReceiveResult result;
    // Those of one turn have waited in the listener's queue together, or would have.
    result.queue_length = static_cast<std::uint32_t>(arrived_connections_.size());
    result.received = std::min(batch.size(), arrived_connections_.size());
    for (std::size_t i = 0; i < result.received; ++i) {
      batch[i] = std::move(arrived_connections_.front());
      arrived_connections_.pop_front();
    }
    return result;
  }
  if (state_ == State::stopped) return {.state = Channel::would_block};
  const ReceiveResult result = source_.receive(batch);
  const bool well = result.received != 0 && result.error == 0;
  if (well && state_ == State::waiting && in_flight() == 0) {
    state_ = State::accepting;
    loop_.change(reader_.listener(), {.level = true});
    loop_.begin(*this, 0, [&](io_uring_sqe* sqe) {
      ::io_uring_prep_multishot_accept(sqe, reader_.listener(), nullptr, nullptr,
                                       SOCK_NONBLOCK | SOCK_CLOEXEC);
    });
  }
  return result;
}

void CompletionIntake::on_completion(unsigned, int result, unsigned flags) {
  news_ = true;
  if (result >= 0) arrived_connections_.push_back({OwnedFd(result), reader_.next_tag()});
  if ((flags & IORING_CQE_F_MORE) == 0 && state_ == State::accepting) wait();
}

/// Not in the middle of a turn: there may be completions behind this one.
void CompletionIntake::deliver() {
  if (!std::exchange(news_, false)) return;
  do arrived_();
  while (!arrived_connections_.empty());
}

void CompletionIntake::wait() {
  state_ = State::waiting;
  loop_.change(reader_.listener(), {.read = true, .level = true});
}

void CompletionIntake::leave_accepting(State next) {
  if (state_ == State::accepting) loop_.withdraw(*this, 0);
  state_ = next;
}

void CompletionIntake::pause() {
  leave_accepting(State::paused);
  loop_.change(reader_.listener(), {.level = true});
}

void CompletionIntake::resume() {
  if (state_ == State::paused) wait();
}

void CompletionIntake::stop() {
  if (state_ == State::stopped) return;
  leave_accepting(State::stopped);
  loop_.forget(reader_.listener(), Removal::still_open);
}

}  // namespace c10k
