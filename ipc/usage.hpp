// Text that a person typed: one-line errors that say what is wrong and what is allowed.
#pragma once

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace c10k {

/// Bad usage of a program: what() is the one line to show; the program exits with 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Reads a whole decimal number within [low, high], or throws UsageError naming `what`.
template <typename Integer>
[[nodiscard]] Integer parse_integer(std::string_view what, std::string_view text, Integer low,
                                    Integer high) {
  Integer value{};
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error == std::errc::invalid_argument || stopped != end) {
    throw UsageError(
        fmt::format("{}: '{}' is not a whole number; give {} to {}", what, text, low, high));
  }
  if (error == std::errc::result_out_of_range || value < low || value > high) {
    throw UsageError(fmt::format("{}: {} is out of range; give {} to {}", what, text, low, high));
  }
  return value;
}

/// Reads a decimal number of seconds within [low, high] and returns nanoseconds.
[[nodiscard]] std::int64_t parse_seconds(std::string_view what, std::string_view text, double low,
                                         double high);

/// Returns `text` if it is one of `allowed`, else throws UsageError listing them.
[[nodiscard]] std::string parse_choice(std::string_view what, std::string_view text,
                                       const std::vector<std::string>& allowed);

/// The names in a registry, as one text.
template <typename Entry>
[[nodiscard]] std::string names_of(std::span<const Entry> registry, std::string_view separator) {
  std::string names;
  for (const Entry& entry : registry)
    names += fmt::format("{}{}", names.empty() ? "" : separator, entry.name);
  return names;
}

/// The entry called `name` in a registry, whose entries have a `name`. Throws UsageError listing
/// all.
template <typename Entry>
[[nodiscard]] const Entry& find_by_name(std::string_view what, std::span<const Entry> registry,
                                        std::string_view name) {
  for (const Entry& entry : registry) {
    if (entry.name == name) return entry;
  }
  throw UsageError(fmt::format("unknown {} '{}'; known: {}", what, name, names_of(registry, ", ")));
}

}  // namespace c10k
