// What every hand-off method must do, over the whole registry: a new method is tested by existing.
#include <fcntl.h>
#include <sys/resource.h>

#include <chrono>
#include <random>

#include "ipc/registry.hpp"
#include "tests/support.hpp"

namespace c10k::testing {
namespace {

using Clock = std::chrono::steady_clock;

class HandoffMethods : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    configured_ = configure_handoff_method(GetParam());
    const Support support = configured_.method->probe();
    if (!support.available)
      GTEST_SKIP() << GetParam() << " is unsupported, because " << support.reason;
    before_ = open_descriptors();
    listener_ = listen_tcp(SocketAddress::loopback_source(1),
                           {.backlog = 512, .reuse_port = configured_.entry->listener_per_worker});
  }

  void TearDown() override {
    if (IsSkipped()) return;
    listener_.reset();
    configured_ = {};
    EXPECT_EQ(open_descriptors(), before_) << "descriptors leaked";
  }

  [[nodiscard]] LinkRequest request() const {
    LinkRequest request;
    request.listener = listener_.get();
    request.listen_options.reuse_port = configured_.entry->listener_per_worker;
    return request;
  }
  [[nodiscard]] const ConfiguredMethod& method() const { return configured_; }
  [[nodiscard]] bool has_sink() const { return !configured_.entry->kernel_dispatches; }

  /// A connection on its way to the worker: handed over, or made to its listener.
  OwnedFd deliver(LinkedWorker& worker, std::uint64_t id, std::string_view first_bytes) {
    if (!worker.has_sink()) {
      OwnedFd client = connect_to(SocketAddress::local(listener_.get()));
      send_text(client.get(), first_bytes);
      return client;
    }
    TcpPair pair = tcp_pair();
    send_text(pair.client.get(), first_bytes);
    const Handover handover{pair.accepted.get(), {.id = id, .accepted_ns = monotonic_ns()}};
    EXPECT_EQ(worker.sink().send({&handover, 1}).taken, 1U);
    worker.hear();  // received: the copy may be closed
    return std::move(pair.client);
  }

  /// Offers all of `batch`, waiting for room as often as it takes; false when the channel closed.
  static bool send_all(LinkedWorker& worker, std::span<const Handover> batch) {
    const auto deadline = Clock::now() + std::chrono::milliseconds(patience_ms);
    while (!batch.empty() && Clock::now() < deadline) {
      const SendResult result = worker.sink().send(batch);
      batch = batch.subspan(result.taken);
      if (result.state == Channel::closed) return false;
      if (result.state == Channel::more) continue;
      (void)worker.wait_attending(worker.sink().writable_fd(), 1, POLLOUT);
    }
    return batch.empty();
  }

  /// Connections to hand over. One descriptor serves for all, unless its connection leaves it.
  class Supply {
   public:
    explicit Supply(const ConfiguredMethod& method)
        : one_each_(method.entry->consumes_connection) {}
    [[nodiscard]] int next() {
      if (pairs_.empty() || one_each_) pairs_.push_back(tcp_pair());
      return pairs_.back().accepted.get();
    }

   private:
    bool one_each_;
    std::vector<TcpPair> pairs_;
  };

  /// `count` connections with ids of their own.
  static std::vector<Handover> numbered(Supply& supply, std::size_t count) {
    std::vector<Handover> batch(count);
    for (std::size_t i = 0; i < count; ++i) batch[i] = {supply.next(), {.id = i}};
    return batch;
  }

  ConfiguredMethod configured_;
  OwnedFd listener_;
  std::size_t before_ = 0;
};

/// Methods without a sink: the kernel dispatches, and nothing is sent.
class HandoffSinks : public HandoffMethods {};
/// Where all share one table, the limit of descriptors is the acceptor's.
class HandoffToOwnTable : public HandoffMethods {};

std::vector<std::string> method_names(bool (*wanted)(const MethodEntry&)) {
  std::vector<std::string> names;
  for (const MethodEntry& entry : handoff_methods()) {
    if (!wanted(entry)) continue;
    names.emplace_back(entry.name);
    for (const std::string_view variant : entry.variants)
      names.push_back(fmt::format("{}:{}", entry.name, variant));
  }
  return names;
}

std::string readable(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); },
      '_');
  return name;
}

bool any(const MethodEntry&) {
  return true;
}
bool with_sink(const MethodEntry& entry) {
  return !entry.kernel_dispatches;
}
bool to_own_table(const MethodEntry& entry) {
  return with_sink(entry) && !entry.shared_table;
}

INSTANTIATE_TEST_SUITE_P(Registry, HandoffMethods, ::testing::ValuesIn(method_names(any)),
                         readable);
INSTANTIATE_TEST_SUITE_P(Registry, HandoffSinks, ::testing::ValuesIn(method_names(with_sink)),
                         readable);
INSTANTIATE_TEST_SUITE_P(Registry, HandoffToOwnTable,
                         ::testing::ValuesIn(method_names(to_own_table)), readable);

TEST_P(HandoffMethods, BytesRoundTripAndUnreadBytesArrive) {
  LinkedWorker worker(method(), request(), [&](ConnectionSource& source, int control) {
    const bool all = receive_all(source, 3, [&](Received& connection) {
      say(control, 'r');
      const std::string text = read_text(source, connection.fd.get(), 5);
      send_text(connection.fd.get(), text + "!");
    });
    return all ? 0 : 1;
  });
  for (int i = 0; i < 3; ++i) {
    const std::string sent = fmt::format("ping{}", i);
    const OwnedFd client = deliver(worker, static_cast<std::uint64_t>(i), sent);
    EXPECT_EQ(worker.read_client(client.get(), 6), sent + "!");
    EXPECT_TRUE(worker.client_ends(client.get())) << "a copy is still open somewhere";
  }
  EXPECT_EQ(worker.exit_code(), 0);
}

TEST_P(HandoffMethods, ArrivesCloseOnExecAndNonBlockingAndIsCountedBack) {
  LinkedWorker worker(method(), request(), [&](ConnectionSource& source, int control) {
    const std::size_t before = open_descriptors();
    int code = 0;
    const bool all = receive_all(source, 2, [&](Received& connection) {
      say(control, 'r');
      if ((::fcntl(connection.fd.get(), F_GETFD) & FD_CLOEXEC) == 0) code = 2;
      if ((::fcntl(connection.fd.get(), F_GETFL) & O_NONBLOCK) == 0) code = 3;
    });
    const auto all_back = [&] { return open_descriptors() == before; };
    if (!configured_.entry->shared_table && !attend_until(source, all_back)) code = 4;
    return all ? code : 1;
  });
  for (std::uint64_t i = 0; i < 2; ++i) deliver(worker, i, "x");
  EXPECT_EQ(worker.exit_code(), 0);
}

TEST_P(HandoffMethods, KernelDispatchHasNoSinkAndEverythingElseHasOne) {
  LinkedWorker worker(method(), request(), [](ConnectionSource&, int) { return 0; });
  EXPECT_EQ(worker.has_sink(), has_sink());
}

TEST_P(HandoffSinks, KeepsOrderAndTagsAcrossBatches) {
  constexpr std::size_t count = 700;
  LinkedWorker worker(method(), request(), [&](ConnectionSource& source, int) {
    std::uint64_t expected = 0;
    int code = 0;
    const bool all = receive_all(source, count, [&](Received& connection) {
      if (connection.tag.id != expected) code = 2;
      if (connection.tag.accepted_ns != static_cast<std::int64_t>(1000 + expected)) code = 3;
      if (connection.tag.attempt != expected % 3) code = 4;
      ++expected;
    });
    return all ? code : 1;
  });
  Supply supply(method());
  std::vector<Handover> batch(count);
  for (std::size_t i = 0; i < count; ++i) {
    batch[i] = {supply.next(),
                {i, static_cast<std::int64_t>(1000 + i), static_cast<std::uint32_t>(i % 3)}};
  }
  EXPECT_TRUE(send_all(worker, batch));
  EXPECT_EQ(worker.exit_code(), 0);
}

TEST_P(HandoffSinks, BatchesAtTheKernelsLimit) {
  Supply supply(method());
  for (const std::size_t count : {1U, 253U, 254U, 507U}) {
    LinkedWorker worker(method(), request(), [&](ConnectionSource& source, int) {
      return receive_all(source, count, [](Received&) {}) ? 0 : 1;
    });
    EXPECT_TRUE(send_all(worker, numbered(supply, count))) << count;
    EXPECT_EQ(worker.exit_code(), 0) << count;
  }
}

TEST_P(HandoffSinks, FullChannelBlocksNobodyAndLosesNothing) {
  constexpr std::size_t most = 200'000;
  LinkedWorker worker(method(), request(), [&](ConnectionSource& source, int control) {
    if (hear(control) != 'g') return 1;
    // The test says by the tag of the last one when all have come.
    bool last = false;
    std::uint64_t expected = 0;
    int code = 0;
    while (!last) {
      if (!receive_all(source, 1, [&](Received& connection) {
            if (connection.tag.id != expected++) code = 2;
            last = last || connection.tag.attempt == 99;
          })) {
        return 1;
      }
    }
    return code;
  });
  Supply supply(method());
  std::uint64_t sent = 0;
  int refused = -1;
  SendResult result;
  while (sent < most) {  // nobody receives yet
    const Handover one{supply.next(), {.id = sent}};
    result = worker.sink().send({&one, 1});
    if (result.taken == 0) {
      refused = one.fd;
      break;
    }
    ++sent;
  }
  ASSERT_LT(sent, most) << "the channel is never full";
  EXPECT_TRUE(result.state == Channel::would_block || result.state == Channel::starved);
  worker.tell('g');
  // What was not taken stays the caller's, as fit to be handed over as before.
  std::vector<Handover> rest{{refused, {.id = sent++}}};
  while (rest.size() < 50) rest.push_back({supply.next(), {.id = sent++}});
  rest.back().tag.attempt = 99;
  EXPECT_TRUE(send_all(worker, rest));
  EXPECT_EQ(worker.exit_code(), 0);
}

TEST_P(HandoffSinks, DeathOfTheWorkerIsAnErrorAndNotAHang) {
  LinkedWorker worker(method(), request(),
                      [](ConnectionSource&, int control) { return hear(control) == 0; });
  const TcpPair pair = tcp_pair();
  const Handover one{pair.accepted.get(), {}};
  EXPECT_EQ(worker.sink().send({&one, 1}).taken, 1U);
  worker.child().signal(SIGKILL);
  EXPECT_EQ(worker.exit_code(), 128 + SIGKILL);
  const auto deadline = Clock::now() + std::chrono::milliseconds(patience_ms);
  Channel state = Channel::more;
  while (state != Channel::closed && Clock::now() < deadline)
    state = worker.sink().send({&one, 1}).state;
  EXPECT_EQ(state, Channel::closed);
  // What was under way is gone with the channel: only the test's own descriptor keeps it open.
  worker.drop_sink();
}

/// Killed wherever it is: in a system call, in a lock, between taking and counting.
TEST_P(HandoffSinks, WorkerKilledAtAnyMomentDoesNotHangTheSink) {
  std::minstd_rand random(20261123);
  // A connection that leaves its descriptor must be made for each hand-over, which takes its time.
  const bool one_each = configured_.entry->consumes_connection;
  const bool variant = GetParam().find(':') != std::string::npos;
  for (int round = 0; round < (one_each || variant ? 5 : 15); ++round) {
    Supply supply(method());
    LinkedWorker worker(method(), request(), [&](ConnectionSource& source, int control) {
      say(control, 's');
      // As often inside of the method as can be, so that the kill finds it there.
      Slots slots;
      while (source.receive(slots).state != Channel::closed) {
        for (Received& slot : slots) slot.fd.reset();
      }
      return 1;
    });
    ASSERT_EQ(worker.hear(), 's');
    const auto kill_at = Clock::now() + std::chrono::microseconds(random() % 1000);
    bool killed = false;
    auto longest = Clock::duration::zero();
    const auto deadline = Clock::now() + std::chrono::milliseconds(patience_ms);
    Channel state = Channel::more;
    while (state != Channel::closed && Clock::now() < deadline) {
      if (!killed && Clock::now() >= kill_at) {
        worker.child().signal(SIGKILL);
        killed = true;
      }
      const std::vector<Handover> batch = numbered(supply, one_each ? 1 : 64);
      const auto before = Clock::now();
      state = worker.sink().send(batch).state;
      longest = std::max(longest, Clock::now() - before);
      if (state != Channel::more)
        (void)worker.wait_attending(worker.sink().writable_fd(), 1, POLLOUT);
    }
    ASSERT_EQ(state, Channel::closed) << "round " << round;
    ASSERT_LT(longest, std::chrono::seconds(5)) << "round " << round;
  }
}

TEST_P(HandoffSinks, UndeliveredConnectionsEndWithTheSink) {
  LinkedWorker worker(method(), request(),
                      [](ConnectionSource&, int control) { return hear(control) == 0; });
  TcpPair pair = tcp_pair();
  const Handover one{pair.accepted.get(), {}};
  EXPECT_EQ(worker.sink().send({&one, 1}).taken, 1U);
  worker.child().signal(SIGKILL);
  EXPECT_EQ(worker.exit_code(), 128 + SIGKILL);
  worker.drop_sink();
  // What a shared channel holds is not lost with one worker; it goes with the channel.
  if (configured_.entry->shared_channel) configured_.method.reset();
  pair.accepted.reset();
  EXPECT_TRUE(ends(pair.client.get())) << "someone still holds the connection";
}

TEST_P(HandoffToOwnTable, WorkerAtItsDescriptorLimitRefusesAndKeepsNothing) {
  LinkedWorker worker(method(), request(), [&](ConnectionSource& source, int control) {
    const std::size_t before = open_descriptors();
    // Room for one more number than are open, one of which the count itself uses for its folder.
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    const rlimit low{static_cast<rlim_t>(::fcntl(0, F_DUPFD_CLOEXEC, 0)) + 1, limit.rlim_max};
    ::close(static_cast<int>(low.rlim_cur) - 1);
    ::setrlimit(RLIMIT_NOFILE, &low);
    std::size_t refused = 0;
    std::vector<Received> received;  // kept: those that come one by one must meet the limit too
    Slots slots;
    while (refused + received.size() < 8) {
      if (!wait_readable(source.fd())) return 1;
      const ReceiveResult result = source.receive(slots);
      if (result.state == Channel::closed) return 2;
      refused += result.refused;
      for (std::size_t i = 0; i < result.received; ++i) received.push_back(std::move(slots[i]));
    }
    received.clear();
    ::setrlimit(RLIMIT_NOFILE, &limit);
    if (open_descriptors() != before) return 3;
    if (refused == 0) return 4;
    say(control, 'd');
    return receive_all(source, 1, [](Received&) {}) ? 0 : 5;
  });
  Supply supply(method());
  const std::vector<Handover> batch = numbered(supply, 9);
  EXPECT_TRUE(send_all(worker, {batch.data(), 8}));
  EXPECT_EQ(worker.hear(), 'd');
  EXPECT_TRUE(send_all(worker, {batch.data() + 8, 1})) << "the channel must still work";
  EXPECT_EQ(worker.exit_code(), 0);
}

TEST_P(HandoffToOwnTable, RefusedAndTakenBackIsHeldByNobodyElse) {
  LinkedWorker worker(method(), request(), [&](ConnectionSource& source, int control) {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    const int next_free = ::fcntl(0, F_DUPFD_CLOEXEC, 0);
    ::close(next_free);
    const rlimit none{static_cast<rlim_t>(next_free), limit.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &none);
    Slots slots;
    ReceiveResult result;
    while (result.refused == 0) {
      if (!wait_readable(source.fd())) return 1;
      result = source.receive(slots);
      if (result.received != 0 || result.state == Channel::closed) return 2;
    }
    say(control, 'r');
    return hear(control) == 'e' ? 0 : 3;
  });
  TcpPair pair = tcp_pair();
  const Handover one{pair.accepted.get(), {.id = 7, .accepted_ns = monotonic_ns()}};
  ASSERT_EQ(worker.sink().send({&one, 1}).taken, 1U);
  ASSERT_EQ(worker.hear(), 'r');
  EXPECT_TRUE(worker.sink().take_back(one));
  pair.accepted.reset();
  EXPECT_TRUE(ends(pair.client.get())) << "the channel still holds the connection";
  worker.tell('e');
  EXPECT_EQ(worker.exit_code(), 0);
}

}  // namespace
}  // namespace c10k::testing
