// The small parts, each alone.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "experiments/client/schedule.hpp"
#include "ipc/latency_histogram.hpp"
#include "ipc/listener_source.hpp"
#include "ipc/multiprocessing.hpp"
#include "ipc/number_ring.hpp"
#include "ipc/registry.hpp"
#include "ipc/scm.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/tcp_message.hpp"
#include "ipc/usage.hpp"
#include "tests/support.hpp"
#include "workers/active_counts.hpp"

namespace c10k::testing {
namespace {

std::string usage_error(const std::function<void()>& action) {
  try {
    action();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Usage, NumbersOutsideTheRangeSayTheRange) {
  EXPECT_EQ(parse_integer<int>("--n", "7", 1, 9), 7);
  for (const char* bad : {"", "x", "7x", "0", "10", "-1", "99999999999999999999", "1.5", " 1"}) {
    const std::string error = usage_error([&] { (void)parse_integer<int>("--n", bad, 1, 9); });
    EXPECT_NE(error.find("--n"), std::string::npos) << bad;
    EXPECT_NE(error.find("1 to 9"), std::string::npos) << bad;
  }
  EXPECT_EQ(parse_seconds("--s", "0.25", 0, 1), 250'000'000);
  for (const char* bad : {"", "nan", "inf", "-1", "2", "1s"}) {
    EXPECT_NE(usage_error([&] { (void)parse_seconds("--s", bad, 0, 1); }), "no error") << bad;
  }
}

TEST(Usage, MethodOptionsResolveAndRefuseTheUnknown) {
  EXPECT_EQ(configure_handoff_method("scm-stream").resolved, "scm-stream:batch=64");
  EXPECT_EQ(configure_handoff_method("scm-stream:batch=253").resolved, "scm-stream:batch=253");
  for (const char* bad :
       {"", "nope", "scm-stream:", "scm-stream:batch", "scm-stream:batch=", "scm-stream:batch=0",
        "scm-stream:batch=254", "scm-stream:batch=1,batch=2", "scm-stream:colour=red",
        "scm-stream:=1", "reuseport:batch=1", "inherited-listener:wait=never", ":batch=1",
        "scm-stream:batch=1,"}) {
    EXPECT_NE(usage_error([&] { (void)configure_handoff_method(bad); }), "no error") << bad;
  }
}

TEST(SocketAddresses, ParseAndPrint) {
  EXPECT_EQ(SocketAddress::parse("--listen", "127.0.0.1:80").text(), "127.0.0.1:80");
  EXPECT_EQ(SocketAddress::parse("--listen", "[::1]:80").text(), "[::1]:80");
  EXPECT_TRUE(SocketAddress::parse("--listen", "127.9.9.9:1").is_loopback_v4());
  EXPECT_FALSE(SocketAddress::parse("--listen", "[::1]:1").is_loopback_v4());
  for (const char* bad :
       {"", "80", ":80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:x", "::1:80", "[::1]", "[]:1", "no.such.host.invalid:80"}) {
    EXPECT_NE(usage_error([&] { (void)SocketAddress::parse("--listen", bad); }), "no error") << bad;
  }
}

TEST(Histogram, IsWithinOnePercentAndMerges) {
  LatencyHistogram one;
  LatencyHistogram two;
  for (std::int64_t ns = 1; ns < 50'000'000'000; ns = ns * 3 / 2 + 1) {
    LatencyHistogram single;
    single.add(ns);
    EXPECT_NEAR(single.quantile_ns(0.5), static_cast<double>(ns),
                0.01 * static_cast<double>(ns) + 0.01)
        << ns;
    EXPECT_EQ(single.max_ns(), ns);
  }
  for (int i = 1; i <= 1000; ++i) (i % 2 != 0 ? one : two).add(i * 1000);
  one.merge(two);
  EXPECT_EQ(one.count(), 1000U);
  EXPECT_NEAR(one.quantile_ns(0.50), 500'000, 5'000);
  EXPECT_NEAR(one.quantile_ns(0.99), 990'000, 9'900);
  EXPECT_EQ(one.max_ns(), 1'000'000);
  EXPECT_EQ(LatencyHistogram().quantile_ns(0.5), 0);
  one.add(-5);                     // a clock that stands still is no crash
  one.add(1'000'000'000'000'000);  // nor is a value above the axis
  EXPECT_EQ(one.count(), 1002U);
}

TEST(SharedMemoryTest, IsSharedWithChildrenAndHasNoName) {
  const SharedArray<std::atomic<int>> numbers(2);
  EXPECT_EQ(numbers[0].load(), 0);
  ChildProcess child = ChildProcess::fork(
      [&] {
        numbers[1] = 42;
        return 0;
      },
      {}, SIGKILL);
  EXPECT_TRUE(child.wait().clean());
  EXPECT_EQ(numbers[1].load(), 42);
}

TEST(Processes, ChildKeepsOnlyWhatItIsGiven) {
  auto [kept, kept_peer] = unix_pair(SOCK_STREAM);
  auto [foreign, foreign_peer] = unix_pair(SOCK_STREAM);
  const int keep = kept.get();
  ChildProcess child = ChildProcess::fork(
      [&] {
        if (::fcntl(keep, F_GETFD) < 0) return 2;
        return ::fcntl(foreign.get(), F_GETFD) < 0 && ::fcntl(foreign_peer.get(), F_GETFD) < 0 ? 0
                                                                                               : 3;
      },
      {&keep, 1}, SIGKILL);
  const ChildExit exit = child.wait();
  EXPECT_TRUE(exit.clean()) << exit.text();
}

TEST(Processes, ExceptionInTheChildIsExitCode1AndADestroyedChildIsReaped) {
  ChildProcess failing =
      ChildProcess::fork([]() -> int { throw std::runtime_error("on purpose"); }, {}, SIGKILL);
  EXPECT_EQ(failing.wait().text(), "exit code 1");
  pid_t pid = 0;
  {
    auto [wait, peer] = unix_pair(SOCK_STREAM);
    const int keep = wait.get();
    ChildProcess child =
        ChildProcess::fork([&] { return wait_readable(keep) ? 0 : 1; }, {&keep, 1}, SIGKILL);
    pid = child.pid();
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_EQ(::kill(pid, 0), -1);
  EXPECT_EQ(errno, ESRCH);
}

TEST(AcceptQueueTest, LengthAndLimitCanBeRead) {
  const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {.backlog = 7});
  EXPECT_EQ(accept_queue(listener.get()).length, 0U);
  EXPECT_EQ(accept_queue(listener.get()).limit, 7U);
  const SocketAddress address = SocketAddress::local(listener.get());
  const std::array clients{connect_to(address), connect_to(address), connect_to(address)};
  EXPECT_EQ(accept_queue(listener.get()).length, 3U);
}

TEST(AcceptQueueTest, DrainsAllOrOneAndShedsAtTheDescriptorLimit) {
  const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {});
  const SocketAddress address = SocketAddress::local(listener.get());
  std::array<Received, receive_room> batch;

  AcceptQueueReader one(listener.get(), false, 1);
  AcceptQueueReader all(listener.get(), true, 100);
  std::vector<OwnedFd> clients;
  for (int i = 0; i < 5; ++i) clients.push_back(connect_to(address));
  ReceiveResult result = one.accept(batch);
  EXPECT_EQ(result.received, 1U);
  EXPECT_EQ(batch[0].tag.id, 1U);
  EXPECT_EQ(result.queue_length, 5U);
  result = all.accept({batch.data() + 1, batch.size() - 1});
  EXPECT_EQ(result.received, 4U);
  EXPECT_EQ(result.state, Channel::would_block);

  clients.push_back(connect_to(address));
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const int lowest_free = ::fcntl(0, F_DUPFD_CLOEXEC, 0);
  ::close(lowest_free);
  const rlimit low{static_cast<rlim_t>(lowest_free), limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  result = all.accept({batch.data() + 10, 1});
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(result.received, 0U);
  EXPECT_EQ(result.shed, 1U);
  EXPECT_EQ(result.error, EMFILE);
  EXPECT_EQ(read_text(clients.back().get(), 1), "") << "the refused client must see an end";
}

TEST(AcceptQueueTest, ABrokenListenerIsAnError) {
  const auto [left, right] = unix_pair(SOCK_STREAM);
  AcceptQueueReader reader(left.get(), true, 1);
  std::array<Received, receive_room> batch;
  EXPECT_THROW((void)reader.accept(batch), SystemError);
}

TEST(ScmFrames, GarbageIsRefusedAndNothingOfItIsKept) {
  auto [ours, theirs] = unix_pair(SOCK_SEQPACKET);
  std::vector<Received> batch(receive_room);
  const std::size_t before = open_descriptors();
  send_text(ours.get(), "garbage");
  EXPECT_THROW((void)receive_frame(theirs.get(), batch, false), std::runtime_error);

  // A frame that says 2 and carries 1: everything is closed.
  ScmFrame frame;
  frame.count = 2;
  const auto bytes = std::as_bytes(std::span(&frame, 1)).first(ScmFrame::bytes(2));
  const std::array one_fd{0};
  ASSERT_GT(send_with_descriptors(ours.get(), bytes, one_fd), 0);
  EXPECT_THROW((void)receive_frame(theirs.get(), batch, false), std::runtime_error);
  // And one that says more than a message can carry.
  frame.count = 100'000;
  ASSERT_GT(send_with_descriptors(ours.get(), bytes, one_fd), 0);
  EXPECT_THROW((void)receive_frame(theirs.get(), batch, false), std::runtime_error);
  EXPECT_EQ(open_descriptors(), before);
}

/// One message of one byte and two descriptors, where whoever reads it expects one.
void send_two_descriptors(int socket) {
  const std::array byte{std::byte{1}};
  const std::array fds{0, 0};
  ASSERT_EQ(send_with_descriptors(socket, byte, fds), 1);
}

TEST(ScmFrames, ASecondDescriptorThatFitsThePaddingIsClosed) {
  const std::size_t before = open_descriptors();
  {
    const auto [ours, theirs] = unix_pair(SOCK_STREAM);
    send_two_descriptors(ours.get());
    int error = 0;
    EXPECT_THROW((void)multiprocessing::receive_handle(theirs.get(), {}, error),
                 multiprocessing::PeerGone);
  }
  {
    const auto [ours, theirs] = unix_pair(SOCK_SEQPACKET);
    send_two_descriptors(ours.get());
    TcpMessage message;
    EXPECT_THROW((void)receive_message(theirs.get(), message), std::runtime_error);
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(NumberRings, NeverMoreWaitThanThereAreSlots) {
  const NumberRing ring;
  ring.publish(std::size_t{1} << 40);
  EXPECT_EQ(ring.waiting(), NumberRing::slots);
  EXPECT_EQ(ring.room(), 0U);
}

TEST(SharedLimits, WorkersThatClaimAtTheSameTimeStayWithin) {
  constexpr std::size_t most = 3;
  std::array<Counter, 2> counts;
  SharedLimit first(counts, 0, most);
  SharedLimit second(counts, 1, most);
  EXPECT_EQ(first.claim(0, 2), 2U);
  EXPECT_EQ(second.claim(0, 2), 1U);
  EXPECT_EQ(second.claim(1, 2), 0U);
  EXPECT_EQ(counts[0].get() + counts[1].get(), most);

  counts[0].set(1);  // the first has one, the second none, and both have seen that when they announce
  counts[1].set(0);
  EXPECT_EQ(first.announce(1, 2), 2U);
  counts[1].set_in_order(2);
  EXPECT_EQ(first.settle(1, 2), 0U);
  EXPECT_EQ(counts[0].get(), 1U);
  EXPECT_EQ(second.settle(0, 2), 2U);
  EXPECT_EQ(counts[1].get(), 2U);
}

TEST(Schedule, EvenTimesDoNotDrift) {
  Schedule schedule;
  schedule.begin(1'000, 3, false, 1);  // a third of a second, which no number of nanoseconds is
  EXPECT_EQ(schedule.take(), 1'000);
  EXPECT_EQ(schedule.take(), 333'334'333);
  for (int i = 2; i < 30'000; ++i) (void)schedule.take();
  EXPECT_EQ(schedule.take(), 10'000'000'001'000);
}

TEST(Schedule, PoissonGapsAreExponential) {
  Schedule schedule;
  schedule.begin(0, 1'000, true, 7);
  constexpr int count = 100'000;
  double sum = 0;
  double squares = 0;
  int above_mean = 0;
  std::int64_t before = schedule.take();
  EXPECT_EQ(before, 0);
  for (int i = 0; i < count; ++i) {
    const std::int64_t time = schedule.take();
    const double gap = static_cast<double>(time - before) / 1e6;
    before = time;
    sum += gap;
    squares += gap * gap;
    above_mean += gap > 1;
  }
  const double mean = sum / count;
  EXPECT_NEAR(mean, 1, 0.02);
  EXPECT_NEAR(std::sqrt(squares / count - mean * mean), 1, 0.02);
  EXPECT_NEAR(static_cast<double>(above_mean) / count, std::exp(-1.0), 0.01);
}

}  // namespace
}  // namespace c10k::testing
