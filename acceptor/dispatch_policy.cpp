#include "acceptor/dispatch_policy.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <random>
#include <vector>

#include "ipc/usage.hpp"

namespace c10k {
namespace {

using Workers = std::span<const WorkerLoad>;

/// Mixes all bits into all bits (the finalizer of MurmurHash3).
std::uint64_t mix(std::uint64_t value) {
  value = (value ^ (value >> 33)) * 0xff51afd7ed558ccdULL;
  value = (value ^ (value >> 33)) * 0xc4ceb9fe1a85ec53ULL;
  return value ^ (value >> 33);
}

class RoundRobin : public DispatchPolicy {
 public:
  int choose(Workers workers, std::uint64_t) override {
    for (std::size_t tried = 0; tried < workers.size(); ++tried) {
      next_ = (next_ + 1) % workers.size();
      if (workers[next_].eligible) return static_cast<int>(next_);
    }
    return -1;
  }

 private:
  std::size_t next_ = static_cast<std::size_t>(-1);
};

/// Ties go round, or the first of idle workers would get every connection.
class LeastConnections : public DispatchPolicy {
 public:
  int choose(Workers workers, std::uint64_t) override {
    int best = -1;
    for (std::size_t i = 1; i <= workers.size(); ++i) {
      const std::size_t at = (last_ + i) % workers.size();
      const bool better =
          best < 0 || workers[at].open < workers[static_cast<std::size_t>(best)].open;
      if (workers[at].eligible && better) best = static_cast<int>(at);
    }
    if (best >= 0) last_ = static_cast<std::size_t>(best);
    return best;
  }

 private:
  std::size_t last_ = 0;
};

/// Looks at two whatever the number of workers, and does not send everybody to the one that was
/// least loaded when last looked at (Mitzenmacher, The Power of Two Choices).
class RandomTwo : public DispatchPolicy {
 public:
  int choose(Workers workers, std::uint64_t) override {
    eligible_.clear();
    for (std::size_t i = 0; i < workers.size(); ++i) {
      if (workers[i].eligible) eligible_.push_back(i);
    }
    if (eligible_.empty()) return -1;
    const std::size_t first =
        std::uniform_int_distribution<std::size_t>(0, eligible_.size() - 1)(random_);
    if (eligible_.size() == 1) return static_cast<int>(eligible_[first]);
    // Another one, each with the same chance.
    std::size_t second =
        std::uniform_int_distribution<std::size_t>(0, eligible_.size() - 2)(random_);
    if (second >= first) ++second;
    const std::size_t a = eligible_[first];
    const std::size_t b = eligible_[second];
    return static_cast<int>(workers[b].open < workers[a].open ? b : a);
  }

 private:
  std::minstd_rand random_{std::random_device{}()};
  std::vector<std::size_t> eligible_;
};

/// The eligible worker with the highest hash of it and the client's address (rendezvous hashing):
/// a worker's death moves only its own clients.
class SourceHash : public DispatchPolicy {
 public:
  int choose(Workers workers, std::uint64_t source) override {
    int best = -1;
    std::uint64_t best_weight = 0;
    for (std::size_t i = 0; i < workers.size(); ++i) {
      const std::uint64_t weight = mix(source + i * 0x9e3779b97f4a7c15ULL);
      if (!workers[i].eligible || (best >= 0 && weight <= best_weight)) continue;
      best = static_cast<int>(i);
      best_weight = weight;
    }
    return best;
  }
};

/// Always looks from the first one: the first without a connection, and when all have some the one
/// with the fewest. Loads the first ones most (Stevens, UNPv1, ch. 30).
class FirstFree : public DispatchPolicy {
 public:
  int choose(Workers workers, std::uint64_t) override {
    int best = -1;
    for (std::size_t i = 0; i < workers.size(); ++i) {
      if (!workers[i].eligible) continue;
      if (best < 0 || workers[i].open < workers[static_cast<std::size_t>(best)].open)
        best = static_cast<int>(i);
      if (workers[i].open == 0) break;
    }
    return best;
  }
};

template <typename Policy>
std::unique_ptr<DispatchPolicy> make() {
  return std::make_unique<Policy>();
}

}  // namespace

std::uint64_t source_of(int connection) {
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  if (::getpeername(connection, reinterpret_cast<sockaddr*>(&peer), &size) != 0) return 0;
  if (peer.ss_family == AF_INET) {
    sockaddr_in address{};
    std::memcpy(&address, &peer, sizeof address);
    return mix(address.sin_addr.s_addr);
  }
  std::array<std::uint64_t, 2> halves{};
  if (peer.ss_family == AF_INET6) {
    sockaddr_in6 address{};
    std::memcpy(&address, &peer, sizeof address);
    std::memcpy(halves.data(), &address.sin6_addr, sizeof halves);
  }
  return mix(halves[0] ^ mix(halves[1]));
}

std::span<const PolicyEntry> dispatch_policies() {
  static const std::array registry{
      PolicyEntry{
          .name = "round-robin", .summary = "each worker in turn", .make = make<RoundRobin>},
      PolicyEntry{.name = "least-connections",
                  .summary = "the worker with the fewest open connections",
                  .uses_load = true,
                  .make = make<LeastConnections>},
      PolicyEntry{.name = "random-two",
                  .summary = "of two workers chosen at random, the one with fewer connections",
                  .uses_load = true,
                  .make = make<RandomTwo>},
      PolicyEntry{.name = "source-hash",
                  .summary = "by the client's address, so that a client stays with its worker",
                  .uses_source = true,
                  .make = make<SourceHash>},
      PolicyEntry{.name = "first-free",
                  .summary = "the first worker without a connection, else the one with fewest",
                  .uses_load = true,
                  .make = make<FirstFree>},
  };
  return registry;
}

const PolicyEntry& find_dispatch_policy(std::string_view name) {
  return find_by_name("dispatch policy", dispatch_policies(), name);
}

}  // namespace c10k
