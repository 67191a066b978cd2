// --service-time: work burnt for each request, for the study of dispatch under load.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>

namespace c10k {

/// How much CPU a request costs, beside its echo. A value; copies draw their own numbers only after
/// seed().
class ServiceTime {
 public:
  /// None.
  ServiceTime() = default;
  /// Reads `0`, `fixed:US`, `exp:US` (mean) or `bimodal:US,US,P` (the second with probability P), in
  /// microseconds up to ten seconds. Throws UsageError naming `what`.
  static ServiceTime parse(std::string_view what, std::string_view text);

  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] bool none() const { return kind_ == Kind::none; }
  void seed(std::uint32_t seed) { random_.seed(seed); }

  /// Burns the CPU of one request: time of this thread's own (CLOCK_THREAD_CPUTIME_ID), so that being
  /// preempted does not shorten the work.
  void burn();

 private:
  enum class Kind : std::uint8_t { none, fixed, exponential, bimodal };

  std::string text_ = "0";
  Kind kind_ = Kind::none;
  double first_us_ = 0;
  double second_us_ = 0;
  double second_share_ = 0;
  std::minstd_rand random_;
};

}  // namespace c10k
