// Workers that are an enemy, against the real dispatcher: whatever one does to what it shares with the
// acceptor, the acceptor goes on, and the clients are served by the other worker or see an end.
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <random>

#include "acceptor/dispatcher.hpp"
#include "tests/support.hpp"
#include "workers/worker.hpp"

namespace c10k::testing {
namespace {

constexpr std::uint32_t seed = 20261123;

/// What the hostile worker does, for as long as it lives.
using Attack = std::function<void(ConnectionSource&, ProcessCounters&, std::minstd_rand&)>;

/// A worker in one of as many slots as `active` has: a real one, or one that does nothing but the attack.
std::unique_ptr<WorkerProcess> start_worker(const ConfiguredMethod& configured, std::size_t slot,
                                            const SharedArray<Counter>& active,
                                            const Attack* attack = nullptr) {
  auto worker = std::make_unique<WorkerProcess>();
  worker->slot = slot;
  worker->shared = std::make_unique<SharedArray<ProcessCounters>>(1, SharedWith::one_child);
  LinkRequest request;
  request.worker = slot;
  request.workers = active.size();
  const auto link = configured.method->open(request);
  auto [ours, theirs] = unix_pair(SOCK_SEQPACKET);
  std::vector<int> keep = link->worker_descriptors();
  keep.push_back(theirs.get());
  const pid_t acceptor = ::getpid();
  worker->child = ChildProcess::fork(
      [&, &theirs = theirs]() -> int {
        if (attack == nullptr) {
          return run_worker_process(find_loop("epoll"), link->worker_end(), false, {},
                                    worker->counters(), active.all(), slot, std::move(theirs),
                                    acceptor);
        }
        const auto source = link->worker_end();
        std::minstd_rand random(seed);
        ::signal(SIGPIPE, SIG_IGN);
        say(theirs.get(), 'r');
        // Longer than anybody waits for it: it never leaves before it is ended.
        const std::int64_t until = monotonic_ns() + 2 * patience_ns;
        while (monotonic_ns() < until) {
          (*attack)(*source, worker->counters(), random);
          ::poll(nullptr, 0, 1);  // it is hostile, and not the only one that wants the CPU
        }
        return 0;
      },
      keep, SIGKILL, configured.entry->shared_table ? Table::shared : Table::own);
  withhold_from_later_children();
  link->leave_to_worker(std::move(theirs));
  worker->control = std::move(ours);
  worker->sink = link->acceptor_end(worker->child.pidfd());
  return worker;
}

bool says_ready(const WorkerProcess& worker) {
  char ready = 0;
  return wait_readable(worker.control.get()) && ::recv(worker.control.get(), &ready, 1, 0) == 1;
}

class Hostile : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    configured_ = configure_handoff_method(GetParam());
    const Support support = configured_.method->probe();
    if (!support.available) GTEST_SKIP() << support.reason;
    ::testing::Test::RecordProperty("seed", static_cast<int>(seed));
  }

  /// Two workers, of which the first is hostile; 24 clients. `dropped`: the acceptor must end it itself.
  /// `swallows`: it may have read its own clients' bytes, and nobody can answer those.
  void run(const Attack& attack, bool dropped, Retain retain = Retain::none,
           bool swallows = false) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const std::size_t before = open_descriptors();
    {
      const MethodFacts& facts = *configured_.entry;
      EventLoop loop(epoll_poller());
      const SharedArray<Counter> active(2);
      std::array<std::unique_ptr<WorkerProcess>, 2> workers;
      for (std::size_t slot = 0; slot < 2; ++slot) {
        workers[slot] = start_worker(configured_, slot, active, slot == 0 ? &attack : nullptr);
        ASSERT_TRUE(says_ready(*workers[slot]));
      }
      Dispatcher dispatcher(loop, 2, find_dispatch_policy("round-robin"), facts, retain, 1024);
      loop.at_end_of_turn([&] { dispatcher.collect(); });
      for (auto& worker : workers) {
        dispatcher.worker_started(*worker);
        dispatcher.worker_ready(*worker);
      }

      std::vector<OwnedFd> clients;
      for (std::uint64_t id = 1; id <= 24; ++id) {
        TcpPair pair = tcp_pair();
        send_text(pair.client.get(), "hello");
        dispatcher.add({std::move(pair.accepted), {.id = id, .accepted_ns = monotonic_ns()}});
        clients.push_back(std::move(pair.client));
      }
      dispatcher.flush();

      std::vector<bool> settled(clients.size());
      std::size_t echoed = 0;
      std::size_t ended = 0;
      bool killed = false;
      ChildExit end;
      const std::int64_t until = monotonic_ns() + patience_ns;
      const std::function<void()> look = [&] {
        for (std::size_t i = 0; i < clients.size(); ++i) {
          char bytes[8];
          const ssize_t got =
              settled[i] ? -1 : ::recv(clients[i].get(), bytes, sizeof bytes, MSG_DONTWAIT);
          if (settled[i] || (got < 0 && errno == EAGAIN)) continue;
          settled[i] = true;
          ++(got > 0 ? echoed : ended);
        }
        if (workers[0] && has_ended(workers[0]->child.pidfd())) {
          end = workers[0]->child.wait();
          configured_.method->worker_ended(0);
          dispatcher.worker_ended(*workers[0]);
          ProcessTotals totals;
          totals.add(workers[0]->counters(), false);
          totals.add(rusage{}, workers[0]->counters().at_ready);
          EXPECT_FALSE(totals.to_json().dump(-1, ' ', false).empty());
          EXPECT_LE(totals.finished + totals.lost, clients.size()) << "its lies are in the books";
          workers[0].reset();
        }
        // The honest one has what it was sent: nothing that the hostile one does takes that away.
        if (!dropped && !killed && workers[0] && echoed >= 8) {
          killed = true;
          workers[0]->child.signal(SIGKILL);
        }
        const bool all = swallows ? echoed >= 12 : echoed + ended == clients.size();
        if ((all && !workers[0]) || monotonic_ns() > until) return loop.stop();
        loop.after(1'000'000, look);
      };
      loop.after(0, look);
      loop.run();
      if (!swallows) {
        EXPECT_EQ(echoed + ended, clients.size()) << "clients hang";
      }
      EXPECT_GE(echoed, 12U) << "the honest worker's clients";
      EXPECT_EQ(workers[0], nullptr) << "the hostile worker lives on";
      if (dropped) {
        EXPECT_TRUE(WIFSIGNALED(end.status) && WTERMSIG(end.status) == SIGKILL) << end.text();
      }
      dispatcher.release_retained();
      workers[1]->child.signal(SIGKILL);
      (void)workers[1]->child.wait();
      dispatcher.worker_ended(*workers[1]);
    }
    configured_ = {};
    EXPECT_LE(open_descriptors(), before) << "descriptors leaked";
  }

  [[nodiscard]] const MethodFacts& facts() const { return *configured_.entry; }

 private:
  ConfiguredMethod configured_;
};

std::vector<std::string> names(bool (*wanted)(const MethodEntry&)) {
  std::vector<std::string> all;
  for (const MethodEntry& entry : handoff_methods()) {
    if (!entry.kernel_dispatches && wanted(entry)) all.emplace_back(entry.name);
  }
  return all;
}

std::string readable(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

/// Those whose workers are said to be trusted are here only for what every worker shares.
class HostileCounters : public Hostile {};
INSTANTIATE_TEST_SUITE_P(Registry, HostileCounters,
                         ::testing::ValuesIn(names([](const MethodEntry&) { return true; })),
                         readable);
class HostileChannel : public Hostile {};
INSTANTIATE_TEST_SUITE_P(Registry, HostileChannel,
                         ::testing::ValuesIn(names([](const MethodEntry& entry) {
                           return entry.needs_trust.empty();
                         })),
                         readable);

TEST_P(HostileCounters, CountsThatJumpAreTheEndOfTheWorker) {
  run(
      [](ConnectionSource&, ProcessCounters& counters, auto&) {
        counters.consumed.set(std::uint64_t{1} << 63);
        counters.finished.set(~std::uint64_t{0});
      },
      true);
}

TEST_P(HostileCounters, CountsThatRunBackwardsAreTheEndOfTheWorker) {
  run(
      [](ConnectionSource&, ProcessCounters& counters, auto&) {
        counters.consumed.set(counters.consumed.get() - 1);
        counters.received.set(counters.received.get() - 1);
      },
      true);
}

TEST_P(HostileCounters, EndsThatCannotHaveBeenAreTheEndOfTheWorker) {
  run([](ConnectionSource&, ProcessCounters& counters,
         auto&) { counters.ended.set(std::uint64_t{1} << 40); },
      true, Retain::none);
}

TEST_P(HostileCounters, NumbersOutOfRange) {
  const bool dropped = !facts().shared_channel;  // else one cannot tell whose it was
  run(
      [](ConnectionSource&, ProcessCounters& counters, auto& random) {
        for (Counter& copy : counters.consumed_copies) copy.set(random() | std::uint64_t{1} << 40);
        for (Counter& copy : counters.ended_copies) copy.set(~std::uint64_t{0} - random());
        counters.ended.add();
        counters.consumed.add();
      },
      dropped);
}

TEST_P(HostileCounters, BooksThatLie) {
  run(
      [](ConnectionSource&, ProcessCounters& counters, auto& random) {
        for (Counter* lie :
             {&counters.received, &counters.refused, &counters.accepted, &counters.shed,
              &counters.finished, &counters.finished_redelivered, &counters.handed_back,
              &counters.adopted, &counters.turns, &counters.echoes})
          lie->set(std::uint64_t{random()} << random() % 32);
      },
      false);
}

/// What it has read from it says it has not touched: the client sees the end, and does not wait for an answer.
TEST_P(HostileChannel, RefusesWhatItHasReadFrom) {
  if (facts().shared_channel) GTEST_SKIP() << "it could pull all, and nobody would be echoed";
  // The acceptor goes on reading for it what it has confirmed by one way and refused by another.
  if (facts().connections_stay) GTEST_SKIP() << "its clients may hang until it is ended";
  run(
      [](ConnectionSource& source, ProcessCounters& counters, auto&) {
        Slots slots;
        pollfd entry{source.fd(), POLLIN, 0};
        if (::poll(&entry, 1, 0) != 1) return;
        const std::size_t received = source.receive(slots).received;
        for (std::size_t i = 0; i < received; ++i) {
          char bytes[8];
          (void)!::recv(slots[i].fd.get(), bytes, sizeof bytes, MSG_DONTWAIT);
          const std::uint64_t next = counters.consumed.get() + 1;
          counters.consumed_copies[next % max_outstanding].set(slots[i].tag.copy | refused_flag);
          counters.consumed.add();
        }
      },
      false);
}

/// Copies given back that it was sent and never asked for: their numbers must not be used any more.
TEST_P(HostileChannel, CountsWhatItHasNotFetchedAndFetchesItThen) {
  run(
      [fetched = std::size_t{0}](ConnectionSource& source, ProcessCounters& counters,
                                 auto&) mutable {
        // The acceptor's numbers are small, and round-robin gives every second to this one.
        for (std::uint64_t i = 1; i <= 12; ++i) counters.consumed_copies[i].set(2 * (i - 1));
        if (counters.consumed.get() < 12) counters.consumed.add();
        if (counters.consumed.get() < 6) return;
        Slots slots;
        pollfd entry{source.fd(), POLLIN, 0};
        // Its half: of a shared channel it could pull all while the honest one gets no CPU.
        if (fetched < 12 && ::poll(&entry, 1, 0) == 1) fetched += source.receive(slots).received;
      },
      false, Retain::none, true);
}

TEST_P(HostileChannel, RandomBytesOverAllSharedMemory) {
  run(
      [](ConnectionSource&, ProcessCounters&, auto& random) {
        std::ifstream maps("/proc/self/maps");
        for (std::string line; std::getline(maps, line);) {
          unsigned long begin = 0;
          unsigned long end = 0;
          if (line.find("/memfd:c10k") == std::string::npos ||
              std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) != 2)
            continue;
          for (int i = 0; i < 4000; ++i)
            reinterpret_cast<volatile unsigned char*>(begin)[random() % (end - begin)] =
                static_cast<unsigned char>(random());
        }
      },
      false);
}

TEST_P(HostileChannel, GarbageAndDescriptorsOnWhateverItHas) {
  run(
      [](ConnectionSource&, ProcessCounters&, auto& random) {
        for (int fd = 3; fd < 64; ++fd) {
          if (::fcntl(fd, F_GETFD) < 0) continue;
          std::array<unsigned char, 600> bytes;
          for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random());
          const auto some = std::as_bytes(std::span(bytes)).first(1 + random() % bytes.size());
          const std::array standard{0, 1, 2};
          (void)send_with_descriptors(fd, some, standard, MSG_DONTWAIT | MSG_NOSIGNAL);
          const int flags = ::fcntl(fd, F_GETFL);
          if ((flags & O_ACCMODE) != O_RDONLY && (flags & O_NONBLOCK) != 0)
            (void)!::write(fd, bytes.data(), 8);
        }
      },
      GetParam() == "relay");
}

/// The other way round: a worker does not serve whatever the acceptor hands it. Not of relay, which sends bytes
/// and no descriptors, and not of tcp-repair, which cannot take anything else apart.
class HostileAcceptor : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Registry, HostileAcceptor,
                         ::testing::ValuesIn(names([](const MethodEntry& entry) {
                           return !entry.connections_stay && !entry.consumes_connection;
                         })),
                         readable);

TEST_P(HostileAcceptor, WhatIsNoTcpSocketIsTheEndOfItsWorker) {
  const Support support = configure_handoff_method(GetParam()).method->probe();
  if (!support.available) GTEST_SKIP() << support.reason;
  const auto made = [](int fd) { return OwnedFd(checked([&] { return fd; }, "make it")); };
  const std::vector<std::pair<const char*, std::function<OwnedFd()>>> kinds = {
      {"an eventfd", [&] { return made(::eventfd(0, EFD_CLOEXEC)); }},
      {"a Unix stream", [] { return std::move(unix_pair(SOCK_STREAM).first); }},
      {"UDP", [&] { return made(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)); }},
      {"netlink with TCP's number",
       [&] { return made(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_TCP)); }},
  };
  for (const auto& [what, make] : kinds) {
    SCOPED_TRACE(what);
    const std::size_t before = open_descriptors();
    ::testing::internal::CaptureStderr();  // the worker's, who inherits it
    const auto hand_over = [&, &make = make] {
      const ConfiguredMethod configured = configure_handoff_method(GetParam());
      EventLoop loop(epoll_poller());
      const SharedArray<Counter> active(1);
      const auto worker = start_worker(configured, 0, active);
      ASSERT_TRUE(says_ready(*worker));
      Dispatcher dispatcher(loop, 1, find_dispatch_policy("round-robin"), *configured.entry,
                            Retain::none, 16);
      loop.at_end_of_turn([&] { dispatcher.collect(); });
      dispatcher.worker_started(*worker);
      dispatcher.worker_ready(*worker);
      const auto run_until_readable = [&](int fd) {
        const std::int64_t until = monotonic_ns() + patience_ns;
        pollfd entry{fd, POLLIN, 0};
        const std::function<void()> look = [&] {
          if (::poll(&entry, 1, 0) == 1 || monotonic_ns() > until) return loop.stop();
          loop.after(1'000'000, look);
        };
        loop.after(0, look);
        loop.run();
        return ::poll(&entry, 1, 0) == 1;
      };
      TcpPair pair = tcp_pair();
      send_text(pair.client.get(), "hello");
      dispatcher.add({std::move(pair.accepted), {.id = 1, .accepted_ns = monotonic_ns()}});
      dispatcher.flush();
      ASSERT_TRUE(run_until_readable(pair.client.get())) << "a TCP connection is served";

      dispatcher.add({make(), {.id = 2, .accepted_ns = monotonic_ns()}});
      dispatcher.flush();
      const bool has_ended = run_until_readable(worker->child.pidfd());
      EXPECT_TRUE(has_ended) << "it serves what it was handed";
      if (!has_ended) worker->child.signal(SIGKILL);
      const ChildExit end = worker->child.wait();
      EXPECT_EQ(end.text(), "exit code 1");
      EXPECT_EQ(worker->counters().received.get(), 1U);
      configured.method->worker_ended(0);
      dispatcher.worker_ended(*worker);
    };
    hand_over();
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("connection 2 is no TCP socket"), std::string::npos) << said;
    EXPECT_LE(open_descriptors(), before) << "descriptors leaked";
  }
}

/// One that is killed between its close and the word of it in the ledger: the number may be the acceptor's by then.
TEST(SharedTable, TheSweepAfterADeadWorkerLeavesTheAcceptorsOwn) {
  const ConfiguredMethod configured = configure_handoff_method("shared-table");
  const SharedArray<std::atomic<int>> closed(1);
  LinkRequest request;
  request.workers = 1;
  const auto link = configured.method->open(request);
  ChildProcess child = ChildProcess::fork(
      [&]() -> int {
        const auto source = link->worker_end();
        const OwnedFd one = duplicate(STDERR_FILENO);
        ::close(one.get());
        closed[0] = one.get();
        ::poll(nullptr, 0, static_cast<int>(2 * patience_ns / 1'000'000));
        return 0;
      },
      {}, SIGKILL, Table::shared);
  auto sink = link->acceptor_end(child.pidfd());
  const std::int64_t until = monotonic_ns() + patience_ns;
  while (closed[0] == 0 && monotonic_ns() < until) ::sched_yield();
  const OwnedFd ours(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, closed[0].load()));
  ASSERT_EQ(ours.get(), closed[0]) << "the number is free, and taken again";
  child.signal(SIGKILL);
  (void)child.wait();
  sink.reset();
  EXPECT_GE(::fcntl(ours.get(), F_GETFD), 0) << "the sweep has closed it";
}

}  // namespace
}  // namespace c10k::testing
