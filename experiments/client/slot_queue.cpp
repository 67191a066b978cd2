#include "experiments/client/slot_queue.hpp"

#include <algorithm>
#include <utility>

#include "ipc/syscall.hpp"

namespace c10k {

SlotQueue::SlotQueue(Run& run, Loop& loop, SlotUser& user)
    : run_(run),
      loop_(loop),
      user_(user),
      pauses_(loop, refusal_pause_ns,
              [this](Member& member) {
                ready_.push_back(&member);
                start_ready();
              }),
      members_(run.slots()) {
  for (std::size_t i = 0; i < members_.size(); ++i) members_[i].slot = i;
}

void SlotQueue::work() {
  loop_.at_end_of_turn([this] { turn_ended(); });
  expect_phase();
  loop_.run();
}

void SlotQueue::expect_phase() {
  run_.phase_ended();
  loop_.watch(run_.phase_fd(), {.read = true, .level = true}, *this);
}

void SlotQueue::on_ready(Readiness) {
  loop_.forget(run_.phase_fd(), Removal::still_open);
  if (!run_.next_phase()) return loop_.stop();
  in_phase_ = true;
  unstarted_ = 0;
  for (std::size_t i = 0; i < run_.phase().first_at_once; ++i) start_another();
  start_ready();
}

void SlotQueue::turn_ended() {
  if (!in_phase_ || working_ != 0 || unstarted_ != run_.phase().slots) return;
  in_phase_ = false;
  expect_phase();
}

void SlotQueue::start_another() {
  if (unstarted_ == run_.phase().slots) return;
  Member& member = members_[unstarted_++];
  member.first = true;
  member.free_since_ns = loop_.now_ns();
  ++working_;
  ready_.push_back(&member);
}

void SlotQueue::ended(std::size_t slot, Next next, std::int64_t now_ns) {
  Member& member = members_[slot];
  member.free_since_ns = now_ns;
  switch (next) {
    case Next::again:
      ready_.push_back(&member);
      break;
    case Next::pause:
      pauses_.push(member, now_ns);
      break;
    case Next::rest:
      return rest(member);
  }
  if (std::exchange(member.first, false)) start_another();
}

void SlotQueue::start_ready() {
  while (!ready_.empty()) {
    Member& member = *ready_.front();
    if (!run_.phase().connects && !user_.takes_part(member.slot)) {
      ready_.pop_front();
      rest(member);
      continue;
    }
    const std::int64_t now = monotonic_ns();
    const auto start = due_start(now);
    if (!start) return;
    ready_.pop_front();
    run_.began(*start, now, member.free_since_ns);
    user_.begin_attempt(member.slot, *start, now);
  }
}

std::optional<std::int64_t> SlotQueue::due_start(std::int64_t now_ns) {
  if (!start_) {
    start_ = run_.take_start(now_ns);
    if (!start_) {
      rest_ready();
      return std::nullopt;
    }
  }
  if (*start_ <= now_ns) return std::exchange(start_, std::nullopt);
  if (run_.stopped()) {
    start_.reset();
    rest_ready();
  } else if (!waiting_) {
    waiting_ = true;
    loop_.after(std::min(*start_ - now_ns, Run::stop_check_ns), [this] {
      waiting_ = false;
      start_ready();
    });
  }
  return std::nullopt;
}

void SlotQueue::rest_ready() {
  while (!ready_.empty()) {
    Member& member = *ready_.front();
    ready_.pop_front();
    rest(member);
  }
}

void SlotQueue::rest(Member& member) {
  --working_;
  if (std::exchange(member.first, false)) start_another();
}

}  // namespace c10k
