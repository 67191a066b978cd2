#include "acceptor/dispatch_policy.hpp"

#include <array>

#include "ipc/usage.hpp"

namespace c10k {
namespace {

class RoundRobin : public DispatchPolicy {
 public:
  int choose(std::span<const WorkerLoad> workers) override {
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
  int choose(std::span<const WorkerLoad> workers) override {
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

template <typename Policy>
std::unique_ptr<DispatchPolicy> make() {
  return std::make_unique<Policy>();
}

}  // namespace

std::span<const PolicyEntry> dispatch_policies() {
  static const std::array registry{
      PolicyEntry{"round-robin", "each worker in turn", make<RoundRobin>},
      PolicyEntry{"least-connections", "the worker with the fewest open connections",
                  make<LeastConnections>},
  };
  return registry;
}

const PolicyEntry& find_dispatch_policy(std::string_view name) {
  return find_by_name("dispatch policy", dispatch_policies(), name);
}

}  // namespace c10k
