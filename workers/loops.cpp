#include "workers/loops.hpp"

#include <array>
#include <vector>

#include "ipc/usage.hpp"
#include "workers/completion_echo.hpp"
#include "workers/completion_intake.hpp"
#include "workers/readiness_echo.hpp"

namespace c10k {
namespace {

class ReadinessServing : public Serving {
 public:
  ReadinessServing(const PollerEntry& poller, const EchoOptions& options, ProcessCounters& counters)
      : loop_(poller), service_(loop_, options, counters) {}

  [[nodiscard]] Loop& loop() override { return loop_; }
  [[nodiscard]] EchoService& service() override { return service_; }
  [[nodiscard]] std::unique_ptr<Intake> intake(ConnectionSource& source, bool,
                                               std::function<void()> arrived) override {
    return std::make_unique<ReadinessIntake>(loop_, source, std::move(arrived));
  }

 private:
  EventLoop loop_;
  ReadinessEcho service_;
};

/// What the echo and the intake begin, and all that a worker's ring ever does.
constexpr std::array serving_operations{IORING_OP_RECV + 0, IORING_OP_SEND + 0,
                                        IORING_OP_ACCEPT + 0};

class CompletionServing : public Serving {
 public:
  CompletionServing(const EchoOptions& options, ProcessCounters& counters)
      : loop_(512, 4096, serving_operations), service_(loop_, options, counters) {}

  [[nodiscard]] Loop& loop() override { return loop_; }
  [[nodiscard]] EchoService& service() override { return service_; }
  [[nodiscard]] std::unique_ptr<Intake> intake(ConnectionSource& source, bool unlimited,
                                               std::function<void()> arrived) override {
    AcceptQueueReader* reader = unlimited ? source.sole_reader() : nullptr;
    if (reader == nullptr)
      return std::make_unique<ReadinessIntake>(loop_, source, std::move(arrived));
    return std::make_unique<CompletionIntake>(loop_, source, *reader, std::move(arrived));
  }

 private:
  CompletionLoop loop_;
  CompletionEcho service_;
};

LoopEntry over(const PollerEntry& poller) {
  return {.name = poller.name,
          .summary = poller.summary,
          .exclusive = poller.exclusive,
          .poller = &poller,
          .calls = {poller.calls},
          .probe = [] { return Support{}; },
          .make = [](const LoopEntry& entry, const EchoOptions& options,
                     ProcessCounters& counters) -> std::unique_ptr<Serving> {
            return std::make_unique<ReadinessServing>(*entry.poller, options, counters);
          }};
}

LoopEntry over_completions() {
  return {.name = "uring",
          .summary = "io_uring(7): completions; accept and receive of many shots, provided buffers",
          .calls = {CallGroup::uring},
          .probe = probe_completion_loop,
          .make = [](const LoopEntry&, const EchoOptions& options,
                     ProcessCounters& counters) -> std::unique_ptr<Serving> {
            return std::make_unique<CompletionServing>(options, counters);
          }};
}

}  // namespace

std::span<const LoopEntry> loops() {
  static const auto registry = [] {
    std::vector<LoopEntry> entries;
    for (const PollerEntry& poller : pollers()) entries.push_back(over(poller));
    entries.push_back(over_completions());
    return entries;
  }();
  return registry;
}

const LoopEntry& find_loop(std::string_view name) {
  return find_by_name("loop", loops(), name);
}

}  // namespace c10k
