#include "experiments/client/results.hpp"

#include <fmt/format.h>
#include <string.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>

namespace c10k {

Outcome outcome_of_errno(int error) {
  switch (error) {
    case ECONNABORTED:
    case ECONNRESET:
    case EPIPE:  // The reset came after the peer's FIN, or it came before our send.
      return Outcome::reset;
    case ECONNREFUSED:
      return Outcome::refused;
    case ETIMEDOUT:  // The kernel gave up: on the SYN, or on data that nobody acknowledged.
      return Outcome::timeout;
    default:  // EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENETUNREACH, EACCES, ...: nothing of the
              // server.
      return Outcome::local_error;
  }
}

std::string errno_name(int error) {
  const char* name = ::strerrorname_np(error);
  return name != nullptr ? name : fmt::format("{}", error);
}

std::uint64_t PhaseTally::attempts() const {
  return std::accumulate(outcomes.begin(), outcomes.end(), std::uint64_t{0});
}

void PhaseTally::merge(const PhaseTally& other) {
  for (std::size_t i = 0; i < outcomes.size(); ++i) outcomes[i] += other.outcomes[i];
  opened += other.opened;
  latency.merge(other.latency);
  service_time.merge(other.service_time);
  connect.merge(other.connect);
  first_echo.merge(other.first_echo);
  echo.merge(other.echo);
}

void Tally::add(const Attempt& attempt, bool open_loop) {
  PhaseTally& phase = phases_[attempt.phase];
  const bool opened = attempt.connected_ns != 0;
  ++attempts_;
  ++phase.outcomes[static_cast<std::size_t>(attempt.outcome)];
  if (attempt.error > 0)
    ++errors_[std::min(static_cast<std::size_t>(attempt.error), max_errno - 1)];
  if (opened) {
    ++phase.opened;
    phase.connect.add(attempt.connected_ns - attempt.started_ns);
  }
  if (attempt.outcome != Outcome::echoed) return;
  phase.latency.add(attempt.echoed_ns - attempt.intended_ns);
  if (open_loop) phase.service_time.add(attempt.echoed_ns - attempt.started_ns);
  if (opened) phase.first_echo.add(attempt.echoed_ns - attempt.started_ns);
  phase.echo.add(attempt.echoed_ns - (opened ? attempt.connected_ns : attempt.started_ns));
}

void Tally::merge(const Tally& other) {
  attempts_ += other.attempts_;
  for (std::size_t i = 0; i < phases_.size(); ++i) {
    if (other.phases_[i].attempts() != 0) phases_[i].merge(other.phases_[i]);
  }
  for (std::size_t i = 0; i < errors_.size(); ++i) errors_[i] += other.errors_[i];
}

std::uint64_t Tally::connections_opened() const {
  std::uint64_t total = 0;
  for (const PhaseTally& phase : phases_) total += phase.opened;
  return total;
}

std::uint64_t Tally::count(Outcome outcome) const {
  std::uint64_t total = 0;
  for (const PhaseTally& phase : phases_) total += phase.count(outcome);
  return total;
}

bool Tally::adds_up() const {
  std::uint64_t total = 0;
  for (const PhaseTally& phase : phases_) {
    total += phase.attempts();
    const std::uint64_t echoed = phase.count(Outcome::echoed);
    if (phase.latency.count() != echoed || phase.echo.count() != echoed) return false;
    if (phase.connect.count() != phase.opened) return false;
  }
  return total == attempts_;
}

PhaseTally Tally::all_phases() const {
  PhaseTally all;
  for (const PhaseTally& phase : phases_) all.merge(phase);
  return all;
}

nlohmann::json Tally::outcomes_json() const {
  nlohmann::json json;
  for (std::size_t i = 0; i < outcome_names.size(); ++i) {
    json[std::string(outcome_names[i])] = count(static_cast<Outcome>(i));
  }
  return json;
}

nlohmann::json Tally::errors_json() const {
  auto json = nlohmann::json::object();
  for (std::size_t error = 0; error < errors_.size(); ++error) {
    if (errors_[error] != 0) json[errno_name(static_cast<int>(error))] = errors_[error];
  }
  return json;
}

void IntervalTally::merge(const IntervalTally& other) {
  echoed += other.echoed;
  failed += other.failed;
  opened += other.opened;
  latency.merge(other.latency);
}

namespace {

constexpr std::size_t max_shards = 64;

}  // namespace

SharedBooks::SharedBooks(std::size_t writers, double expected_s, bool open_loop,
                         OutcomeSet intended)
    : open_loop_(open_loop),
      intended_(intended),
      interval_ns_(static_cast<std::int64_t>(std::ceil(expected_s / max_intervals)) *
                   1'000'000'000),
      shards_(std::min(writers, max_shards)),
      series_(shards_.size() * max_intervals * sizeof(Interval)) {}

SharedBooks::Interval* SharedBooks::row(std::size_t shard) const {
  return static_cast<Interval*>(series_.data()) + shard * max_intervals;
}

void SharedBooks::add(std::size_t writer, const Attempt& attempt, std::int64_t run_ns) const {
  const std::size_t number = writer % shards_.size();
  Shard& shard = shards_[number];
  const auto index =
      std::min(static_cast<std::size_t>(std::max<std::int64_t>(run_ns, 0) / interval_ns_),
               max_intervals - 1);
  const std::lock_guard lock(shard.mutex);
  shard.tally.add(attempt, open_loop_);
  Interval* interval = row(number) + index;
  if (!interval->used) {
    new (interval) Interval();
    interval->used = true;
  }
  shard.intervals = std::max(shard.intervals, index + 1);
  IntervalTally& tally = interval->tally;
  if (attempt.connected_ns != 0) ++tally.opened;
  if (attempt.outcome == Outcome::echoed) {
    ++tally.echoed;
    tally.latency.add(attempt.echoed_ns - attempt.intended_ns);
  }
  if (!intended_.contains(attempt.outcome)) {
    ++tally.failed;
    ++shard.failed;
  }
}

Tally SharedBooks::total() const {
  Tally all;
  for (const Shard& shard : shards_.all()) {
    const std::lock_guard lock(shard.mutex);
    all.merge(shard.tally);
  }
  return all;
}

SharedBooks::Counts SharedBooks::counts() const {
  Counts counts;
  for (const Shard& shard : shards_.all()) {
    const std::lock_guard lock(shard.mutex);
    counts.attempts += shard.tally.attempts();
    counts.failed += shard.failed;
  }
  return counts;
}

std::size_t SharedBooks::intervals() const {
  std::size_t most = 0;
  for (const Shard& shard : shards_.all()) {
    const std::lock_guard lock(shard.mutex);
    most = std::max(most, shard.intervals);
  }
  return most;
}

IntervalTally SharedBooks::interval(std::size_t index) const {
  IntervalTally all;
  for (std::size_t number = 0; number < shards_.size(); ++number) {
    const std::lock_guard lock(shards_[number].mutex);
    const Interval* interval = row(number) + index;
    if (interval->used) all.merge(interval->tally);
  }
  return all;
}

}  // namespace c10k
