// What a request is made of, and one exchange of a request for its echo.
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "experiments/client/results.hpp"

namespace c10k {

/// The timestamp as text: decimal nanoseconds of the monotonic clock with leading zeros.
inline constexpr std::size_t stamp_size = 20;
inline constexpr std::size_t max_payload = std::size_t{1} << 20;

/// The requests of a run: each a stamp that no other request has, then padding. Only the stamp is
/// stored per request. The padding is a window on bytes that all requests share, and the stamp says
/// where it begins, so ten thousand requests of 1 MiB in flight need no 10 GiB, and one request's
/// padding is still not taken for another's. Thread-safe.
class Payload {
 public:
  /// `size` is stamp_size to max_payload. Of `processes` with a Payload each, this one is number
  /// `process`: no two have the same stamp.
  explicit Payload(std::size_t size, std::size_t process = 0, std::size_t processes = 1);

  [[nodiscard]] std::size_t size() const { return stamp_size + padding_size_; }
  /// The stamp for a request made at `now_ns`: that time, or the next that is still free.
  [[nodiscard]] std::int64_t next_stamp(std::int64_t now_ns);
  [[nodiscard]] std::string_view padding(std::int64_t stamp) const {
    return {pool_.data() + static_cast<std::size_t>(stamp) % windows, padding_size_};
  }

 private:
  static constexpr std::size_t windows = 4093;  // a prime: no step of the clock hits few of them

  std::size_t padding_size_;
  std::int64_t process_;
  std::int64_t processes_;
  std::vector<char> pool_;
  std::atomic<std::int64_t> last_stamp_ = 0;
};

/// One request and its echo on a connected socket, as far as it has got. Both directions may be
/// under way at once: with a large payload the server stops reading when nobody takes its echo.
class Exchange {
 public:
  enum class State : std::uint8_t {
    blocked,  ///< The kernel has no room or no data: wait, then call again.
    drained,  ///< A recv came back short: an event tells of what comes later, but perhaps not of an
              ///< end of file that was there already (Readiness::read_to_end).
    more,     ///< Went as far as asked; not the end of the exchange.
    ended,    ///< `outcome` says how.
  };
  struct Step {
    State state = State::more;
    Outcome outcome = Outcome::echoed;
    int error = 0;
  };

  /// Begins a new exchange. With `until_eof` it succeeds when the server has closed after the echo.
  void begin(Payload& payload, std::int64_t now_ns, bool until_eof);

  /// Sends what is unsent, as far as the kernel takes it; never waits. `more` once all is sent, or
  /// `most` bytes.
  Step send(int fd, std::size_t most = max_payload);
  /// One recv(2) into `scratch`, compared with what was sent. `blocked` also when the time of
  /// SO_RCVTIMEO is over. Takes MSG_DONTWAIT in `flags`.
  Step receive(int fd, int flags, std::span<char> scratch);

  // For who makes the system calls otherwise:

  /// What is unsent: the rest of the stamp, and the rest of the padding. Valid until the next begin().
  [[nodiscard]] std::array<iovec, 2> unsent(std::size_t most = max_payload) const;
  /// A send of `offered` bytes of it has returned `result`: a size, or a negative errno.
  Step sent(ssize_t result, std::size_t offered);
  /// A receive has returned `result`: a size, 0 for the end of the stream, or a negative errno.
  Step received(ssize_t result, std::string_view bytes);

  [[nodiscard]] bool all_sent() const { return sent_ == payload_->size(); }
  [[nodiscard]] bool untouched() const { return sent_ == 0; }
  [[nodiscard]] bool receiving() const { return received_ > 0; }
  /// When the last byte of the echo was there.
  [[nodiscard]] std::int64_t echoed_ns() const { return echoed_ns_; }

 private:
  [[nodiscard]] bool matches(std::string_view bytes) const;

  Payload* payload_ = nullptr;
  std::array<char, stamp_size> stamp_{};
  std::string_view padding_;
  std::size_t sent_ = 0;
  std::size_t received_ = 0;
  std::int64_t echoed_ns_ = 0;
  bool until_eof_ = false;
};

}  // namespace c10k
