#include "experiments/handoff_bench/rig.hpp"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <stdexcept>

#include "ipc/socket.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// Without progress for so long, something hangs. No wait is expected to take it.
constexpr int patience_ms = 10'000;
constexpr std::int64_t patience_ns = std::int64_t{patience_ms} * 1'000'000;
/// On their way at most, as in the server (max_outstanding).
constexpr std::uint64_t window = 1024;
/// After the receiver has said that it goes to sleep: until it does, and its CPU too.
constexpr std::int64_t settle_ns = 20'000;
/// A channel that is full for no reason that a descriptor would tell: until it is tried again.
constexpr int pause_ms = 1;
/// Nothing to attend to for so long, and a closed connection has been given up on both sides.
constexpr int quiet_ms = 50;

/// One thread's; a method's own threads are missing.
std::int64_t switches_of(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/status", pid));
  std::string word;
  std::int64_t sum = 0;
  while (file >> word) {
    std::int64_t value = 0;
    if (word.ends_with("voluntary_ctxt_switches:") && file >> value) sum += value;
  }
  return sum;
}

std::int64_t cpu_ns(clockid_t clock) {
  timespec time{};
  checked([&] { return ::clock_gettime(clock, &time); }, "clock_gettime {}", clock);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

Rig::Rig(RigSetup setup)
    : setup_(std::move(setup)),
      progress_(
          checked([] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }, "eventfd progress")) {
  connections_.refill(1);
  batch_.assign(setup_.batch, Handover{connections_.peek(), {}});

  const std::unique_ptr<Link> link = setup_.method.method->open({});
  if (setup_.alone) {
    sink_ = link->acceptor_end(-1);
    return;
  }
  auto [ours, theirs] = unix_pair(SOCK_SEQPACKET);
  std::vector<int> keep = link->worker_descriptors();
  keep.insert(keep.end(), {theirs.get(), progress_.get()});
  child_ = ChildProcess::fork(
      [&] {
        const auto source = link->worker_end();
        return run_receiver(*source, {setup_.state, theirs.get(), progress_.get(), !setup_.floor});
      },
      keep, SIGKILL, setup_.method.entry->shared_table ? Table::shared : Table::own);
  link->leave_to_worker(std::move(theirs));
  control_ = std::move(ours);
  sink_ = link->acceptor_end(child_.pidfd());
  hear_ready();
  attention_ = sink_->attention_fd();
}

Rig::~Rig() {
  // As in the server: the sink outlives its worker.
  if (!child_.running()) return;
  child_.signal(SIGKILL);
  (void)child_.wait();
}

void Rig::finish() {
  if (!has_receiver()) return;
  tell(Order::end);
  wait_attending(child_.pidfd(), POLLIN);
  const ChildExit exit = child_.wait();
  if (!exit.clean()) throw std::runtime_error("the receiver ended: " + exit.text());
}

void Rig::tell(Order order) const {
  checked([&] { return ::send(control_.get(), &order, 1, MSG_NOSIGNAL); }, "send to the receiver");
}

void Rig::hear_ready() {
  wait_attending(control_.get(), POLLIN);
  Order order{};
  if (::recv(control_.get(), &order, 1, 0) != 1 || order != Order::ready)
    throw std::runtime_error("the receiver did not say that it is ready");
}

void Rig::give_up() const {
  throw std::runtime_error(fmt::format("no progress for {} s: {} sent, {} received",
                                       patience_ms / 1000, sent_, state().received.load()));
}

void Rig::prepare(std::uint64_t count) {
  // All that was handed over has been received, so the former ones may go.
  if (consumes()) connections_.refill(count);
}

std::uint64_t Rig::most_prepared(std::uint64_t count) const {
  return consumes() ? ConnectionSupply::at_most(count) : count;
}

void Rig::wait_attending(int fd, short events) {
  std::array<pollfd, 3> entries{
      {{fd, events, 0}, {attention_, POLLIN, 0}, {child_.pidfd(), POLLIN, 0}}};
  const std::int64_t deadline_ns = monotonic_ns() + patience_ns;
  while (true) {
    const int ready =
        checked([&] { return ::poll(entries.data(), entries.size(), patience_ms); }, "poll");
    if (ready == 0) give_up();
    if (entries[1].revents != 0) {
      sink_->attend();
      // It may go on asking for that, and nothing come of it.
      if (entries[0].revents == 0 && monotonic_ns() > deadline_ns) give_up();
    }
    if (entries[0].revents != 0) return;
    // Where its end is what is waited for, it may come between the looks at the first and the third.
    if (entries[2].revents != 0 && fd == child_.pidfd()) return;
    if (entries[2].revents != 0)
      throw std::runtime_error("the receiver ended: " + child_.wait().text());
  }
}

SendResult Rig::offer(std::uint64_t up_to) {
  const std::size_t count = std::min<std::uint64_t>(setup_.batch, up_to - sent_);
  for (std::size_t i = 0; i < count; ++i) batch_[i].tag.id = sent_ + i;
  if (consumes()) {
    if (connections_.left() < count) throw std::logic_error("too few connections prepared");
    for (std::size_t i = 0; i < count; ++i) batch_[i].fd = connections_.peek(i);
  }
  const SendResult result = sink_->send({batch_.data(), count});
  sent_ += result.taken;
  if (consumes()) connections_.use(result.taken);
  if (result.state == Channel::closed) throw std::runtime_error("the sink says closed");
  return result;
}

void Rig::wait_received(std::uint64_t count) {
  if (!has_receiver()) return;
  state().wake_at.store(count);
  while (state().received.load() < count) {
    wait_attending(progress_.get(), POLLIN);
    eventfd_t ignored;
    (void)::eventfd_read(progress_.get(), &ignored);
    // It may be of an earlier wait that needed no waking.
    if (state().received.load() < count) state().wake_at.store(count);
  }
  state().wake_at.store(BenchState::nobody);
  seen_ = state().received.load();
}

void Rig::wait_for_room(Channel state) {
  const std::int64_t now_ns = monotonic_ns();
  const bool again = full_at_ == sent_;
  if (!again) {
    full_at_ = sent_;
    full_since_ns_ = now_ns;
  } else if (now_ns - full_since_ns_ > patience_ns) {
    give_up();
  }
  if (state == Channel::would_block && sink_->writable_fd() >= 0)
    return wait_attending(sink_->writable_fd(), POLLOUT);
  seen_ = this->state().received.load();
  // Half of it: to be woken for each single one would cost a change of processes each.
  if (seen_ != sent_) return wait_received(sent_ - (sent_ - seen_) / 2);
  // Nothing is under way and the channel says full: the sink has still to hear from its receiver, or
  // the channel has become empty in between, or a resource is missing.
  if (attention_ < 0 && state == Channel::starved)
    throw std::runtime_error("starved with nothing under way");
  if (attention_ >= 0 || again) pause();
}

void Rig::pause() {
  std::array<pollfd, 2> entries{{{attention_, POLLIN, 0}, {child_.pidfd(), POLLIN, 0}}};
  checked([&] { return ::poll(entries.data(), entries.size(), pause_ms); }, "poll");
  if (entries[0].revents != 0) sink_->attend();
  if (entries[1].revents != 0)
    throw std::runtime_error("the receiver ended: " + child_.wait().text());
}

void Rig::attend_until_quiet() {
  const std::int64_t deadline_ns = monotonic_ns() + patience_ns;
  pollfd entry{attention_, POLLIN, 0};
  while (checked([&] { return ::poll(&entry, 1, quiet_ms); }, "poll") == 1) {
    sink_->attend();
    if (monotonic_ns() > deadline_ns) give_up();
  }
}

void Rig::run(std::uint64_t count) {
  prepare(count);
  const std::uint64_t target = sent_ + count;
  while (sent_ < target) {
    if (has_receiver() && sent_ - seen_ >= window) {
      seen_ = state().received.load(std::memory_order_relaxed);
      if (sent_ - seen_ >= window) wait_received(sent_ - window / 2);
    }
    if (const SendResult result = offer(target); result.state != Channel::more)
      wait_for_room(result.state);
  }
  wait_received(target);
}

std::vector<std::int64_t> Rig::latencies_ns(std::size_t count) {
  std::vector<std::int64_t> latencies(most_prepared(std::min(count, BenchState::most_latencies)));
  prepare(latencies.size());
  const std::int64_t deadline_ns = monotonic_ns() + patience_ns;
  // The receiver acknowledges by its counter alone. On one core it must get the core meanwhile; on two
  // the call returns at once, and the receiver's clock is not touched by it.
  const auto yield_until = [&](auto&& condition) {
    for (unsigned turn = 1; !condition(); ++turn) {
      if (attention_ >= 0) {
        pollfd entry{attention_, POLLIN, 0};
        if (::poll(&entry, 1, 0) == 1) sink_->attend();
      }
      ::sched_yield();
      if (turn % 256 == 0 && (monotonic_ns() > deadline_ns || has_ended(child_.pidfd())))
        throw std::runtime_error("no acknowledgement");
    }
  };
  std::uint64_t sleeps = 0;
  for (std::int64_t& latency : latencies) {
    // It has gone to sleep since the last one was received.
    yield_until([&] { return state().sleeps.load() > sleeps; });
    // And for good: a source may wake up again for one that was closed.
    std::int64_t settled_ns = 0;
    yield_until([&] {
      const std::int64_t now_ns = monotonic_ns();
      if (const std::uint64_t now = state().sleeps.load(); now != sleeps) {
        sleeps = now;
        settled_ns = now_ns + settle_ns;
      }
      return now_ns >= settled_ns;
    });
    const std::uint64_t slot = sent_ % BenchState::most_latencies;
    state().sent_ns.store(monotonic_ns());
    while (offer(sent_ + 1).taken == 0) wait_for_room(Channel::would_block);
    yield_until([&] { return state().received.load() == sent_; });
    latency = state().latencies_ns[slot].load();
  }
  state().sent_ns.store(0);
  return latencies;
}

Filled Rig::fill(std::uint64_t most, bool count_calls) {
  most = most_prepared(most);
  prepare(most);
  const std::uint64_t before = sent_;
  const std::uint64_t target = sent_ + most;
  if (count_calls) state().count_calls_up_to.store(target);
  if (has_receiver()) {
    tell(Order::hold);
    hear_ready();
  }
  Filled filled;
  state().sender_counts.store(count_calls);
  while (sent_ < target && filled.state == Channel::more) {
    const SendResult result = offer(target);
    filled.state = result.state;
    filled.error = result.error;
  }
  state().sender_counts.store(false);
  filled.sent = sent_ - before;
  if (!has_receiver()) return filled;
  // Where a connection stays with the sink, its end belongs to what it costs.
  const bool stays = setup_.method.entry->connections_stay;
  if (count_calls && !stays) state().count_calls_up_to.store(sent_);
  if (count_calls && stays) state().count_calls_up_to.store(BenchState::nobody);
  tell(Order::release);
  // What the sender does meanwhile for its receiver, in attend() or in threads, counts as well.
  state().sender_counts.store(count_calls);
  wait_received(sent_);
  if (stays) attend_until_quiet();
  state().sender_counts.store(false);
  if (stays) state().receiver_counts.store(false);
  return filled;
}

Usage Rig::sender_usage() const {
  return {cpu_ns(CLOCK_PROCESS_CPUTIME_ID), switches_of(::getpid())};
}

Usage Rig::receiver_usage() const {
  if (!has_receiver()) return {};
  clockid_t clock{};
  if (const int error = ::clock_getcpuclockid(child_.pid(), &clock); error != 0)
    throw_system_error(error, "clock_getcpuclockid {}", child_.pid());
  return {cpu_ns(clock), switches_of(child_.pid())};
}

}  // namespace c10k
