// Timeouts for many: one list and one timer of the loop, nothing allocated per wait.
#pragma once

#include <boost/intrusive/list.hpp>
#include <cstdint>
#include <functional>
#include <utility>

#include "ipc/syscall.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

/// What a member of a DueList derives from. It is in at most one list; unlink() takes it out.
class DueMember : public boost::intrusive::list_base_hook<
                      boost::intrusive::link_mode<boost::intrusive::auto_unlink>> {
 private:
  template <typename Member>
  friend class DueList;
  std::int64_t due_ns_ = 0;
};

/// Members that wait for a time to come, each for the same while: so the list is in order by
/// itself. Borrows the loop and the members.
template <typename Member>
class DueList {
 public:
  DueList(Loop& loop, std::int64_t wait_ns, std::function<void(Member&)> due)
      : loop_(loop), wait_ns_(wait_ns), due_(std::move(due)) {}

  /// `since_ns` must not decrease. Takes the member out of the list it is in.
  void push(Member& member, std::int64_t since_ns) {
    member.unlink();
    member.due_ns_ = since_ns + wait_ns_;
    members_.push_back(member);
    schedule();
  }

 private:
  // The timer is set for whoever was first then. That one may be gone when it fires, which costs
  // one turn; setting it anew at each removal would cost far more.
  void schedule() {
    if (scheduled_ || members_.empty()) return;
    scheduled_ = true;
    loop_.after(members_.front().due_ns_ - monotonic_ns(), [this] { fire(); });
  }

  void fire() {
    scheduled_ = false;
    const std::int64_t now = monotonic_ns();
    while (!members_.empty() && members_.front().due_ns_ <= now) {
      Member& member = members_.front();
      member.unlink();
      due_(member);
    }
    schedule();
  }

  Loop& loop_;
  std::int64_t wait_ns_;
  std::function<void(Member&)> due_;
  boost::intrusive::list<Member, boost::intrusive::constant_time_size<false>> members_;
  bool scheduled_ = false;
};

}  // namespace c10k
