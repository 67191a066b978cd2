#include "acceptor/list.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "acceptor/dispatch_policy.hpp"
#include "acceptor/server_run.hpp"
#include "ipc/command_line.hpp"
#include "ipc/registry.hpp"

namespace c10k {
namespace {

template <typename Entry>
nlohmann::json simple_rows(std::span<const Entry> entries) {
  auto rows = nlohmann::json::array();
  for (const Entry& entry : entries) {
    rows.push_back(
        {{"name", entry.name}, {"summary", entry.summary}, {"available", true}, {"reason", ""}});
  }
  return rows;
}

template <typename Entry>
nlohmann::json probed_rows(std::span<const Entry> entries) {
  auto rows = simple_rows(entries);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Support support = entries[i].probe();
    rows[i]["available"] = support.available;
    rows[i]["reason"] = support.reason;
  }
  return rows;
}

nlohmann::json loop_rows() {
  auto rows = probed_rows(loops());
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i]["readiness"] = loops()[i].poller != nullptr;
  return rows;
}

nlohmann::json method_rows() {
  auto rows = nlohmann::json::array();
  for (const MethodEntry& entry : handoff_methods()) {
    const MethodFacts& facts = entry;
    MethodOptions defaults = MethodOptions::parse(facts.name);
    const Support support = entry.make(defaults)->probe();
    const char* const retained = facts.why_not_retained();
    rows.push_back({{"name", facts.name},
                    {"summary", facts.summary},
                    {"available", support.available},
                    {"reason", support.reason},
                    {"options", facts.options},
                    {"variants", facts.variants},
                    {"kernel", facts.kernel},
                    {"privilege", facts.privilege},
                    {"syscalls", facts.syscalls},
                    {"isolation", facts.isolation},
                    {"after_death", facts.after_death},
                    {"needs_trust", facts.needs_trust},
                    {"kernel_dispatches", facts.kernel_dispatches},
                    {"connections_stay", facts.connections_stay},
                    {"why_not_retained", retained == nullptr ? "" : retained},
                    {"chosen_by", facts.kernel_dispatches ? "kernel"
                                  : facts.shared_channel  ? "workers"
                                                          : "acceptor"}});
  }
  return rows;
}

nlohmann::json policy_rows() {
  auto rows = simple_rows(dispatch_policies());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i]["uses_load"] = dispatch_policies()[i].uses_load;
    rows[i]["uses_source"] = dispatch_policies()[i].uses_source;
  }
  return rows;
}

/// Prints `text` behind `label`, broken at blanks so that it fits a terminal of 80 columns.
void print_wrapped(std::string_view label, std::string_view text) {
  constexpr std::size_t indent = 22;
  constexpr std::size_t width = 80 - indent;
  while (!text.empty()) {
    std::size_t end = text.size();
    if (end > width) {
      end = text.rfind(' ', width);
      if (end == std::string_view::npos || end == 0) end = text.find(' ');
      if (end == std::string_view::npos) end = text.size();
    }
    fmt::print("{:<{}}{}\n", label, indent, text.substr(0, end));
    label = "";
    text.remove_prefix(std::min(text.size(), end + 1));
  }
}

void print_rows(const char* title, const nlohmann::json& rows) {
  fmt::print("{}\n", title);
  for (const auto& row : rows) {
    const auto text = [&](const char* key) { return row.value(key, std::string()); };
    print_wrapped("  " + text("name"), text("summary"));
    if (!row["available"].get<bool>()) print_wrapped("", "unsupported, because " + text("reason"));
    print_wrapped("      options", text("options"));
    print_wrapped("      kernel", text("kernel"));
    print_wrapped("      privilege", text("privilege"));
    print_wrapped("      system calls", text("syscalls"));
    print_wrapped("      isolation", text("isolation"));
    print_wrapped("      after a death", text("after_death"));
    print_wrapped("      no --user", text("needs_trust"));
  }
}

}  // namespace

void print_list(bool json) {
  const nlohmann::json list = {{"schema", "c10k-list/1"},
                               {"strategies", probed_rows(strategies())},
                               {"loops", loop_rows()},
                               {"methods", method_rows()},
                               {"policies", policy_rows()}};
  if (json) {
    fmt::print("{}", json_text(list, 2));
    return;
  }
  print_rows("Strategies (--strategy)", list["strategies"]);
  print_rows("Loops (--loop)", list["loops"]);
  print_rows("Hand-off methods (--ipc)", list["methods"]);
  print_rows("Dispatch policies (--dispatch)", list["policies"]);
}

}  // namespace c10k
