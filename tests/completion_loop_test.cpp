// The completion loop, its echo and its accepting: what only completions can get wrong.
#include "strategies/completion_loop.hpp"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>

#include "tests/support.hpp"
#include "workers/completion_echo.hpp"
#include "workers/completion_intake.hpp"

namespace c10k::testing {
namespace {

class CompletionLoops : public ::testing::Test {
 protected:
  void SetUp() override {
    const Support support = probe_completion_loop();
    if (!support.available) GTEST_SKIP() << support.reason;
  }

  static void turn(Loop& loop, int times) {
    run_until(loop, [&] { return times-- == 0; });
  }

  /// Turns until `done`, or the patience ends.
  static void run_until(Loop& loop, const std::function<bool()>& done) {
    const auto timer = loop.after(std::int64_t{patience_ms} * 1'000'000, [&] {
      ADD_FAILURE() << "it does not happen";
      loop.stop();
    });
    // A timer of its own for each turn, so that it also turns when nothing completes.
    const std::function<void()> look = [&] {
      if (done()) return loop.stop();
      loop.after(100'000, look);
    };
    loop.after(0, look);
    loop.run();
    loop.cancel(timer);
  }
};

/// A few turns more, for what has been begun.
constexpr int few = 5;

class Recorder : public Completer, public EventHandler {
 public:
  void on_completion(unsigned operation, int result, unsigned flags) override {
    results.emplace_back(operation, result);
    last_flags = flags;
  }
  void on_ready(Readiness) override {
    ++calls;
    if (action) action();
  }
  std::vector<std::pair<unsigned, int>> results;
  unsigned last_flags = 0;
  int calls = 0;
  std::function<void()> action;
};

using Pairs = std::vector<std::pair<OwnedFd, OwnedFd>>;

Pairs many_pairs(std::size_t count) {
  raise_descriptor_limit();
  Pairs pairs;
  for (std::size_t i = 0; i < count; ++i) pairs.push_back(unix_pair(SOCK_STREAM));
  return pairs;
}

TEST_F(CompletionLoops, TellsReadinessAsALevelUntilItIsGone) {
  CompletionLoop loop;
  auto [left, right] = unix_pair(SOCK_STREAM);
  send_text(right.get(), "abc");
  Recorder handler;
  std::string read;
  handler.action = [&, fd = left.get()] { read += read_text(fd, 1); };  // one byte a call
  loop.watch(left.get(), {.read = true, .level = true}, handler);
  run_until(loop, [&] { return read.size() == 3; });
  const int calls = handler.calls;
  turn(loop, few);
  EXPECT_EQ(handler.calls, calls);
  EXPECT_EQ(read, "abc");
}

TEST_F(CompletionLoops, ChangingTheInterestPausesAndResumes) {
  CompletionLoop loop;
  auto [left, right] = unix_pair(SOCK_STREAM);
  Recorder handler;
  loop.watch(left.get(), {.read = true, .level = true}, handler);
  turn(loop, few);  // the poll is under way
  loop.change(left.get(), {.level = true});
  send_text(right.get(), "x");
  turn(loop, few);
  EXPECT_EQ(handler.calls, 0);
  handler.action = [&, fd = left.get()] { EXPECT_EQ(read_text(fd, 1), "x"); };
  loop.change(left.get(), {.read = true, .level = true});
  run_until(loop, [&] { return handler.calls != 0; });
  // There and back within a turn: the poll that is withdrawn must not take the new one with it.
  loop.change(left.get(), {.level = true});
  loop.change(left.get(), {.write = true});
  loop.change(left.get(), {.read = true, .level = true});
  send_text(right.get(), "x");
  run_until(loop, [&] { return handler.calls == 2; });
}

TEST_F(CompletionLoops, ForgettingReleasesTheOpenFile) {
  CompletionLoop loop;
  auto [left, right] = unix_pair(SOCK_STREAM);
  Recorder handler;
  loop.watch(left.get(), {.read = true, .level = true}, handler);
  turn(loop, few);
  loop.forget(left.get(), Removal::closing);
  left.reset();
  EXPECT_TRUE(ends(right.get())) << "the poll still holds it";
  turn(loop, few);
  EXPECT_EQ(handler.calls, 0);
}

TEST_F(CompletionLoops, ForgottenInTheSameTurnIsNotCalled) {
  CompletionLoop loop;
  auto [a, a_peer] = unix_pair(SOCK_STREAM);
  auto [b, b_peer] = unix_pair(SOCK_STREAM);
  Recorder first;
  Recorder second;
  first.action = [&, fd = b.get()] { loop.forget(fd, Removal::still_open); };
  second.action = [&, fd = a.get()] { loop.forget(fd, Removal::still_open); };
  loop.watch(a.get(), {.read = true, .level = true}, first);
  loop.watch(b.get(), {.read = true, .level = true}, second);
  send_text(a_peer.get(), "x");
  send_text(b_peer.get(), "x");
  loop.after(0, [&] { loop.stop(); });
  loop.run();
  EXPECT_EQ(first.calls + second.calls, 1);
}

TEST_F(CompletionLoops, RunsTimersInOrderAndNotWhenCancelled) {
  CompletionLoop loop;
  std::string order;
  loop.after(50'000'000, [&] {  // far from 'a', which counts from a later moment
    order += 'b';
    loop.stop();
  });
  loop.after(1'000'000, [&] { order += 'a'; });
  loop.cancel(loop.after(500'000, [&] { order += 'x'; }));
  loop.run();
  EXPECT_EQ(order, "ab");
}

TEST_F(CompletionLoops, LosesNoCompletionWhenTheirQueueOverflows) {
  constexpr std::size_t count = 300;
  CompletionLoop loop(4, 8);
  const Pairs pairs = many_pairs(count);
  std::vector<Recorder> each(count);
  std::vector<char> bytes(count);
  for (std::size_t i = 0; i < count; ++i) {
    loop.begin(each[i], 1, [&](io_uring_sqe* sqe) {
      ::io_uring_prep_recv(sqe, pairs[i].first.get(), &bytes[i], 1, 0);
    });
  }
  loop.after(0, [&] { loop.stop(); });
  loop.run();  // all of them wait now
  for (const auto& pair : pairs) send_text(pair.second.get(), "x");
  run_until(loop, [&] {
    return std::all_of(each.begin(), each.end(), [](const auto& one) { return !one.in_flight(); });
  });
  for (const Recorder& one : each)
    EXPECT_EQ(one.results, (std::vector<std::pair<unsigned, int>>{{1, 1}}));
}

TEST_F(CompletionLoops, AnOperationThatIsWithdrawnCompletesOnce) {
  CompletionLoop loop;
  auto [left, right] = unix_pair(SOCK_STREAM);
  Recorder recorder;
  char byte = 0;
  loop.begin(recorder, 3,
             [&](io_uring_sqe* sqe) { ::io_uring_prep_recv(sqe, left.get(), &byte, 1, 0); });
  turn(loop, few);
  EXPECT_EQ(recorder.in_flight(), 1U);
  loop.withdraw(recorder, 3);
  loop.withdraw(recorder, 3);
  loop.withdraw(recorder, 4);  // there is none
  turn(loop, few);
  EXPECT_EQ(recorder.results, (std::vector<std::pair<unsigned, int>>{{3, -ECANCELED}}));
  EXPECT_EQ(recorder.in_flight(), 0U);
}

TEST_F(CompletionLoops, ClosesBehindWhatWasBegunOnTheDescriptor) {
  CompletionLoop loop;
  auto [left, right] = unix_pair(SOCK_STREAM);
  Recorder recorder;
  const int number = left.get();
  loop.begin(recorder, 0, [&](io_uring_sqe* sqe) {
    ::io_uring_prep_send(sqe, number, "last", 4, MSG_NOSIGNAL);
  });
  loop.close(std::move(left));
  EXPECT_NE(::fcntl(number, F_GETFD), -1) << "free while an entry still means this file";
  run_until(loop, [&] { return recorder.in_flight() == 0; });
  EXPECT_EQ(read_text(right.get(), 5), "last");
  EXPECT_TRUE(ends(right.get()));
}

// ---- the echo -----------------------------------------------------------------------------------

class CompletionEchoes : public CompletionLoops {
 protected:
  CompletionLoop loop_;
  std::unique_ptr<ProcessCounters> counters_ = std::make_unique<ProcessCounters>();

  static void serve(CompletionEcho& echo, OwnedFd fd) {
    Received received;
    received.fd = std::move(fd);
    echo.serve(std::move(received), 0);
  }
};

TEST_F(CompletionEchoes, WhoFindsNoBufferGoesOnLater) {
  constexpr std::size_t count = 100;
  CompletionEcho echo(loop_, {}, *counters_, 2);
  Pairs pairs = many_pairs(count);
  for (int round = 0; round < 3; ++round) {
    for (const auto& pair : pairs) send_text(pair.second.get(), "0123456789");
    if (round == 0) {
      for (auto& pair : pairs) serve(echo, std::move(pair.first));
    }
    const auto expected =
        static_cast<std::uint64_t>(10 * count) * (static_cast<unsigned>(round) + 1);
    run_until(loop_, [&] { return counters_->bytes.get() == expected; });
    turn(loop_, few);  // sent, too
    for (const auto& pair : pairs) EXPECT_EQ(read_text(pair.second.get(), 10), "0123456789");
  }
  EXPECT_GT(echo.starved(), 0U);
  pairs.clear();
  run_until(loop_, [&] { return echo.slots_in_use() == 0; });
  EXPECT_EQ(counters_->finished.get(), count);
}

TEST_F(CompletionEchoes, ASlotIsNotUsedAgainBeforeItsLastCompletion) {
  CompletionEcho echo(loop_, {}, *counters_);
  auto [left, right] = unix_pair(SOCK_STREAM);
  serve(echo, std::move(left));
  send_text(right.get(), "x");
  run_until(loop_, [&] { return counters_->echoes.get() == 1; });
  turn(loop_, few);
  EXPECT_EQ(read_text(right.get(), 1), "x");
  echo.close_all();  // with a receive under way
  EXPECT_TRUE(ends(right.get())) << "the client sees it at once";
  EXPECT_EQ(echo.active(), 0U);
  EXPECT_EQ(echo.slots_in_use(), 1U);
  auto [next, next_peer] = unix_pair(SOCK_STREAM);
  serve(echo, std::move(next));
  EXPECT_EQ(echo.slots_in_use(), 2U) << "it has another slot";
  send_text(next_peer.get(), "y");
  run_until(loop_, [&] { return echo.slots_in_use() == 1 && counters_->echoes.get() == 2; });
  turn(loop_, few);
  EXPECT_EQ(read_text(next_peer.get(), 1), "y");
  EXPECT_EQ(counters_->finished.get(), 1U);
}

TEST_F(CompletionEchoes, NumbersReusedInTheSameTurnDoNotMixConnections) {
  // Each connection ends while others begin, over and over: an echo must never reach another client.
  CompletionEcho echo(loop_, {}, *counters_, 4);
  std::mt19937 random(7);
  std::map<int, std::pair<OwnedFd, std::string>> clients;
  constexpr int count = 2000;
  int served = 0;
  std::function<void()> step = [&] {
    for (auto entry = clients.begin(); entry != clients.end();) {
      auto& [fd, sent] = entry->second;
      std::string got(sent.size(), '\0');
      const ssize_t n = ::recv(fd.get(), got.data(), got.size(), MSG_DONTWAIT | MSG_PEEK);
      if (n < static_cast<ssize_t>(sent.size()) && random() % 64 != 0) {
        ++entry;
        continue;
      }
      if (n > 0) {
        EXPECT_EQ(got.substr(0, static_cast<std::size_t>(n)),
                  sent.substr(0, static_cast<std::size_t>(n)));
      }
      entry = clients.erase(entry);  // some before their echo has come
    }
    while (clients.size() < 40 && served < count) {
      auto [left, right] = unix_pair(SOCK_STREAM);
      const std::string text = std::to_string(served++) + std::string(random() % 9000, '.');
      send_text(right.get(), text);
      const int key = served;
      clients.emplace(key, std::make_pair(std::move(right), text));
      serve(echo, std::move(left));
    }
    if (served == count && clients.empty() && echo.active() == 0) loop_.stop();
  };
  loop_.at_end_of_turn(step);
  loop_.after(std::int64_t{patience_ms} * 1'000'000, [&] {
    ADD_FAILURE() << clients.size() << " clients wait";
    loop_.stop();
  });
  std::function<void()> again = [&] { loop_.after(50'000, again); };
  again();
  loop_.run();
  EXPECT_EQ(counters_->finished.get(), static_cast<unsigned>(count));
}

TEST_F(CompletionEchoes, ASlowReaderGetsEveryByteInOrder) {
  CompletionEcho echo(loop_, {}, *counters_);
  TcpPair pair = tcp_pair();
  serve(echo, std::move(pair.accepted));
  std::mt19937 random(11);
  std::string sent;
  std::string got;
  constexpr std::size_t total = 20'000'000;
  bool stalled = false;
  int still = 0;
  std::uint64_t moved_before = 0;
  bool half_closed = false;
  bool ended = false;
  loop_.at_end_of_turn([&] {
    std::string chunk(1 + random() % 20'000, static_cast<char>('a' + random() % 26));
    if (sent.size() < total) {
      const ssize_t n = ::send(pair.client.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
      if (n > 0) sent.append(chunk, 0, static_cast<std::size_t>(n));
    } else if (!std::exchange(half_closed, true)) {
      ::shutdown(pair.client.get(), SHUT_WR);
    }
    // First not at all, until the server takes no more.
    const std::uint64_t moved = sent.size() + counters_->bytes.get();
    still = moved == moved_before ? still + 1 : 0;
    moved_before = moved;
    stalled = stalled || still == 20;
    if (!stalled) return;
    char buffer[50'000];
    const ssize_t n = ::recv(pair.client.get(), buffer, 1 + random() % sizeof buffer, MSG_DONTWAIT);
    if (n > 0) got.append(buffer, static_cast<std::size_t>(n));
    ended = ended || n == 0;
  });
  run_until(loop_, [&] { return ended; });
  EXPECT_EQ(got.size(), sent.size());
  EXPECT_TRUE(got == sent) << "bytes in another order";
  EXPECT_TRUE(stalled);
  run_until(loop_, [&] { return echo.slots_in_use() == 0; });
}

// ---- accepting ----------------------------------------------------------------------------------

TEST_F(CompletionLoops, WhatHasBeenAcceptedIsDeliveredAlsoAfterTheStop) {
  CompletionLoop loop(4, 8);  // and more accepted at once than there is room for completions
  const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {});
  ListenerSource source(duplicate(listener.get()), true, 1, Sharing::none);
  ASSERT_NE(source.sole_reader(), nullptr);
  std::size_t received = 0;
  std::array<Received, receive_room> batch;
  CompletionIntake* intake = nullptr;
  CompletionIntake the_intake(loop, source, *source.sole_reader(), [&] {
    const ReceiveResult result = intake->receive(batch);
    for (std::size_t i = 0; i < result.received; ++i) batch[i].fd.reset();
    received += result.received;
  });
  intake = &the_intake;
  const SocketAddress address = SocketAddress::local(listener.get());
  std::vector<OwnedFd> clients;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 100; ++i) clients.push_back(connect_to(address));
    run_until(loop, [&] { return received == clients.size(); });
    EXPECT_EQ(accept_queue(listener.get()).length, 0U);
  }
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(the_intake.in_flight(), 1U) << "an accept of many shots is under way";
    clients.push_back(connect_to(address));
    run_until(loop, [&] { return received == clients.size(); });
  }
  // One more is accepted by whoever comes first, or stays in the queue; it must not be lost in between.
  clients.push_back(connect_to(address));
  the_intake.stop();
  run_until(loop, [&] { return the_intake.ended(); });
  EXPECT_EQ(received + accept_queue(listener.get()).length, clients.size());
}

TEST_F(CompletionLoops, AtTheLimitOfDescriptorsItShedsAndDoesNotSpin) {
  CompletionLoop loop;
  const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {});
  ListenerSource source(duplicate(listener.get()), true, 1, Sharing::none);
  const SocketAddress address = SocketAddress::local(listener.get());
  std::size_t received = 0;
  std::size_t shed = 0;
  int calls = 0;
  std::array<Received, receive_room> batch;
  std::vector<Received> kept;
  CompletionIntake* intake = nullptr;
  CompletionIntake the_intake(loop, source, *source.sole_reader(), [&] {
    ++calls;
    const ReceiveResult result = intake->receive(batch);
    for (std::size_t i = 0; i < result.received; ++i) kept.push_back(std::move(batch[i]));
    received += result.received;
    shed += result.shed;
  });
  intake = &the_intake;
  std::vector<OwnedFd> clients;
  clients.reserve(32);
  for (int i = 0; i < 10; ++i) clients.push_back(connect_to(address));
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  // The limit is that of the time when an accept of many shots is begun (io_accept_prep), so first the
  // limit. Four numbers are left.
  const auto next = static_cast<rlim_t>(duplicate(listener.get()).get());
  const rlimit tight{next + 4, before.rlim_max};
  ::setrlimit(RLIMIT_NOFILE, &tight);
  run_until(loop, [&] { return received + shed == 10; });
  turn(loop, 50);
  EXPECT_EQ(received, 4U);
  EXPECT_EQ(shed, 6U);
  EXPECT_LE(calls, 30) << "called again and again with nothing to do";
  // And it goes on as soon as it can.
  ::setrlimit(RLIMIT_NOFILE, &before);
  for (int i = 0; i < 10; ++i) clients.push_back(connect_to(address));
  run_until(loop, [&] { return received == 14; });
  the_intake.stop();
  run_until(loop, [&] { return the_intake.ended(); });
}

}  // namespace
}  // namespace c10k::testing
