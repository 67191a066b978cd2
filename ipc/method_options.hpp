// A method's own options: NAME[:key=value,...].
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace c10k {

/// Reads options by key and remembers what each resolved to, so that a report can say so.
class MethodOptions {
 public:
  /// Throws UsageError when the text is not NAME[:key=value,...] or repeats a key.
  static MethodOptions parse(std::string_view text);

  [[nodiscard]] const std::string& name() const { return name_; }

  /// The value of `key`, or `fallback` when it was not given. Throw UsageError outside the range
  /// or the list.
  std::int64_t integer(const std::string& key, std::int64_t fallback, std::int64_t low,
                       std::int64_t high);
  std::string choice(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& allowed);
  /// As choice(), for on and off.
  bool flag(const std::string& key, bool fallback);

  /// Throws UsageError if a key was given that nobody asked for.
  void finish() const;
  /// Every option with its resolved value: "scm-stream:batch=64".
  [[nodiscard]] std::string resolved() const;

 private:
  [[nodiscard]] std::string label(const std::string& key) const;

  std::string name_;
  std::map<std::string, std::string> given_;
  std::map<std::string, std::string> resolved_;
};

}  // namespace c10k
