#include "experiments/handoff_bench/targets.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "experiments/handoff_bench/stats.hpp"

namespace c10k {
namespace {

/// CPU of both sides together per descriptor, both pinned to one core, at most `limit` times that of
/// another cell of the run, or `limit` nanoseconds where there is no other.
struct Target {
  std::string_view subject;
  std::size_t batch;
  double limit;
  std::string_view base;
  std::size_t base_batch;
};

constexpr std::array targets{
    Target{"scm-stream", 64, 1.4, "dup-close", 64},
    Target{"scm-seqpacket", 64, 1.4, "dup-close", 64},
    Target{"scm-dgram", 64, 1.4, "dup-close", 64},
    Target{"pidfd-ring", 64, 1.2, "pidfd-getfd-close", 64},
    // Missed on Linux 6.18 at 1.25 to 1.3: a table that is shared costs 1.07 to 1.1 by itself
    // (dup-close-shared), and the scheduler lets the woken worker in at nearly every batch.
    Target{"shared-table", 64, 1.15, "dup-close", 64},
    Target{"ring", 64, 50, "", 0},
    Target{"uring-msg", 64, 0.5, "scm-seqpacket", 1},
};

/// Why a cell has no value; empty when it has.
std::string missing(const Results& results, std::string_view name, std::size_t batch) {
  const auto subject =
      std::find_if(results.subjects.begin(), results.subjects.end(),
                   [&](const Subject& candidate) { return candidate.entry->name == name; });
  if (subject == results.subjects.end()) return fmt::format("{} is not among the methods", name);
  if (!subject->support.available)
    return fmt::format("{} is unsupported, because {}", name, subject->support.reason);
  const Stream* stream = results.stream(name, Pin::one, batch);
  if (stream == nullptr) return fmt::format("{} was not run on one core by {}", name, batch);
  if (!stream->failure.empty()) return fmt::format("{} failed: {}", name, stream->failure);
  const bool any = std::any_of(stream->blocks.begin(), stream->blocks.end(),
                               [](const auto& block) { return block.has_value(); });
  return any ? "" : fmt::format("{} was interrupted", name);
}

Verdict check(const Target& target, const Results& results, std::uint64_t seed) {
  const bool absolute = target.base.empty();
  const std::string text =
      absolute ? fmt::format("{} by {}: at most {} ns", target.subject, target.batch, target.limit)
               : fmt::format("{} by {}: at most {} x {} by {}", target.subject, target.batch,
                             target.limit, target.base, target.base_batch);
  std::string reason = missing(results, target.subject, target.batch);
  if (reason.empty() && !absolute) reason = missing(results, target.base, target.base_batch);
  if (!reason.empty()) return {text + "; not checked: " + reason};
  const Stream& stream = *results.stream(target.subject, Pin::one, target.batch);
  std::vector<double> values;
  if (absolute) {
    for (const auto& block : stream.blocks) {
      if (block) values.push_back(block->cpu_ns());
    }
  } else {
    values = cpu_ratios(stream, *results.stream(target.base, Pin::one, target.base_batch));
  }
  const Ratio measured(values, std::mt19937_64(seed));
  const bool met = measured.median <= target.limit;
  return {fmt::format("{}; {:.2f} ({:.2f} to {:.2f})", text, measured.median, measured.low,
                      measured.high),
          met ? Verdict::Outcome::met : Verdict::Outcome::missed};
}

}  // namespace

bool is_targeted(std::string_view method) {
  return std::any_of(targets.begin(), targets.end(), [&](const Target& target) {
    return target.subject == method || target.base == method;
  });
}

std::vector<Verdict> check_targets(const Results& results, std::uint64_t seed) {
  std::vector<Verdict> verdicts;
  for (const Target& target : targets) verdicts.push_back(check(target, results, seed));
  return verdicts;
}

}  // namespace c10k
