#include "experiments/handoff_bench/bench.hpp"

#include <sched.h>

#include <algorithm>
#include <random>
#include <stdexcept>

#include "experiments/handoff_bench/floors.hpp"
#include "experiments/handoff_bench/stats.hpp"
#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

/// More than any channel is meant to hold.
constexpr std::uint64_t most_in_flight = 100'000;
/// Of a cell whose connections have to be made first, whatever the duration; and of its warm-up.
constexpr std::uint64_t most_consumed = 1024;
constexpr std::uint64_t warm_up_consumed = 128;
/// Of the duration, before each measurement.
constexpr std::int64_t warm_up_share = 5;

/// Confines this process, and the children and threads that it makes meanwhile, to one core.
class Pinned {
 public:
  explicit Pinned(Pin pin) {
    checked([&] { return ::sched_getaffinity(0, sizeof before_, &before_); }, "sched_getaffinity");
    if (pin == Pin::free) return;
    // The last one: the first has most of the interrupts.
    int last = CPU_SETSIZE - 1;
    while (last > 0 && !CPU_ISSET(static_cast<std::size_t>(last), &before_)) --last;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<std::size_t>(last), &one);
    checked([&] { return ::sched_setaffinity(0, sizeof one, &one); }, "sched_setaffinity {}", last);
  }
  ~Pinned() { (void)::sched_setaffinity(0, sizeof before_, &before_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  cpu_set_t before_;
};

/// With the batch as its option, where it has one of that name and allows the value.
ConfiguredMethod configured(const MethodEntry& entry, std::size_t batch) {
  const auto make = [&](const std::string& text) -> ConfiguredMethod {
    MethodOptions options = MethodOptions::parse(text);
    auto method = entry.make(options);
    options.finish();
    return {&entry, options.resolved(), std::move(method)};
  };
  try {
    return make(fmt::format("{}:batch={}", entry.name, batch));
  } catch (const UsageError&) {
    return make(std::string(entry.name));
  }
}

RigSetup setup_for(const Subject& subject, std::size_t batch) {
  return {configured(*subject.entry, batch), batch, subject.floor, subject.alone};
}

/// Warms up, and finds how many the duration takes: no clock is read while it is measured.
std::uint64_t warm_up(const BenchOptions& options, Rig& rig, std::size_t batch) {
  if (rig.consumes()) {
    rig.run(rig.most_prepared(warm_up_consumed));
    return options.descriptors != 0 ? options.descriptors : most_consumed;
  }
  const std::int64_t warm_up_ns = options.duration_ns / warm_up_share;
  std::uint64_t count = batch;
  std::int64_t took_ns = 0;
  while (true) {
    const std::int64_t began_ns = monotonic_ns();
    rig.run(count);
    took_ns = std::max<std::int64_t>(1, monotonic_ns() - began_ns);
    if (took_ns >= warm_up_ns / 2 || (options.descriptors != 0 && count >= options.descriptors / 4))
      break;
    count *= 2;
  }
  if (options.descriptors != 0) return options.descriptors;
  count = static_cast<std::uint64_t>(static_cast<double>(count) *
                                     static_cast<double>(options.duration_ns) /
                                     static_cast<double>(took_ns));
  return std::max<std::uint64_t>(1, count / batch) * batch;
}

Sample sample_of(const BenchOptions& options, const Subject& subject, const Stream& stream) {
  const Pinned pinned(stream.pin);
  Rig rig(setup_for(subject, stream.batch));
  const std::uint64_t count = warm_up(options, rig, stream.batch);
  std::int64_t wall_ns = 0;
  Usage sender;
  Usage receiver;
  // At once, unless connections have to be prepared in between.
  for (std::uint64_t left = count; left != 0;) {
    const std::uint64_t now = rig.most_prepared(left);
    rig.prepare(now);
    const Usage sender_before = rig.sender_usage();
    const Usage receiver_before = rig.receiver_usage();
    const std::int64_t began_ns = monotonic_ns();
    rig.run(now);
    wall_ns += monotonic_ns() - began_ns;
    receiver += rig.receiver_usage() - receiver_before;
    sender += rig.sender_usage() - sender_before;
    left -= now;
  }
  rig.finish();
  const auto each = [&](std::int64_t value) {
    return static_cast<double>(value) / static_cast<double>(count);
  };
  return {count,
          each(wall_ns),
          each(sender.cpu_ns),
          each(receiver.cpu_ns),
          each(sender.switches),
          each(receiver.switches)};
}

void add_latencies(const BenchOptions& options, const Subject& subject, Latency& latency) {
  const Pinned pinned(latency.pin);
  Rig rig(setup_for(subject, 1));
  const auto measured = rig.latencies_ns(options.latencies);
  rig.finish();
  const std::vector<double> values(measured.begin(), measured.end());
  latency.p50_ns.push_back(quantile(values, 0.5));
  latency.p99_ns.push_back(quantile(values, 0.99));
}

void measure_constant(const Subject& subject, Constant& constant) {
  // The kernel tells what a full channel is without regard to cores; on one the counts vary least.
  const Pinned pinned(Pin::one);
  RigSetup setup = setup_for(subject, constant.batch);
  constant.resolved = setup.method.resolved;
  if (!subject.floor) {
    Rig rig(std::move(setup));
    constant.filled = rig.fill(most_in_flight);
    rig.finish();
  }
  // Whole batches, and at least four, but no more than the smallest channel holds (278 messages).
  const std::uint64_t descriptors = constant.batch * std::max<std::size_t>(4, 256 / constant.batch);
  constant.calls = count_calls(setup_for(subject, constant.batch), descriptors);
}

std::vector<Subject> subjects_of(const BenchOptions& options) {
  std::vector<Subject> subjects;
  for (const Floor& floor : floors()) subjects.push_back({&floor.entry, true, floor.alone, {}});
  for (const std::string& name : options.methods)
    subjects.push_back({&find_handoff_method(name), false, false, {}});
  for (Subject& subject : subjects) {
    try {
      subject.support = configured(*subject.entry, 1).method->probe();
    } catch (const std::exception& error) {
      subject.support = {false, error.what()};
    }
  }
  return subjects;
}

}  // namespace

const Stream* Results::stream(std::string_view subject, Pin pin, std::size_t batch) const {
  for (const Stream& stream : streams) {
    if (subjects[stream.subject].entry->name == subject && stream.pin == pin &&
        stream.batch == batch)
      return &stream;
  }
  return nullptr;
}

std::vector<double> cpu_ratios(const Stream& stream, const Stream& base) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(stream.blocks.size(), base.blocks.size()); ++i) {
    if (stream.blocks[i] && base.blocks[i])
      ratios.push_back(stream.blocks[i]->cpu_ns() / base.blocks[i]->cpu_ns());
  }
  return ratios;
}

Results run_bench(const BenchOptions& options,
                  const std::function<bool(std::size_t done, std::size_t all)>& go_on) {
  Results results;
  results.subjects = subjects_of(options);
  for (std::size_t i = 0; i < results.subjects.size(); ++i) {
    const Subject& subject = results.subjects[i];
    if (!subject.support.available) continue;
    for (const std::size_t batch : options.batches) {
      results.constants.push_back({.subject = i, .batch = batch});
      for (const Pin pin : options.pins)
        results.streams.push_back({.subject = i, .pin = pin, .batch = batch});
    }
    if (subject.alone || options.latencies == 0) continue;
    for (const Pin pin : options.pins) results.latencies.push_back({.subject = i, .pin = pin});
  }

  std::size_t done = 0;
  const std::size_t cells = results.streams.size() + results.latencies.size();
  const std::size_t all = results.constants.size() + options.repetitions * cells;
  // A cell that fails is a row with its reason, and it is not tried again.
  const auto attempt = [&](std::string& failure, auto&& measure) {
    if (!failure.empty() || results.interrupted) return;
    results.interrupted = !go_on(done++, all);
    if (results.interrupted) return;
    try {
      measure();
    } catch (const std::exception& error) {
      failure = error.what();
    }
  };
  for (Constant& constant : results.constants) {
    attempt(constant.failure,
            [&] { measure_constant(results.subjects[constant.subject], constant); });
  }
  std::mt19937_64 random(options.seed);
  std::vector<std::size_t> order(cells);
  for (std::size_t i = 0; i < cells; ++i) order[i] = i;
  for (std::size_t block = 0; block < options.repetitions; ++block) {
    std::shuffle(order.begin(), order.end(), random);
    for (const std::size_t cell : order) {
      if (cell < results.streams.size()) {
        Stream& stream = results.streams[cell];
        stream.blocks.resize(block + 1);
        attempt(stream.failure, [&] {
          stream.blocks[block] = sample_of(options, results.subjects[stream.subject], stream);
        });
      } else {
        Latency& latency = results.latencies[cell - results.streams.size()];
        attempt(latency.failure,
                [&] { add_latencies(options, results.subjects[latency.subject], latency); });
      }
    }
  }
  return results;
}

}  // namespace c10k
