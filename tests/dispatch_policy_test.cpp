// The dispatch policies: what all must do, over the registry, and what each is for.
#include "acceptor/dispatch_policy.hpp"

#include <array>
#include <numeric>

#include "tests/support.hpp"

namespace c10k::testing {
namespace {

constexpr std::size_t workers = 4;
using Loads = std::array<WorkerLoad, workers>;

/// How often each worker is chosen while its load stays as it is, for clients from `sources` addresses.
std::array<int, workers> hits_of(DispatchPolicy& policy, const Loads& loads, int rounds,
                                 std::uint64_t sources = 1) {
  std::array<int, workers> hits{};
  for (int i = 0; i < rounds; ++i) {
    const int chosen = policy.choose(loads, static_cast<std::uint64_t>(i) % sources * 0x9e3779b9);
    if (chosen >= 0) ++hits[static_cast<std::size_t>(chosen)];
  }
  return hits;
}

TEST(DispatchPolicies, ChooseOnlyEligibleWorkersAndSayWhenThereIsNone) {
  for (const PolicyEntry& entry : dispatch_policies()) {
    const auto policy = entry.make();
    const Loads some{{{true, 0}, {false, 0}, {true, 0}, {false, 0}}};
    const auto hits = hits_of(*policy, some, 100, 50);
    EXPECT_EQ(hits[0] + hits[2], 100) << entry.name;
    EXPECT_EQ(policy->choose(Loads{}, 7), -1) << entry.name;
    const Loads one{{{false, 0}, {false, 0}, {false, 0}, {true, 9}}};
    EXPECT_EQ(policy->choose(one, 7), 3) << entry.name;
  }
}

TEST(DispatchPolicies, RoundRobinGoesRound) {
  const auto policy = find_dispatch_policy("round-robin").make();
  const Loads loads{{{true, 5}, {true, 1}, {true, 9}, {true, 0}}};
  EXPECT_EQ(hits_of(*policy, loads, 40), (std::array<int, workers>{10, 10, 10, 10}));
}

TEST(DispatchPolicies, LeastConnectionsGoesToTheLeastAndSpreadsTies) {
  const auto policy = find_dispatch_policy("least-connections").make();
  const Loads uneven{{{true, 5}, {true, 1}, {true, 9}, {false, 0}}};
  EXPECT_EQ(hits_of(*policy, uneven, 10), (std::array<int, workers>{0, 10, 0, 0}));
  const Loads even{{{true, 3}, {true, 3}, {true, 3}, {true, 3}}};
  EXPECT_EQ(hits_of(*policy, even, 40), (std::array<int, workers>{10, 10, 10, 10}));
}

TEST(DispatchPolicies, RandomTwoNeverTakesTheMostLoadedOfAllAndSpreadsTheRest) {
  const auto policy = find_dispatch_policy("random-two").make();
  const Loads loads{{{true, 9}, {true, 1}, {true, 1}, {true, 1}}};
  const auto hits = hits_of(*policy, loads, 3000);
  EXPECT_EQ(hits[0], 0);  // whoever it is compared with has less
  for (std::size_t i = 1; i < workers; ++i) EXPECT_NEAR(hits[i], 1000, 200);
}

TEST(DispatchPolicies, SourceHashKeepsAClientWithItsWorkerAndMovesOnlyThoseOfADeadOne) {
  const auto policy = find_dispatch_policy("source-hash").make();
  Loads loads{{{true, 0}, {true, 50}, {true, 7}, {true, 1}}};
  std::array<int, 1000> before{};
  for (std::size_t i = 0; i < before.size(); ++i) before[i] = policy->choose(loads, i * 7919);
  const auto spread = hits_of(*policy, loads, 1000, 1000);
  for (const int hits : spread) EXPECT_NEAR(hits, 250, 80);
  loads[2].eligible = false;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const int now = policy->choose(loads, i * 7919);
    if (before[i] == 2) {
      EXPECT_NE(now, 2);
    } else {
      EXPECT_EQ(now, before[i]);
    }
  }
}

TEST(DispatchPolicies, FirstFreeLoadsTheFirst) {
  const auto policy = find_dispatch_policy("first-free").make();
  Loads loads{{{true, 0}, {true, 0}, {true, 0}, {true, 0}}};
  EXPECT_EQ(hits_of(*policy, loads, 10), (std::array<int, workers>{10, 0, 0, 0}));
  loads[0].open = 1;
  EXPECT_EQ(hits_of(*policy, loads, 10), (std::array<int, workers>{0, 10, 0, 0}));
  loads = {{{true, 3}, {true, 4}, {true, 2}, {true, 2}}};
  EXPECT_EQ(hits_of(*policy, loads, 10), (std::array<int, workers>{0, 0, 10, 0}));
}

TEST(DispatchPolicies, TheSourceIsTheAddressWithoutThePort) {
  const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {.backlog = 8});
  const auto source_through = [&](std::uint32_t host) {
    const SocketAddress from = SocketAddress::loopback_source(host);
    const OwnedFd client(
        checked([&] { return ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); }, "socket"));
    checked([&] { return ::bind(client.get(), from.data(), from.size()); }, "bind {}", from.text());
    const SocketAddress to = SocketAddress::local(listener.get());
    checked([&] { return ::connect(client.get(), to.data(), to.size()); }, "connect {}", to.text());
    EXPECT_TRUE(wait_readable(listener.get()));
    const OwnedFd accepted(checked(
        [&] { return ::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC); }, "accept4"));
    return source_of(accepted.get());
  };
  EXPECT_EQ(source_through(1), source_through(1));
  EXPECT_NE(source_through(1), source_through(2));
}

}  // namespace
}  // namespace c10k::testing
