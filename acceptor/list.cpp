#include "acceptor/list.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "acceptor/dispatch_policy.hpp"
#include "acceptor/server_run.hpp"
#include "ipc/registry.hpp"
#include "strategies/poller.hpp"

namespace c10k {
namespace {

template <typename Entry>
nlohmann::json simple_rows(std::span<const Entry> entries) {
  auto rows = nlohmann::json::array();
  for (const Entry& entry : entries) {
    rows.push_back({{"name", entry.name}, {"summary", entry.summary}, {"available", true}, {"reason", ""}});
  }
  return rows;
}

nlohmann::json method_rows() {
  auto rows = nlohmann::json::array();
  for (const MethodEntry& entry : handoff_methods()) {
    const MethodFacts& facts = entry;
    MethodOptions defaults = MethodOptions::parse(facts.name);
    const Support support = entry.make(defaults)->probe();
    rows.push_back({{"name", facts.name},
                    {"summary", facts.summary},
                    {"available", support.available},
                    {"reason", support.reason},
                    {"options", facts.options},
                    {"kernel", facts.kernel},
                    {"privilege", facts.privilege},
                    {"syscalls", facts.syscalls},
                    {"isolation", facts.isolation},
                    {"after_death", facts.after_death},
                    {"kernel_dispatches", facts.kernel_dispatches}});
  }
  return rows;
}

void print_rows(const char* title, const nlohmann::json& rows) {
  fmt::print("{}\n", title);
  for (const auto& row : rows) {
    fmt::print("  {:<20} {}\n", row["name"].get<std::string>(), row["summary"].get<std::string>());
    if (!row["available"].get<bool>()) fmt::print("  {:<20} unsupported, because {}\n", "", row["reason"].get<std::string>());
    for (const char* key : {"options", "kernel", "privilege", "syscalls", "isolation", "after_death"}) {
      if (!row.contains(key) || row[key].get<std::string>().empty()) continue;
      fmt::print("  {:<20}   {:<12}{}\n", "", std::string(key == std::string_view("after_death") ? "after death" : key) + ":",
                 row[key].get<std::string>());
    }
  }
}

}  // namespace

void print_list(bool json) {
  const nlohmann::json list = {{"schema", "c10k-list/1"},
                               {"strategies", simple_rows(strategies())},
                               {"loops", simple_rows(pollers())},
                               {"methods", method_rows()},
                               {"policies", simple_rows(dispatch_policies())}};
  if (json) {
    fmt::print("{}\n", list.dump(2));
    return;
  }
  print_rows("Strategies (--strategy)", list["strategies"]);
  print_rows("Loops (--loop)", list["loops"]);
  print_rows("Hand-off methods (--ipc)", list["methods"]);
  print_rows("Dispatch policies (--dispatch)", list["policies"]);
}

}  // namespace c10k
