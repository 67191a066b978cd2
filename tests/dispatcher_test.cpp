// What a worker's death does to the connections that it had been handed, step by step: the test is the
// worker, and so it can die between any two of its steps.
#include "acceptor/dispatcher.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <atomic>
#include <thread>

#include "tests/support.hpp"

namespace c10k::testing {
namespace {

/// Takes all, and holds what a worker would have received.
class FakeSink : public ConnectionSink {
 public:
  explicit FakeSink(std::vector<Received>& sent) : sent_(sent) {}
  SendResult send(std::span<const Handover> batch) override {
    for (const Handover& next : batch) sent_.push_back({duplicate(next.fd), next.tag});
    return {.taken = batch.size()};
  }
  [[nodiscard]] int writable_fd() const override { return -1; }
  [[nodiscard]] bool drained() const override { return true; }

 private:
  std::vector<Received>& sent_;
};

/// A worker that does what the test says.
class FakeWorker {
 public:
  explicit FakeWorker(std::size_t slot) {
    process_.slot = slot;
    process_.shared = std::make_unique<SharedArray<ProcessCounters>>(1);
    process_.sink = std::make_unique<FakeSink>(received_);
  }
  [[nodiscard]] WorkerProcess& process() { return process_; }
  [[nodiscard]] ProcessCounters& counters() { return process_.counters(); }
  [[nodiscard]] std::size_t handed() const { return received_.size(); }
  [[nodiscard]] int fd(std::size_t index = 0) const { return received_[index].fd.get(); }

  /// As Worker::take_batch().
  void count_received(bool says_which = true) {
    for (const Received& connection : received_) {
      counters().received.add();
      if (!says_which) continue;
      const std::uint64_t next = counters().consumed.get() + 1;
      counters().consumed_copies[next % max_outstanding].set(connection.tag.copy);
      counters().consumed.add();
    }
  }
  /// It has no descriptor for any of them, or says so.
  void refuse() {
    for (const Received& connection : received_) {
      counters().refused.add();
      const std::uint64_t next = counters().consumed.get() + 1;
      counters().consumed_copies[next % max_outstanding].set(connection.tag.copy | refused_flag);
      counters().consumed.add();
    }
    received_.clear();
  }
  /// As EchoService gives up the first one to the server's successor.
  void hand_back() {
    const std::uint64_t next = counters().ended.get() + 1;
    counters().ended_copies[next % max_outstanding].set(received_[0].tag.copy | handed_back_flag);
    received_[0].fd.reset();
    counters().handed_back.add();
    counters().ended.set(next);
  }
  void read(std::size_t size) { EXPECT_EQ(read_text(fd(), size).size(), size); }
  void write(std::string_view text) { send_text(fd(), text); }
  /// As EchoService closes what the acceptor has a copy of.
  void end() {
    ::shutdown(fd(), SHUT_RDWR);
    received_[0].fd.reset();
    counters().finished.add();
  }
  /// The kernel closes what it had.
  void die() { received_.clear(); }

 private:
  std::vector<Received> received_;
  WorkerProcess process_;
};

class WorkerDeath : public ::testing::Test {
 protected:
  void start(Retain retain, const MethodFacts& facts = {}, std::size_t most_retained = 10) {
    before_ = open_descriptors();
    loop_ = std::make_unique<EventLoop>(epoll_poller());
    dispatcher_ = std::make_unique<Dispatcher>(*loop_, 2, find_dispatch_policy("round-robin"),
                                               facts, retain, most_retained);
    for (std::size_t slot = 0; slot < 2; ++slot) {
      workers_.push_back(std::make_unique<FakeWorker>(slot));
      dispatcher_->worker_started(workers_[slot]->process());
      dispatcher_->worker_ready(workers_[slot]->process());
    }
    TcpPair pair = tcp_pair();
    client_ = std::move(pair.client);
    send_text(client_.get(), "hello");
    EXPECT_TRUE(wait_readable(pair.accepted.get()));
    dispatcher_->add({std::move(pair.accepted), {.id = 1}});
    dispatcher_->flush();
    ASSERT_EQ(victim().handed(), 1U);
  }
  void TearDown() override {
    dispatcher_.reset();
    workers_.clear();
    loop_.reset();
    client_.reset();
    EXPECT_EQ(open_descriptors(), before_) << "descriptors leaked";
  }

  [[nodiscard]] FakeWorker& victim() { return *workers_[0]; }
  [[nodiscard]] FakeWorker& other() { return *workers_[1]; }

  void kill() {
    victim().die();
    dispatcher_->worker_ended(victim().process());
  }
  /// Who has the connection dies, and is replaced; returns whether anybody has it then.
  bool kill_its_worker(bool received) {
    const std::size_t slot = victim().handed() != 0 ? 0 : 1;
    auto& worker = workers_[slot];
    if (received) worker->count_received();
    worker->die();
    dispatcher_->worker_ended(worker->process());
    worker = std::make_unique<FakeWorker>(slot);
    dispatcher_->worker_started(worker->process());
    dispatcher_->worker_ready(worker->process());
    return victim().handed() + other().handed() != 0;
  }
  void expect_rescued(std::string_view unread) {
    kill();
    EXPECT_EQ(dispatcher_->counts().rescued[0], 1U);
    EXPECT_EQ(dispatcher_->counts().redelivered, 1U);
    ASSERT_EQ(other().handed(), 1U);
    EXPECT_EQ(read_text(other().fd(), unread.size()), unread);
    other().write("well");
    EXPECT_EQ(read_text(client_.get(), 4), "well");
  }
  void expect_closed() {
    kill();
    EXPECT_EQ(dispatcher_->counts().rescued[0], 0U);
    EXPECT_EQ(dispatcher_->counts().redelivered, 0U);
    EXPECT_EQ(other().handed(), 0U);
    EXPECT_TRUE(ends(client_.get()));
  }

  /// It is nobody's any more, and is counted once: as lost.
  void expect_lost() {
    EXPECT_EQ(other().handed(), 0U);
    EXPECT_EQ(dispatcher_->counts().lost, 1U);
    EXPECT_EQ(dispatcher_->counts().redelivered, 0U);
    EXPECT_EQ(dispatcher_->in_hand_off(), 0U);
    EXPECT_TRUE(ends(client_.get()));
    expect_balanced();
  }
  /// The other worker has it, with all that its client has sent.
  void expect_passed_on() {
    EXPECT_EQ(dispatcher_->counts().redelivered, 1U);
    EXPECT_EQ(dispatcher_->counts().lost, 0U);
    expect_balanced();
    ASSERT_EQ(other().handed(), 1U);
    EXPECT_EQ(read_text(other().fd(), 5), "hello");
    other().write("well");
    EXPECT_EQ(read_text(client_.get(), 4), "well");
  }
  /// As the report reckons what is on its way to a worker (PoolServer::report()).
  void expect_balanced() {
    const DispatchCounts& counts = dispatcher_->counts();
    const ProcessCounters& worker = victim().counters();
    EXPECT_EQ(counts.handed[0] + worker.handed_back.get(),
              counts.taken_back[0] + worker.received.get() + counts.handed_back[0]);
  }

  std::size_t before_ = 0;
  OwnedFd client_;
  std::unique_ptr<EventLoop> loop_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::unique_ptr<Dispatcher> dispatcher_;
};

TEST_F(WorkerDeath, BeforeItHasReceived) {
  start(Retain::none);
  kill();
  EXPECT_EQ(dispatcher_->counts().taken_back[0], 1U);
  EXPECT_EQ(dispatcher_->counts().rescued[0], 0U);
  EXPECT_EQ(other().handed(), 1U);
}

TEST_F(WorkerDeath, BetweenCountingAndSayingWhich) {
  start(Retain::none);
  victim().count_received(false);
  kill();
  EXPECT_EQ(victim().counters().received.get(), 0U) << "the books would have it twice";
  EXPECT_EQ(dispatcher_->counts().taken_back[0], 1U);
  EXPECT_EQ(other().handed(), 1U);
}

TEST_F(WorkerDeath, ReceivedAndNotTouchedGoesToAnother) {
  for (const Retain retain : {Retain::none, Retain::untouched, Retain::between_requests}) {
    start(retain);
    victim().count_received();
    expect_rescued("hello");
    EXPECT_EQ(victim().counters().received.get(), 1U);
    TearDown();
  }
}

TEST_F(WorkerDeath, WhoHasOutlivedTooManyIsClosed) {
  for (const bool received : {false, true}) {
    start(Retain::between_requests);
    int outlived = 0;
    while (outlived < 100 && kill_its_worker(received)) ++outlived;
    EXPECT_EQ(outlived, 8);
    EXPECT_TRUE(ends(client_.get()));
    EXPECT_EQ(dispatcher_->counts().lost, received ? 0U : 1U) << "received, it is its worker's loss";
    TearDown();
  }
}

TEST_F(WorkerDeath, WhoWasWithItForLongIsNotWhatItDiedOf) {
  start(Retain::between_requests);
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(kill_its_worker(true));
  loop_->after(1'100'000'000, [this] { loop_->stop(); });
  loop_->run();
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(kill_its_worker(true));
}

TEST_F(WorkerDeath, ReadFromIsClosed) {
  for (const Retain retain : {Retain::none, Retain::untouched, Retain::between_requests}) {
    start(retain);
    victim().count_received();
    victim().read(2);
    expect_closed();
    TearDown();
  }
}

TEST_F(WorkerDeath, EchoedGoesOnBetweenRequestsAlone) {
  for (const Retain retain : {Retain::none, Retain::untouched, Retain::between_requests}) {
    start(retain);
    victim().count_received();
    victim().read(5);
    victim().write("hello");
    EXPECT_EQ(read_text(client_.get(), 5), "hello");
    if (retain != Retain::between_requests) {
      expect_closed();
    } else {
      send_text(client_.get(), "again");
      expect_rescued("again");
    }
    TearDown();
  }
}

TEST_F(WorkerDeath, HalfAnEchoIsClosed) {
  start(Retain::between_requests);
  victim().count_received();
  victim().read(5);
  victim().write("hel");
  kill();
  EXPECT_EQ(other().handed(), 0U);
  EXPECT_EQ(read_text(client_.get(), 5), "hel");
  EXPECT_TRUE(ends(client_.get()));
}

TEST_F(WorkerDeath, ServedToItsEndIsNotServedTwice) {
  for (const Retain retain : {Retain::none, Retain::untouched, Retain::between_requests}) {
    start(retain);
    victim().count_received();
    victim().end();  // untouched: say, by its idle timeout
    expect_closed();
    TearDown();
  }
}

TEST_F(WorkerDeath, AfterTheCopyIsClosedNothingIsLeftToRescue) {
  start(Retain::none);
  victim().count_received();
  dispatcher_->collect();
  EXPECT_EQ(victim().counters().released.get(), 1U);
  expect_closed();
}

TEST_F(WorkerDeath, RetainedIsKeptUntilItEnds) {
  start(Retain::between_requests);
  victim().count_received();
  dispatcher_->collect();
  EXPECT_EQ(victim().counters().released.get(), 0U);
  EXPECT_EQ(dispatcher_->retained(), 1U);
  victim().counters().ended_copies[1].set(0);
  victim().counters().ended.set(1);
  dispatcher_->collect();
  EXPECT_EQ(dispatcher_->retained(), 0U);
  EXPECT_EQ(victim().counters().ended_seen.get(), 1U);
  expect_closed();
}

TEST_F(WorkerDeath, WithoutADescriptorToKeepItNothingIsRetained) {
  start(Retain::between_requests, {}, 0);
  victim().count_received();
  dispatcher_->collect();
  EXPECT_EQ(dispatcher_->counts().not_retained, 1U);
  EXPECT_EQ(dispatcher_->retained(), 0U);
  dispatcher_->add({tcp_pair().accepted, {.id = 2}});  // its copy gets a number of its own
  dispatcher_->flush();
  EXPECT_EQ(dispatcher_->in_hand_off(), 1U);
  kill();
  EXPECT_EQ(dispatcher_->counts().rescued[0], 0U);
  EXPECT_EQ(dispatcher_->in_hand_off(), 1U);
  EXPECT_TRUE(ends(client_.get()));
}

TEST_F(WorkerDeath, ACopyThatIsNoConnectionAnyMoreIsNotHandedOver) {
  start(Retain::none, {.consumes_connection = true});
  victim().count_received();
  expect_closed();
}

TEST_F(WorkerDeath, WhatASuccessorHasPulledBeforeItsFirstWordIsNotHandedOverAgain) {
  for (const Retain retain : {Retain::none, Retain::between_requests}) {
    start(retain, {.shared_channel = true});
    dispatcher_->worker_ended(other().process());
    FakeWorker successor(1);
    dispatcher_->worker_started(successor.process());
    ProcessCounters& counters = successor.counters();
    counters.receive_steps.add();  // it has pulled what the first worker's sink has sent
    dispatcher_->collect();
    EXPECT_EQ(dispatcher_->counts().redelivered, 0U);
    counters.received.add();
    counters.consumed.add();  // of copy 0, the only one
    counters.receive_steps.add();
    dispatcher_->collect();
    EXPECT_EQ(dispatcher_->counts().redelivered, 0U);
    EXPECT_EQ(dispatcher_->in_hand_off(), 0U);
    EXPECT_EQ(dispatcher_->retained(), retain == Retain::none ? 0U : 1U);
    dispatcher_->worker_ended(successor.process());
    TearDown();
  }
}

TEST_F(WorkerDeath, ARefusalThatIsHeardAfterItsEndIsOne) {
  for (const Retain retain : {Retain::none, Retain::untouched, Retain::between_requests}) {
    start(retain);
    victim().refuse();
    kill();
    EXPECT_EQ(dispatcher_->counts().taken_back[0], 1U);
    expect_passed_on();
    TearDown();
  }
}

TEST_F(WorkerDeath, ARefusalThatIsHeardAfterTheWorkersWereToldToEndIsOne) {
  start(Retain::between_requests);
  dispatcher_->release_retained();
  victim().refuse();
  dispatcher_->collect();
  expect_passed_on();
}

TEST_F(WorkerDeath, ARefusalThatIsHeardAfterAllWasGivenUpClosesIt) {
  start(Retain::none);
  dispatcher_->abandon();
  victim().refuse();
  dispatcher_->collect();
  EXPECT_EQ(dispatcher_->counts().abandoned, 1U);
  EXPECT_EQ(other().handed(), 0U);
  EXPECT_EQ(dispatcher_->in_hand_off(), 0U);
  EXPECT_TRUE(ends(client_.get()));
  expect_balanced();
}

/// A cheat: what it says it has not touched it has read from. Nobody else could answer the client.
TEST_F(WorkerDeath, RefusedAfterItWasReadFromIsClosed) {
  for (const bool dies : {false, true}) {
    for (const Retain retain : {Retain::none, Retain::untouched, Retain::between_requests}) {
      start(retain);
      victim().read(2);
      victim().refuse();
      dies ? kill() : dispatcher_->collect();
      expect_lost();
      TearDown();
    }
  }
}

TEST_F(WorkerDeath, ReadFromAndNotCountedIsClosed) {
  for (const Retain retain : {Retain::none, Retain::untouched, Retain::between_requests}) {
    start(retain);
    victim().read(2);
    kill();
    expect_lost();
    TearDown();
  }
}

TEST_F(WorkerDeath, GivenUpInTheMiddleOfARequestIsClosed) {
  start(Retain::between_requests);
  victim().count_received();
  dispatcher_->collect();
  victim().read(2);
  victim().hand_back();
  dispatcher_->collect();
  EXPECT_EQ(dispatcher_->counts().handed_back[0], 1U);
  EXPECT_EQ(dispatcher_->retained(), 0U);
  expect_lost();
}

TEST_F(WorkerDeath, GivenUpBetweenRequestsGoesOn) {
  start(Retain::between_requests);
  victim().count_received();
  dispatcher_->collect();
  victim().hand_back();
  dispatcher_->collect();
  EXPECT_EQ(dispatcher_->counts().lost, 0U);
  ASSERT_EQ(other().handed(), 1U);
  EXPECT_EQ(read_text(other().fd(), 5), "hello");
  expect_balanced();
}

TEST_F(WorkerDeath, CountsThatCannotBeTrueAreNotInTheBooks) {
  for (const bool served : {false, true}) {
    start(Retain::none);
    victim().count_received();
    if (served) victim().end();
    ProcessCounters& counters = victim().counters();
    for (Counter* lie : {&counters.finished, &counters.finished_redelivered, &counters.accepted,
                         &counters.shed, &counters.adopted, &counters.handed_back})
      lie->set(~std::uint64_t{0} - 3);
    kill();
    EXPECT_EQ(dispatcher_->counts().rescued[0], served ? 0U : 1U);
    ProcessTotals totals;
    totals.add(counters, false);
    EXPECT_EQ(totals.received, 1U);
    EXPECT_EQ(totals.finished, served ? 1U : 0U) << "one that is rescued has not been served";
    EXPECT_EQ(totals.lost, served ? 0U : 1U) << "of which it is rescued";
    EXPECT_EQ(totals.accepted + totals.shed + totals.adopted + totals.handed_back, 0U);
    expect_balanced();
    TearDown();
  }
}

TEST_F(WorkerDeath, WhileGivingUpNothingIsHandedOver) {
  start(Retain::none);
  victim().count_received();
  dispatcher_->abandon();
  expect_closed();
}

/// The figures come from several system calls, and the client sends on and acknowledges meanwhile.
TEST(StreamProgress, IsThatOfOneMoment) {
  const TcpPair pair = tcp_pair();
  const int on = 1;
  ::setsockopt(pair.client.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  std::atomic<bool> done = false;
  std::atomic<int> looks = 0;
  std::thread client([&] {
    for (int i = 0; i < 20'000; ++i) {
      // Not all of it while the other thread stands still: a hundred for each look that has begun.
      if (i % 100 == 0) looks.wait(i / 100);
      send_text(pair.client.get(), "x");
    }
    done = true;
  });
  std::uint64_t wrong = 0;
  while (!done) {
    ++looks;
    looks.notify_one();
    const StreamProgress progress = stream_progress(pair.accepted.get());
    wrong += progress.read != 0 || progress.written != 0 || !progress.open_for_writing ? 1 : 0;
  }
  client.join();
  EXPECT_GT(looks.load(), 100);
  EXPECT_EQ(wrong, 0U) << "nobody has read a byte";
}

}  // namespace
}  // namespace c10k::testing
