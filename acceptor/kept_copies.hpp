// The acceptor's copies of connections that are on their way to a worker.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ipc/handoff.hpp"

namespace c10k {

/// A number for each copy, which travels in its tag, so that a worker can say which it has received.
class KeptCopies {
 public:
  static constexpr std::size_t nowhere = static_cast<std::size_t>(-1);

  /// Keeps a connection that goes out through a channel; its tag gets the number.
  const Received& keep(Received connection, std::size_t channel) {
    std::uint32_t number = 0;
    if (free_.empty()) {
      number = static_cast<std::uint32_t>(entries_.size());
      entries_.emplace_back();
    } else {
      number = free_.back();
      free_.pop_back();
    }
    connection.tag.copy = number;
    entries_[number] = {std::move(connection), channel};
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

  /// Gives a copy back; its number is free again.
  Received take(std::uint64_t number) {
    free_.push_back(static_cast<std::uint32_t>(number));
    entries_[number].channel = nowhere;
    return std::move(entries_[number].connection);
  }

  [[nodiscard]] std::size_t size() const { return entries_.size() - free_.size(); }

  /// The numbers of all that went out through a channel, or of all there are (nowhere), in the order
  /// in which the connections were accepted.
  [[nodiscard]] std::vector<std::uint32_t> numbers(std::size_t channel = nowhere) const {
    std::vector<std::uint32_t> found;
    for (std::uint32_t i = 0; i < entries_.size(); ++i) {
      const std::size_t here = entries_[i].channel;
      if (here != nowhere && (channel == nowhere || here == channel)) found.push_back(i);
    }
    std::sort(found.begin(), found.end(),
              [&](std::uint32_t a, std::uint32_t b) { return id_of(a) < id_of(b); });
    return found;
  }

 private:
  struct Entry {
    Received connection;
    std::size_t channel = nowhere;
  };
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> free_;
};

}  // namespace c10k
