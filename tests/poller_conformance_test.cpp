// What every readiness loop must do, over the whole registry.
#include <fcntl.h>

#include <array>
#include <map>

#include "strategies/event_loop.hpp"
#include "tests/support.hpp"

namespace c10k::testing {
namespace {

class Pollers : public ::testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] const PollerEntry& entry() const { return find_poller(GetParam()); }
  std::unique_ptr<Poller> poller_ = entry().make();

  static std::map<int, Readiness> by_descriptor(std::span<const Event> events) {
    std::map<int, Readiness> result;
    for (const Event& event : events) result[event.fd] = event.ready;
    return result;
  }
};

std::vector<std::string> poller_names() {
  std::vector<std::string> names;
  for (const PollerEntry& entry : pollers()) names.emplace_back(entry.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Registry, Pollers, ::testing::ValuesIn(poller_names()),
                         [](const auto& instance) { return instance.param; });

TEST_P(Pollers, ReportsWhatIsReadyAndNothingElse) {
  auto [left, right] = unix_pair(SOCK_STREAM);
  auto [idle, other] = unix_pair(SOCK_STREAM);
  poller_->update(left.get(), {.read = true});
  poller_->update(idle.get(), {.read = true});
  EXPECT_TRUE(poller_->wait(0).empty());
  send_text(right.get(), "x");
  const auto ready = by_descriptor(poller_->wait(patience_ns));
  ASSERT_EQ(ready.size(), 1U);
  EXPECT_TRUE(ready.at(left.get()).read);
  EXPECT_FALSE(ready.at(left.get()).write);
}

TEST_P(Pollers, ChangingTheInterestReportsWhatIsReadyAlready) {
  auto [left, right] = unix_pair(SOCK_STREAM);
  send_text(right.get(), "x");
  poller_->update(left.get(), {.write = true});
  EXPECT_TRUE(by_descriptor(poller_->wait(patience_ns)).at(left.get()).write);
  poller_->update(left.get(), {.read = true});
  EXPECT_TRUE(by_descriptor(poller_->wait(patience_ns)).at(left.get()).read);
}

TEST_P(Pollers, LevelIsReportedAgainUntilItIsGone) {
  auto [left, right] = unix_pair(SOCK_STREAM);
  poller_->update(left.get(), {.read = true, .level = true});
  send_text(right.get(), "x");
  EXPECT_EQ(poller_->wait(patience_ns).size(), 1U);
  EXPECT_EQ(poller_->wait(0).size(), 1U);
  EXPECT_EQ(read_text(left.get(), 1), "x");
  EXPECT_TRUE(poller_->wait(0).empty());
}

TEST_P(Pollers, ChangeIsReportedOnceIfTheEntrySaysSo) {
  auto [left, right] = unix_pair(SOCK_STREAM);
  poller_->update(left.get(), {.read = true});
  send_text(right.get(), "x");
  EXPECT_EQ(poller_->wait(patience_ns).size(), 1U);
  EXPECT_EQ(poller_->wait(0).size(), entry().edge_triggered ? 0U : 1U);
}

TEST_P(Pollers, NoInterestIsSilent) {
  auto [left, right] = unix_pair(SOCK_STREAM);
  poller_->update(left.get(), {.read = true, .level = true});
  send_text(right.get(), "x");
  poller_->update(left.get(), {.level = true});
  EXPECT_TRUE(poller_->wait(0).empty());
  poller_->update(left.get(), {.read = true, .level = true});
  EXPECT_EQ(poller_->wait(patience_ns).size(), 1U);
}

TEST_P(Pollers, RemovedIsSilentEvenIfAnotherProcessHoldsTheFile) {
  auto [left, right] = unix_pair(SOCK_STREAM);
  const OwnedFd copy = duplicate(left.get());  // as another process's would be
  poller_->update(left.get(), {.read = true, .level = true});
  poller_->remove(left.get(), Removal::still_open);
  left.reset();
  send_text(right.get(), "x");
  EXPECT_TRUE(poller_->wait(0).empty());
}

TEST_P(Pollers, EventsOfAnEarlierRegistrationAreNotReported) {
  // The number is reused while the old open file lives on elsewhere and becomes ready: an epoll
  // ghost.
  auto [left, right] = unix_pair(SOCK_STREAM);
  const int number = left.get();
  const OwnedFd copy = duplicate(number);
  poller_->update(number, {.read = true, .level = true});
  poller_->remove(number, Removal::closing);  // wrong, as there is a copy; the poller must bear it
  left.reset();
  auto [fresh, fresh_peer] = unix_pair(SOCK_STREAM);
  if (fresh.get() != number) {
    fresh.reset(checked([&] { return ::fcntl(fresh.get(), F_DUPFD_CLOEXEC, number); }, "fcntl"));
  }
  ASSERT_EQ(fresh.get(), number);
  poller_->update(number, {.read = true, .level = true});
  send_text(right.get(), "x");
  EXPECT_TRUE(poller_->wait(0).empty());
  send_text(fresh_peer.get(), "y");
  EXPECT_EQ(poller_->wait(patience_ns).size(), 1U);
}

TEST_P(Pollers, HasNoLimitOf1024) {
  raise_descriptor_limit();
  constexpr std::size_t count = 1500;
  std::vector<std::pair<OwnedFd, OwnedFd>> pairs;
  for (std::size_t i = 0; i < count; ++i) {
    pairs.push_back(unix_pair(SOCK_STREAM));
    poller_->update(pairs.back().first.get(), {.read = true, .level = true});
  }
  ASSERT_GT(pairs.back().first.get(), 2048);
  EXPECT_TRUE(poller_->wait(0).empty());
  for (const std::size_t i : {std::size_t{0}, count / 2, count - 1})
    send_text(pairs[i].second.get(), "x");
  const auto ready = by_descriptor(poller_->wait(patience_ns));
  EXPECT_EQ(ready.size(), 3U);
  for (const std::size_t i : {std::size_t{0}, count / 2, count - 1})
    EXPECT_TRUE(ready.contains(pairs[i].first.get()));
  for (auto& [watched, peer] : pairs) poller_->remove(watched.get(), Removal::closing);
}

TEST_P(Pollers, PeersEndIsReadable) {
  TcpPair pair = tcp_pair();
  poller_->update(pair.accepted.get(), {.read = true});
  pair.client.reset();
  EXPECT_TRUE(by_descriptor(poller_->wait(patience_ns)).at(pair.accepted.get()).read);
}

TEST_P(Pollers, ExclusiveInterestCanBeSetAndPaused) {
  const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {});
  const Interest waiting{.read = true, .level = true, .exclusive = entry().exclusive};
  const Interest paused{.level = true, .exclusive = entry().exclusive};
  poller_->update(listener.get(), waiting);
  const OwnedFd client = connect_to(SocketAddress::local(listener.get()));
  EXPECT_EQ(poller_->wait(patience_ns).size(), 1U);
  poller_->update(listener.get(), paused);
  EXPECT_TRUE(poller_->wait(0).empty());
  poller_->update(listener.get(), waiting);
  EXPECT_EQ(poller_->wait(patience_ns).size(), 1U);
  poller_->remove(listener.get(), Removal::still_open);
}

// ---- the loop on top ----------------------------------------------------------------------------

class Recorder : public EventHandler {
 public:
  explicit Recorder(std::function<void()> action) : action_(std::move(action)) {}
  void on_ready(Readiness) override { action_(); }

 private:
  std::function<void()> action_;
};

TEST_P(Pollers, LoopCallsAgainWhoStoppedEarly) {
  EventLoop loop(entry());
  auto [left, right] = unix_pair(SOCK_STREAM);
  send_text(right.get(), "abc");
  std::string read;
  Recorder handler([&] {
    read += read_text(left.get(), 1);  // one byte a call
    if (read.size() == 3) return loop.stop();
    loop.call_again(left.get());
  });
  loop.watch(left.get(), {.read = true}, handler);
  loop.after(patience_ns, [&] { loop.stop(); });
  loop.run();
  EXPECT_EQ(read, "abc");
}

TEST_P(Pollers, LoopDropsEventsOfAHandlerThatWasForgottenInTheSameTurn) {
  EventLoop loop(entry());
  auto [a, a_peer] = unix_pair(SOCK_STREAM);
  auto [b, b_peer] = unix_pair(SOCK_STREAM);
  int calls = 0;
  std::unique_ptr<Recorder> first;
  std::unique_ptr<Recorder> second;
  // Whoever is called first forgets the other, whose event is in the same batch.
  const auto forget_other = [&](int own, int other) {
    return [&, own, other] {
      ++calls;
      EXPECT_EQ(read_text(own, 1), "x");
      loop.forget(other, Removal::still_open);
      loop.after(0, [&] { loop.stop(); });
    };
  };
  first = std::make_unique<Recorder>(forget_other(a.get(), b.get()));
  second = std::make_unique<Recorder>(forget_other(b.get(), a.get()));
  loop.watch(a.get(), {.read = true}, *first);
  loop.watch(b.get(), {.read = true}, *second);
  send_text(a_peer.get(), "x");
  send_text(b_peer.get(), "x");
  loop.run();
  EXPECT_EQ(calls, 1);
}

TEST_P(Pollers, LoopRunsTimersInOrderAndNotWhenCancelled) {
  EventLoop loop(entry());
  std::string order;
  loop.after(50'000'000, [&] {  // far from 'a', which counts from a later moment
    order += 'b';
    loop.stop();
  });
  loop.after(1'000'000, [&] { order += 'a'; });
  const auto cancelled = loop.after(500'000, [&] { order += 'x'; });
  loop.cancel(cancelled);
  loop.run();
  EXPECT_EQ(order, "ab");
}

}  // namespace
}  // namespace c10k::testing
