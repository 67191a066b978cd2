#include "ipc/method_options.hpp"

#include <fmt/format.h>

#include "ipc/usage.hpp"

namespace c10k {

MethodOptions MethodOptions::parse(std::string_view text) {
  MethodOptions options;
  const auto colon = text.find(':');
  options.name_ = text.substr(0, colon);
  if (colon == std::string_view::npos) return options;
  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const auto comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    const auto equals = item.find('=');
    if (equals == std::string_view::npos || equals == 0 || equals + 1 == item.size()) {
      throw UsageError(fmt::format("'{}': '{}' is not key=value; write {}:key=value,...", text,
                                   item, options.name_));
    }
    const auto [_, added] = options.given_.emplace(item.substr(0, equals), item.substr(equals + 1));
    if (!added)
      throw UsageError(fmt::format("'{}': '{}' is given twice", text, item.substr(0, equals)));
    if (comma == std::string_view::npos) return options;
    rest.remove_prefix(comma + 1);
  }
}

std::string MethodOptions::label(const std::string& key) const {
  return fmt::format("{}: {}", name_, key);
}

std::int64_t MethodOptions::integer(const std::string& key, std::int64_t fallback, std::int64_t low,
                                    std::int64_t high) {
  const auto found = given_.find(key);
  const auto value =
      found == given_.end() ? fallback : parse_integer(label(key), found->second, low, high);
  resolved_[key] = std::to_string(value);
  return value;
}

std::string MethodOptions::choice(const std::string& key, const std::string& fallback,
                                  const std::vector<std::string>& allowed) {
  const auto found = given_.find(key);
  return resolved_[key] =
             found == given_.end() ? fallback : parse_choice(label(key), found->second, allowed);
}

bool MethodOptions::flag(const std::string& key, bool fallback) {
  return choice(key, fallback ? "on" : "off", {"on", "off"}) == "on";
}

void MethodOptions::finish() const {
  for (const auto& [key, value] : given_) {
    if (resolved_.contains(key)) continue;
    std::string known;
    for (const auto& [name, _] : resolved_) known += known.empty() ? name : ", " + name;
    throw UsageError(fmt::format("{}: unknown option '{}'; {}", name_, key,
                                 known.empty() ? "it has none" : "allowed: " + known));
  }
}

std::string MethodOptions::resolved() const {
  std::string text = name_;
  char separator = ':';
  for (const auto& [key, value] : resolved_) {
    text += fmt::format("{}{}={}", separator, key, value);
    separator = ',';
  }
  return text;
}

}  // namespace c10k
