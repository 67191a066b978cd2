// The acceptor's books against workers that write anything into their counters: which connections they have
// received, refused and ended, in any number and order, beside workers that are honest, that die, and whose
// channels are full. No copy is closed twice or kept for ever: at any time the acceptor has exactly one
// descriptor for each connection that is in the hand-off or retained. The report takes the counters as they are.
#include "acceptor/dispatcher.hpp"

#include "acceptor/report.hpp"
#include "ipc/command_line.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace c10k;
using fuzz::expect;

constexpr std::size_t workers = 3;
constexpr std::size_t most_connections = 48;

/// Those whose choice an input can repeat.
constexpr std::array policies{"round-robin", "least-connections", "source-hash", "first-free"};

/// What a sink has taken, so that its worker can be honest about it.
class Sink : public ConnectionSink {
 public:
  SendResult send(std::span<const Handover> batch) override {
    const std::size_t taken = state == Channel::more ? batch.size() : std::min(batch.size(), room);
    for (const Handover& one : batch.first(taken)) copies.push_back(one.tag.copy);
    return {taken, taken == batch.size() ? Channel::more : state,
            state == Channel::starved ? EMFILE : 0};
  }
  [[nodiscard]] int writable_fd() const override { return -1; }
  [[nodiscard]] bool take_back(const Handover&) override { return fit_again; }
  [[nodiscard]] bool drained() const override { return fit_again; }

  std::vector<std::uint32_t> copies;
  std::size_t told = 0;   // of them, as consumed
  std::size_t ended = 0;  // of them
  Channel state = Channel::more;
  std::size_t room = 0;
  bool fit_again = true;
};

using Memory = std::unique_ptr<SharedArray<ProcessCounters>>;

/// To make it for each worker anew would take most of the time.
std::vector<Memory>& spare_memory() {
  static std::vector<Memory> spare;
  return spare;
}
Memory fresh_memory() {
  if (spare_memory().empty()) return std::make_unique<SharedArray<ProcessCounters>>(1);
  Memory memory = std::move(spare_memory().back());
  spare_memory().pop_back();
  new (&(*memory)[0]) ProcessCounters();
  return memory;
}

class Scene {
 public:
  explicit Scene(fuzz::Input& input)
      : policy_(find_dispatch_policy(policies[input.byte() % policies.size()])),
        loop_(poller()),
        facts_{.shared_channel = input.byte() % 2 == 1},
        retain_(std::array{Retain::none, Retain::untouched,
                           Retain::between_requests}[input.byte() % 3]),
        most_retained_(input.byte() % 16),
        dispatcher_(loop_, workers, policy_, facts_, retain_, most_retained_) {
    for (std::size_t slot = 0; slot < workers; ++slot) start(slot);
  }
  ~Scene() {
    for (const auto& worker : workers_) end_worker(*worker);
  }

  void act(fuzz::Input& input) {
    WorkerProcess& worker = *workers_[input.byte() % workers];
    Sink& sink = *sinks_[worker.slot];
    ProcessCounters& counters = worker.counters();
    switch (input.byte() % 12) {
      case 0:
      case 1:
        for (int count = 1 + input.byte() % 8; count > 0 && last_id_ < most_connections; --count)
          dispatcher_.add(
              {duplicate(fuzz::some_descriptor(input.byte() < 200 ? 0 : 2)), {.id = ++last_id_}});
        return dispatcher_.flush();
      case 2:
      case 3:
        return dispatcher_.collect();
      case 4:  // honest
        if (sink.told == sink.copies.size()) return;
        tell(counters, sink.copies[sink.told++] | (input.byte() < 64 ? refused_flag : 0));
        return;
      case 5:
        if (sink.ended == sink.told ||
            counters.ended.get() - counters.ended_seen.get() >= max_outstanding)
          return;
        end(counters, sink.copies[sink.ended++]);
        return;
      case 6:  // a lie that looks like the truth
        input.byte() < 128 ? tell(counters, number(input)) : end(counters, number(input));
        return;
      case 7: {  // anything
        auto* const begin = reinterpret_cast<std::byte*>(&counters);
        const std::byte* const base =
            std::array{begin, reinterpret_cast<std::byte*>(&counters.hand_off),
                       reinterpret_cast<std::byte*>(&counters.at_ready)}[input.byte() % 3];
        const std::size_t at = (static_cast<std::size_t>(base - begin) +
                                input.integer<std::uint16_t>() * std::size_t{8}) %
                               sizeof(ProcessCounters);
        const auto bytes = input.bytes(16);
        std::memcpy(begin + at, bytes.data(), std::min(bytes.size(), sizeof(ProcessCounters) - at));
        return;
      }
      case 8:
        end_worker(worker);
        return start(worker.slot);
      case 9:
        sink.state = std::array{Channel::more, Channel::would_block, Channel::starved,
                                Channel::closed}[input.byte() % 4];
        sink.room = input.byte() % 4;
        sink.fit_again = input.byte() % 2 == 0;
        return;
      case 10:
        return counter(counters, input.byte()).set(number(input));
      default:
        switch (input.byte() % 8) {
          case 0:
            return dispatcher_.release_retained();
          case 1:
            return dispatcher_.abandon();
          case 2:
            return dispatcher_.when_empty([] {});
          case 3:
            return report();
          default:
            return;
        }
    }
  }

  [[nodiscard]] std::size_t kept() const {
    return dispatcher_.in_hand_off() + dispatcher_.retained();
  }

 private:
  static const PollerEntry& poller() {
    for (const PollerEntry& entry : pollers()) {
      if (entry.name == "epoll") return entry;
    }
    std::abort();
  }

  void end_worker(WorkerProcess& worker) {
    dispatcher_.worker_ended(worker);
    spare_memory().push_back(std::move(worker.shared));
  }
  void start(std::size_t slot) {
    auto worker = std::make_unique<WorkerProcess>();
    auto sink = std::make_unique<Sink>();
    worker->slot = slot;
    worker->shared = fresh_memory();
    worker->ready = true;
    sinks_[slot] = sink.get();
    worker->sink = std::move(sink);
    workers_[slot] = std::move(worker);
    dispatcher_.worker_started(*workers_[slot]);
    dispatcher_.worker_ready(*workers_[slot]);
  }
  static void tell(ProcessCounters& counters, std::uint64_t record) {
    counters.consumed_copies[(counters.consumed.get() + 1) % max_outstanding].set(record);
    counters.consumed.add();
  }
  static void end(ProcessCounters& counters, std::uint64_t number) {
    counters.ended_copies[(counters.ended.get() + 1) % max_outstanding].set(number);
    counters.ended.add();
  }
  /// Mostly small: as the acceptor's numbers and counts are.
  static std::uint64_t number(fuzz::Input& input) {
    const std::uint8_t first = input.byte();
    return first < 224 ? first % 64U : input.integer<std::uint64_t>();
  }
  static Counter& counter(ProcessCounters& counters, std::uint8_t which) {
    const std::array all{&counters.consumed,      &counters.refused, &counters.finished,
                         &counters.receive_steps, &counters.ended,   &counters.ended_seen,
                         &counters.received,      &counters.released};
    return *all[which % all.size()];
  }
  void report() {
    if (std::exchange(reported_, true)) return;  // once is slow enough
    ServerReport report;
    for (const auto& worker : workers_) {
      ProcessTotals totals;
      totals.role = "worker";
      totals.add(worker->counters(), true);
      totals.add(usage_, worker->counters().at_ready);
      report.processes.push_back(totals);
    }
    (void)json_text(report.to_json());
  }

  const PolicyEntry& policy_;
  EventLoop loop_;
  MethodFacts facts_;
  Retain retain_;
  std::size_t most_retained_;
  rusage usage_{};
  std::array<Sink*, workers> sinks_{};
  std::array<std::unique_ptr<WorkerProcess>, workers> workers_;
  Dispatcher dispatcher_;
  std::uint64_t last_id_ = 0;
  bool reported_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  (void)fuzz::some_descriptor(0);
  const fuzz::NothingLeftOpen check(128);
  fuzz::Input input(data, size);
  Scene scene(input);
  const std::size_t without = fuzz::OpenDescriptors(128).count();
  for (int i = 0; i < 256 && !input.empty(); ++i) {
    scene.act(input);
    if (i % 8 == 0)
      expect(fuzz::OpenDescriptors(128).count() == without + scene.kept(),
             "a descriptor for each connection");
  }
  expect(fuzz::OpenDescriptors(128).count() == without + scene.kept(),
         "a descriptor for each connection");
  return 0;
}
