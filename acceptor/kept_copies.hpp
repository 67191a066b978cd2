// The acceptor's copies of connections that are on their way to a worker, or retained while it has them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "ipc/handoff.hpp"

namespace c10k {

/// A number for each copy, which travels in its tag, so that a worker can say which it has received.
class KeptCopies {
 public:
  static constexpr std::size_t nowhere = static_cast<std::size_t>(-1);

  /// Keeps a connection that goes out through a channel at a time; its tag gets the number.
  const Received& keep(Received connection, std::size_t channel, std::int64_t now_ns) {
    std::uint32_t number = 0;
    if (free_.empty()) {
      number = static_cast<std::uint32_t>(entries_.size());
      entries_.emplace_back();
    } else {
      number = free_.back();
      free_.pop_back();
    }
    connection.tag.copy = number;
    entries_[number] = {std::move(connection), channel, false, now_ns};
    return entries_[number].connection;
  }

  /// The channel that the copy went out through; nowhere for a number that is not in use. Numbers come
  /// from workers, so any value may be asked for.
  [[nodiscard]] std::size_t channel_of(std::uint64_t number) const {
    return number < entries_.size() ? entries_[number].channel : nowhere;
  }
  [[nodiscard]] std::uint64_t id_of(std::uint64_t number) const {
    return entries_[number].connection.tag.id;
  }

  /// When it went out.
  [[nodiscard]] std::int64_t since_ns(std::uint64_t number) const {
    return entries_[number].since_ns;
  }

  /// The copy itself, which stays here.
  [[nodiscard]] const Received& connection(std::uint64_t number) const {
    return entries_[number].connection;
  }

  /// The connection has arrived at the worker of a channel and is kept for as long as it lives there.
  void retain(std::uint64_t number, std::size_t channel) {
    entries_[number].channel = channel;
    entries_[number].retained = true;
    ++retained_;
  }
  /// The same without the copy, which is closed: its number stays in use, as the worker will say it.
  void retain_number(std::uint64_t number, std::size_t channel) {
    retain(number, channel);
    entries_[number].connection.fd.reset();
    ++closed_;
  }
  [[nodiscard]] bool is_retained(std::uint64_t number) const {
    return number < entries_.size() && entries_[number].retained;
  }
  /// Whether there is a descriptor, not only the number.
  [[nodiscard]] bool is_open(std::uint64_t number) const {
    return static_cast<bool>(entries_[number].connection.fd);
  }
  [[nodiscard]] std::size_t retained() const { return retained_; }
  /// Those of them that are a descriptor.
  [[nodiscard]] std::size_t retained_open() const { return retained_ - closed_; }

  /// Gives a copy back; its number is free again.
  Received take(std::uint64_t number) {
    free_.push_back(static_cast<std::uint32_t>(number));
    entries_[number].channel = nowhere;
    if (std::exchange(entries_[number].retained, false)) {
      --retained_;
      if (!entries_[number].connection.fd) --closed_;
    }
    return std::move(entries_[number].connection);
  }

  /// Those on their way.
  [[nodiscard]] std::size_t size() const { return entries_.size() - free_.size() - retained_; }

  /// The numbers of all that are on their way through a channel (or retained for its worker), or
  /// through any (nowhere), in the order in which the connections were accepted.
  [[nodiscard]] std::vector<std::uint32_t> numbers(std::size_t channel = nowhere,
                                                   bool retained = false) const {
    std::vector<std::uint32_t> found;
    for (std::uint32_t i = 0; i < entries_.size(); ++i) {
      const std::size_t here = entries_[i].channel;
      if (here != nowhere && entries_[i].retained == retained &&
          (channel == nowhere || here == channel))
        found.push_back(i);
    }
    std::sort(found.begin(), found.end(),
              [&](std::uint32_t a, std::uint32_t b) { return id_of(a) < id_of(b); });
    return found;
  }

 private:
  struct Entry {
    Received connection;
    std::size_t channel = nowhere;
    bool retained = false;
    std::int64_t since_ns = 0;
  };
  std::size_t retained_ = 0;
  std::size_t closed_ = 0;  // those of them whose copy is closed
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> free_;
};

}  // namespace c10k
