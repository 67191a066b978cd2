// One thread and one io_uring for all connections. A turn of the loop is one io_uring_enter that submits
// what all slots have begun since the last one: of a crr attempt the connect, the send behind it (linked:
// it starts once the connect has succeeded) and the receive.
//
// The socket itself is made, and its address bound, by plain system calls: their results are needed to go
// on, and of the operations that io_uring has for them setsockopt is as young as Linux 6.7 and bind as
// 6.11. The receive takes a buffer of the ring only when the echo is there, so ten thousand held
// connections need none.
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <utility>

#include "experiments/client/dialer.hpp"
#include "experiments/client/engines.hpp"
#include "experiments/client/slot_engine.hpp"
#include "ipc/syscall.hpp"
#include "strategies/completion_loop.hpp"
#include "strategies/provided_buffers.hpp"

namespace c10k {
namespace {

constexpr unsigned buffer_bytes = 16'384;
constexpr unsigned buffers = 256;

class UringEngine;

class UringSlot : public EngineSlot, public Completer {
 public:
  enum class State : std::uint8_t { closed, connecting, exchanging, idle };
  enum Operation : unsigned { connect, send, receive };

  void on_completion(unsigned operation, int result, unsigned flags) override;

  UringEngine* engine = nullptr;
  State state = State::closed;
  OwnedFd fd;
  bool receiving = false;
  /// What a send reads until it has completed.
  std::array<iovec, 2> parts{};
  msghdr message{};
  /// What the slot does when the last operation of an ended attempt has completed: until then the kernel
  /// may still look at the slot.
  std::optional<Next> next;
};

class UringEngine : public SlotEngine<UringSlot> {
 public:
  UringEngine(Run& run, CompletionLoop& loop)
      : SlotEngine(run, loop),
        loop_(loop),
        buffers_(loop.ring(), 0, buffers, buffer_bytes),
        dialer_(run.options(), Dialer::Mode::completions),
        dials_(run.process()) {
    for (UringSlot& slot : slots_) slot.engine = this;
  }
  ~UringEngine() override {
    for (UringSlot& slot : slots_) {
      if (slot.state != UringSlot::State::closed) close(slot);
    }
  }

  void completed(UringSlot& slot, unsigned operation, int result, unsigned flags);

 private:
  [[nodiscard]] bool has_connection(const UringSlot& slot) const override {
    return slot.state != UringSlot::State::closed;
  }
  void attempt(UringSlot& slot) override;
  void timed_out(UringSlot& slot) override {
    end(slot, {Exchange::State::ended, Outcome::timeout});
  }

  void begin_connect(UringSlot& slot);
  void begin_send(UringSlot& slot);
  void begin_receive(UringSlot& slot);
  void on_connected(UringSlot& slot, int result);
  void on_sent(UringSlot& slot, int result);
  void on_received(UringSlot& slot, int result, unsigned flags);
  void end(UringSlot& slot, const Exchange::Step& step);
  void close(UringSlot& slot);

  CompletionLoop& loop_;
  ProvidedBuffers buffers_;
  Dialer dialer_;
  std::size_t dials_;
};

void UringSlot::on_completion(unsigned operation, int result, unsigned flags) {
  engine->completed(*this, operation, result, flags);
}

void UringEngine::attempt(UringSlot& slot) {
  const bool connected = has_connection(slot);
  slot.exchange.begin(run_.payload(), slot.started_ns, run_.options().server_closes);
  timeouts_.push(slot, slot.started_ns);
  if (connected) {
    slot.state = UringSlot::State::exchanging;
  } else {
    auto [fd, error] = dialer_.open(dials_++);
    if (error != 0) return end(slot, {Exchange::State::ended, outcome_of_errno(error), error});
    slot.fd = std::move(fd);
    slot.state = UringSlot::State::connecting;
    slot.echoes = 0;
    begin_connect(slot);
  }
  begin_send(slot);
  if (connected) begin_receive(slot);
}

void UringEngine::begin_connect(UringSlot& slot) {
  loop_.begin(slot, UringSlot::connect, [&](io_uring_sqe* sqe) {
    ::io_uring_prep_connect(sqe, slot.fd.get(), dialer_.target().data(), dialer_.target().size());
    ::io_uring_sqe_set_flags(sqe, IOSQE_IO_LINK);  // to the send, the next entry
  });
}

void UringEngine::begin_send(UringSlot& slot) {
  // All of it: the kernel goes on where there was no room, while the receive takes what comes back.
  constexpr int flags = MSG_NOSIGNAL | MSG_WAITALL;
  slot.parts = slot.exchange.unsent();
  slot.message = {};
  slot.message.msg_iov = slot.parts.data();
  slot.message.msg_iovlen = slot.parts.size();
  loop_.begin(slot, UringSlot::send, [&](io_uring_sqe* sqe) {
    if (slot.parts[1].iov_len == 0) {
      ::io_uring_prep_send(sqe, slot.fd.get(), slot.parts[0].iov_base, slot.parts[0].iov_len,
                           flags);
    } else {
      ::io_uring_prep_sendmsg(sqe, slot.fd.get(), &slot.message, flags);
    }
  });
}

void UringEngine::begin_receive(UringSlot& slot) {
  slot.receiving = true;
  loop_.begin(slot, UringSlot::receive, [&](io_uring_sqe* sqe) {
    ::io_uring_prep_recv(sqe, slot.fd.get(), nullptr, 0, 0);
    // The echo cannot be there yet: a first try would find nothing.
    if (!slot.exchange.receiving()) sqe->ioprio = IORING_RECVSEND_POLL_FIRST;
    buffers_.choose(sqe);
  });
}

void UringEngine::completed(UringSlot& slot, unsigned operation, int result, unsigned flags) {
  if (slot.next) {
    // Of an attempt that has ended.
    if ((flags & IORING_CQE_F_BUFFER) != 0) buffers_.give_back(ProvidedBuffers::chosen(flags));
    if (slot.in_flight() == 0)
      queue_.ended(slot.index, *std::exchange(slot.next, std::nullopt), monotonic_ns());
  } else if (operation == UringSlot::connect) {
    on_connected(slot, result);
  } else if (operation == UringSlot::send) {
    on_sent(slot, result);
  } else {
    on_received(slot, result, flags);
  }
  queue_.start_ready();
}

void UringEngine::on_connected(UringSlot& slot, int result) {
  if (result < 0) return end(slot, {Exchange::State::ended, outcome_of_errno(-result), -result});
  slot.state = UringSlot::State::exchanging;
  slot.connected_ns = monotonic_ns();
  timeouts_.push(slot, slot.connected_ns);
  run_.connection_opened();
  begin_receive(slot);
}

void UringEngine::on_sent(UringSlot& slot, int result) {
  const Exchange::Step step =
      slot.exchange.sent(result, slot.parts[0].iov_len + slot.parts[1].iov_len);
  if (step.state == Exchange::State::ended) return end(slot, step);
  if (!slot.exchange.all_sent()) return begin_send(slot);
  // The echo may have been seen first.
  if (!slot.receiving) end(slot, {Exchange::State::ended, Outcome::echoed});
}

void UringEngine::on_received(UringSlot& slot, int result, unsigned flags) {
  slot.receiving = false;
  if (result == -ENOBUFS) return begin_receive(slot);  // those that are out come back in this turn
  const bool filled = (flags & IORING_CQE_F_BUFFER) != 0;
  const unsigned buffer = ProvidedBuffers::chosen(flags);
  const std::string_view bytes =
      filled && result > 0
          ? std::string_view(buffers_.data(buffer), static_cast<std::size_t>(result))
          : std::string_view();
  const Exchange::Step step = slot.exchange.received(result, bytes);
  if (filled) buffers_.give_back(buffer);
  if (step.state != Exchange::State::ended) return begin_receive(slot);
  // Its end has not been told yet, though all of it must have left.
  const bool sending = step.outcome == Outcome::echoed && slot.in_flight() != 0;
  if (!sending) end(slot, step);
}

void UringEngine::end(UringSlot& slot, const Exchange::Step& step) {
  if (slot.state == UringSlot::State::connecting) slot.connected_ns = 0;
  const Next next = count_end(slot, step);
  if (has_connection(slot) && !keeps_connection(slot, step)) {
    close(slot);
  } else if (has_connection(slot)) {
    slot.state = UringSlot::State::idle;
  }
  if (slot.in_flight() == 0) return queue_.ended(slot.index, next, slot.ended_ns);
  slot.next = next;
}

void UringEngine::close(UringSlot& slot) {
  // An operation under way holds the open file, and closing the descriptor would not end it.
  if (slot.in_flight() != 0) {
    for (const auto operation : {UringSlot::connect, UringSlot::send, UringSlot::receive})
      loop_.withdraw(slot, operation);
  }
  if (slot.state != UringSlot::State::connecting) run_.connection_closed();
  slot.state = UringSlot::State::closed;
  loop_.close(std::move(slot.fd));
}

}  // namespace

void run_uring_engine(Run& run) {
  CompletionLoop loop;
  UringEngine(run, loop).work();
}

}  // namespace c10k
