// One concurrent connection as coroutines see it: what they do with it, and what they can await.
#pragma once

#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "experiments/client/dialer.hpp"
#include "experiments/client/payload.hpp"
#include "experiments/client/run.hpp"
#include "experiments/client/slot_queue.hpp"
#include "experiments/client/task.hpp"
#include "ipc/owned_fd.hpp"
#include "strategies/due_list.hpp"
#include "strategies/event_loop.hpp"

namespace c10k {

struct CoroutineShared;

/// Suspends for the time of the list that it is given.
class Pause : public DueMember {
 public:
  explicit Pause(DueList<Pause>& pauses) : pauses_(pauses) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> coroutine);
  void await_resume() const noexcept {}
  void resume() const { coroutine_.resume(); }

 private:
  DueList<Pause>& pauses_;
  std::coroutine_handle<> coroutine_;
};

/// A step that has `ended` is the end of the attempt: nothing more is done in it. Used again for
/// each attempt; keeps its connection between them. Borrows what is shared.
class CoroutineSlot : public EventHandler, public DueMember {
 public:
  using Step = Exchange::Step;

  CoroutineSlot(CoroutineShared& shared, std::size_t index) : shared_(shared), index_(index) {}
  ~CoroutineSlot() override { close(); }

  // What an attempt consists of. Nothing here waits.

  /// How the connection was lost between two attempts, if it was; told once.
  Step take_lost() { return std::exchange(lost_, std::nullopt).value_or(Step{}); }
  /// Opens a socket; `narrow` makes it one of a host that can take little at a time.
  Step open(bool narrow = false);
  /// Begins to connect it. The handshake may be over, or not.
  Step connect();
  /// Chooses the request.
  void begin_exchange(bool until_eof);
  /// Sends `most` bytes of what is unsent, as far as the kernel takes it. `blocked` also while the
  /// handshake is not over.
  Step send(std::size_t most = max_payload);
  /// Takes what has come of the echo, up to `most` bytes.
  Step receive(std::size_t most = std::numeric_limits<std::size_t>::max());
  /// Nobody has asked for anything: whatever has come is the end of the connection.
  Step receive_nothing();
  /// Says that the connection stands, where no byte has been sent on it yet.
  Step connected();
  void send_end() const;
  /// The connection is closed with an RST when the attempt ends.
  Step reset() const;
  [[nodiscard]] bool has_connection() const { return static_cast<bool>(fd_); }
  [[nodiscard]] const Exchange& exchange() const { return exchange_; }
  [[nodiscard]] const Options& options() const;

  // What it awaits.

  /// Until there is something to read or, with `write`, the kernel has room again: `more`. Or until
  /// the time of the attempt is over, which ends it.
  [[nodiscard]] auto ready(bool write) { return Ready{*this, write}; }
  /// For as long as a client that misbehaves takes between two pieces.
  [[nodiscard]] Pause pause();
  /// Ended when the time of the attempt is over.
  [[nodiscard]] Step in_time() const;
  /// Until the next attempt is to be made.
  [[nodiscard]] auto turn() { return Turn{*this}; }

  // What the engine calls.

  /// The coroutine that is resumed at the first turn.
  void wait_for_turn(std::coroutine_handle<> coroutine) { turn_ = coroutine; }
  [[nodiscard]] bool takes_part() const { return fd_ || lost_; }
  void begin_attempt(std::int64_t intended_ns, std::int64_t now_ns);
  /// Keeps the books of the attempt, and the connection if it may be used again.
  void end_attempt(const Step& step);
  void time_out();
  void on_ready(Readiness ready) override;

 private:
  struct Ready {
    CoroutineSlot& slot;
    bool write;
    bool await_ready() const { return slot.timed_out_ || slot.is_ready(write); }
    void await_suspend(std::coroutine_handle<> coroutine);
    Step await_resume() const { return slot.in_time(); }
  };
  struct Turn {
    CoroutineSlot& slot;
    bool await_ready() const { return false; }
    void await_suspend(std::coroutine_handle<> coroutine) { slot.turn_ = coroutine; }
    void await_resume() const {}
  };

  [[nodiscard]] bool is_ready(bool write) const { return seen_.read || (write && seen_.write); }
  void watch(bool write);
  void opened();
  void close();

  CoroutineShared& shared_;
  std::size_t index_;
  OwnedFd fd_;
  bool standing_ = false;  // the handshake is over
  bool watched_ = false;
  bool watches_write_ = false;
  bool timed_out_ = false;
  /// Told by the loop, and not used up by a call that found no more: the poller tells a change once.
  Readiness seen_;
  bool waits_to_write_ = false;
  std::coroutine_handle<> ready_;
  std::coroutine_handle<> turn_;
  Exchange exchange_;
  std::optional<Step> lost_;
  std::int64_t intended_ns_ = 0;
  std::int64_t started_ns_ = 0;
  std::int64_t connected_ns_ = 0;  // 0 where the attempt has opened no connection
  std::uint64_t echoes_ = 0;       // on this connection
};

/// What the slots of a process share.
struct CoroutineShared {
  CoroutineShared(Run& run, SlotUser& user);

  Run& run;
  EventLoop loop;
  Dialer dialer;
  SlotQueue queue;
  DueList<CoroutineSlot> timeouts;
  DueList<Pause> pauses;
  std::size_t dials;
  std::array<char, 65'536> scratch;
};

}  // namespace c10k
