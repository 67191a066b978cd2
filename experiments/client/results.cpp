#include "experiments/client/results.hpp"

#include <fmt/format.h>
#include <string.h>

#include <algorithm>
#include <cerrno>
#include <memory>
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

void Tally::add(const Attempt& attempt) {
  PhaseTally& phase = phases_[attempt.phase];
  ++attempts_;
  ++phase.outcomes[static_cast<std::size_t>(attempt.outcome)];
  if (attempt.outcome == Outcome::echoed) phase.latency.add(attempt.latency_ns);
  if (attempt.error != 0) ++errors_[attempt.error];
  if (attempt.connect_ns >= 0) {
    ++connections_opened_;
    connect_latency_.add(attempt.connect_ns);
  }
}

void Tally::merge(const Tally& other) {
  attempts_ += other.attempts_;
  connections_opened_ += other.connections_opened_;
  for (std::size_t i = 0; i < phases_.size(); ++i) {
    for (std::size_t k = 0; k < outcome_names.size(); ++k) {
      phases_[i].outcomes[k] += other.phases_[i].outcomes[k];
    }
    phases_[i].latency.merge(other.phases_[i].latency);
  }
  connect_latency_.merge(other.connect_latency_);
  for (const auto& [error, count] : other.errors_) errors_[error] += count;
}

std::uint64_t Tally::count(Outcome outcome) const {
  std::uint64_t total = 0;
  for (const PhaseTally& phase : phases_) total += phase.count(outcome);
  return total;
}

bool Tally::adds_up() const {
  std::uint64_t total = 0;
  for (const PhaseTally& phase : phases_) {
    total = std::accumulate(phase.outcomes.begin(), phase.outcomes.end(), total);
    if (phase.latency.count() != phase.count(Outcome::echoed)) return false;
  }
  return total == attempts_ && connect_latency_.count() == connections_opened_;
}

LatencyHistogram Tally::latency() const {
  LatencyHistogram all;
  for (const PhaseTally& phase : phases_) all.merge(phase.latency);
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
  for (const auto& [error, count] : errors_) json[errno_name(error)] = count;
  return json;
}

SharedTally::SharedTally(std::size_t writers, std::size_t phases) : phases_(phases) {
  constexpr std::size_t most = 64;
  for (std::size_t i = 0; i < std::min(writers, most); ++i) {
    shards_.push_back(std::make_unique<Shard>(phases));
  }
}

void SharedTally::add(std::size_t writer, const Attempt& attempt) {
  Shard& shard = *shards_[writer % shards_.size()];
  const std::lock_guard lock(shard.mutex);
  shard.tally.add(attempt);
}

Tally SharedTally::total() const {
  Tally all(phases_);
  for (const auto& shard : shards_) {
    const std::lock_guard lock(shard->mutex);
    all.merge(shard->tally);
  }
  return all;
}

SharedTally::Counts SharedTally::counts() const {
  Counts counts;
  for (const auto& shard : shards_) {
    const std::lock_guard lock(shard->mutex);
    counts.attempts += shard->tally.attempts();
    counts.failed += shard->tally.failed();
  }
  return counts;
}

}  // namespace c10k
