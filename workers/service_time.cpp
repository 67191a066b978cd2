#include "workers/service_time.hpp"

#include <charconv>
#include <ctime>
#include <vector>

#include "ipc/usage.hpp"

namespace c10k {
namespace {

constexpr double longest_us = 10e6;

std::int64_t thread_cpu_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

/// The numbers between commas; empty when one is none, or outside of what is allowed.
std::vector<double> numbers_in(std::string_view text) {
  std::vector<double> numbers;
  while (true) {
    const std::size_t comma = std::min(text.find(','), text.size());
    double value = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + comma, value);
    if (error != std::errc() || end != text.data() + comma || !(value >= 0 && value <= longest_us))
      return {};
    numbers.push_back(value);
    if (comma == text.size()) return numbers;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace

ServiceTime ServiceTime::parse(std::string_view what, std::string_view text) {
  ServiceTime result;
  result.text_ = text;
  if (text == "0") return result;
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string_view kind = text.substr(0, colon);
  const std::vector<double> numbers =
      colon < text.size() ? numbers_in(text.substr(colon + 1)) : std::vector<double>();
  if (kind == "fixed" && numbers.size() == 1) {
    result.kind_ = Kind::fixed;
    result.first_us_ = numbers[0];
    return result;
  }
  if (kind == "exp" && numbers.size() == 1 && numbers[0] > 0) {
    result.kind_ = Kind::exponential;
    result.first_us_ = numbers[0];
    return result;
  }
  if (kind == "bimodal" && numbers.size() == 3 && numbers[2] <= 1) {
    result.kind_ = Kind::bimodal;
    result.first_us_ = numbers[0];
    result.second_us_ = numbers[1];
    result.second_share_ = numbers[2];
    return result;
  }
  throw UsageError(
      fmt::format("{}: '{}' is not one of 0, fixed:US, exp:US, bimodal:US,US,P "
                  "(US: 0 to 10000000 microseconds, P: 0 to 1)",
                  what, text));
}

void ServiceTime::burn() {
  double us = first_us_;
  switch (kind_) {
    case Kind::none:
      return;
    case Kind::fixed:
      break;
    case Kind::exponential:
      us = std::exponential_distribution<double>(1 / first_us_)(random_);
      break;
    case Kind::bimodal:
      if (std::bernoulli_distribution(second_share_)(random_)) us = second_us_;
      break;
  }
  const std::int64_t end = thread_cpu_ns() + static_cast<std::int64_t>(us * 1000);
  while (thread_cpu_ns() < end) {
  }
}

}  // namespace c10k
