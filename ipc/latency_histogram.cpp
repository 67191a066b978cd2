#include "ipc/latency_histogram.hpp"

#include <boost/histogram/algorithm/sum.hpp>
#include <boost/histogram/indexed.hpp>
#include <boost/histogram/unsafe_access.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

namespace c10k {
namespace bh = boost::histogram;

LatencyHistogram::LatencyHistogram()
    : counts_(std::make_tuple(Axis(buckets, 1.0, 1e11)), Storage()) {}

void LatencyHistogram::merge(const LatencyHistogram& other) {
  // Count by count: `other` may lie in memory that a process writes which is not trusted, and then
  // neither its axis nor its size may be believed.
  auto& mine = bh::unsafe_access::storage(counts_);
  const auto& theirs = bh::unsafe_access::storage(other.counts_);
  for (std::size_t i = 0; i < buckets + 2; ++i) mine[i] += theirs[i];
  max_ns_ = std::max(max_ns_, other.max_ns_);
}

std::uint64_t LatencyHistogram::count() const {
  std::uint64_t total = 0;
  for (const auto& cell : bh::indexed(counts_, bh::coverage::all)) total += *cell;
  return total;
}

namespace {

/// The middle of a bucket on the log scale; the value above the axis is only known by its bound.
template <typename Cell>
double middle_ns(const Cell& cell) {
  const auto bin = cell.bin(0);
  if (std::isinf(bin.upper())) return bin.lower();
  return std::sqrt(bin.lower() * bin.upper());
}

}  // namespace

double LatencyHistogram::quantile_ns(double fraction) const {
  const std::uint64_t total = count();
  if (total == 0) return 0;
  const auto rank = std::max<std::uint64_t>(
      1, static_cast<std::uint64_t>(std::min(
             std::ceil(static_cast<long double>(fraction) * static_cast<long double>(total)),
             static_cast<long double>(total))));
  std::uint64_t seen = 0;
  for (const auto& cell : bh::indexed(counts_, bh::coverage::all)) {
    seen += *cell;
    // A bucket's middle may lie above the largest value in it.
    if (seen >= rank)
      return std::min(middle_ns(cell), static_cast<double>(std::max<std::int64_t>(max_ns_, 1)));
  }
  return static_cast<double>(max_ns_);
}

std::vector<LatencyHistogram::Bucket> LatencyHistogram::filled() const {
  std::vector<Bucket> all;
  for (const auto& cell : bh::indexed(counts_, bh::coverage::all)) {
    if (*cell != 0) all.push_back({middle_ns(cell), static_cast<std::uint64_t>(*cell)});
  }
  return all;
}

nlohmann::json LatencyHistogram::to_json(bool with_buckets) const {
  const auto us = [](double ns) { return std::round(ns) / 1000; };
  nlohmann::json json = {{"count", count()},
                         {"p50_us", us(quantile_ns(0.50))},
                         {"p90_us", us(quantile_ns(0.90))},
                         {"p99_us", us(quantile_ns(0.99))},
                         {"p99_9_us", us(quantile_ns(0.999))},
                         {"p99_99_us", us(quantile_ns(0.9999))},
                         {"max_us", us(static_cast<double>(max_ns_))}};
  if (with_buckets) {
    auto list = nlohmann::json::array();
    for (const Bucket& bucket : filled()) {
      list.push_back({std::round(bucket.middle_ns), bucket.count});
    }
    json["buckets_ns"] = std::move(list);
  }
  return json;
}

}  // namespace c10k
