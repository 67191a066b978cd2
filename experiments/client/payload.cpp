#include "experiments/client/payload.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <random>

#include "ipc/syscall.hpp"

namespace c10k {

Payload::Payload(std::size_t size, std::size_t process, std::size_t processes)
    : padding_size_(size - stamp_size),
      process_(static_cast<std::int64_t>(process)),
      processes_(static_cast<std::int64_t>(processes)) {
  if (padding_size_ == 0) return;
  pool_.resize(padding_size_ + windows);
  std::minstd_rand random;  // the same bytes in every run
  std::generate(pool_.begin(), pool_.end(), [&] { return static_cast<char>(random() >> 8); });
}

std::int64_t Payload::next_stamp(std::int64_t now_ns) {
  // Each process takes the nanoseconds whose remainder is its number.
  const std::int64_t own = now_ns - now_ns % processes_ + process_;
  std::int64_t last = last_stamp_.load(std::memory_order_relaxed);
  std::int64_t stamp = 0;
  do {
    stamp = std::max(own, last + processes_);
  } while (!last_stamp_.compare_exchange_weak(last, stamp, std::memory_order_relaxed));
  return stamp;
}

void Exchange::begin(Payload& payload, std::int64_t now_ns, bool until_eof) {
  const std::int64_t stamp = payload.next_stamp(now_ns);
  // A third of what fmt takes with a width, and this is done for every request.
  char* const first = stamp_.data();
  const auto digits =
      static_cast<std::size_t>(std::to_chars(first, first + stamp_size, stamp).ptr - first);
  std::memmove(first + stamp_size - digits, first, digits);
  std::memset(first, '0', stamp_size - digits);
  payload_ = &payload;
  padding_ = payload.padding(stamp);
  sent_ = 0;
  received_ = 0;
  echoed_ns_ = 0;
  until_eof_ = until_eof;
}

std::array<iovec, 2> Exchange::unsent(std::size_t most) const {
  const std::size_t stamp_sent = std::min(sent_, stamp_size);
  const std::size_t padding_sent = sent_ - stamp_sent;
  const std::size_t of_stamp = std::min(stamp_size - stamp_sent, most);
  const std::size_t of_padding = std::min(padding_.size() - padding_sent, most - of_stamp);
  return {iovec{const_cast<char*>(stamp_.data()) + stamp_sent, of_stamp},
          iovec{const_cast<char*>(padding_.data()) + padding_sent, of_padding}};
}

Exchange::Step Exchange::sent(ssize_t result, std::size_t offered) {
  if (result == -EAGAIN) return {State::blocked};
  if (result < 0) {
    const int error = static_cast<int>(-result);
    return {State::ended, outcome_of_errno(error), error};
  }
  sent_ += static_cast<std::size_t>(result);
  return {static_cast<std::size_t>(result) == offered ? State::more : State::blocked};
}

Exchange::Step Exchange::send(int fd, std::size_t most) {
  // MSG_DONTWAIT also on a blocking socket: who waits here for room, with the server waiting for us
  // to take its echo, waits for ever.
  constexpr int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
  std::array<iovec, 2> parts = unsent(most);
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  const ssize_t size = retry_eintr([&] {
    return padding_.empty() ? ::send(fd, parts[0].iov_base, parts[0].iov_len, flags)
                            : ::sendmsg(fd, &message, flags);
  });
  return sent(size < 0 ? -errno : size, parts[0].iov_len + parts[1].iov_len);
}

bool Exchange::matches(std::string_view bytes) const {
  const std::size_t left = payload_->size() - received_;
  if (bytes.size() > left) return false;
  const std::size_t stamp_done = std::min(received_, stamp_size);
  const std::size_t of_stamp = std::min(bytes.size(), stamp_size - stamp_done);
  return bytes.substr(0, of_stamp) == std::string_view(stamp_.data() + stamp_done, of_stamp) &&
         bytes.substr(of_stamp) == padding_.substr(received_ - stamp_done, bytes.size() - of_stamp);
}

Exchange::Step Exchange::received(ssize_t result, std::string_view bytes) {
  if (result == -EAGAIN) return {State::blocked};
  if (result < 0) {
    const int error = static_cast<int>(-result);
    return {State::ended, outcome_of_errno(error), error};
  }
  if (result == 0) return {State::ended, echoed_ns_ != 0 ? Outcome::echoed : Outcome::eof};
  if (!matches(bytes)) return {State::ended, Outcome::mismatched};
  received_ += bytes.size();
  if (received_ == payload_->size()) {
    echoed_ns_ = monotonic_ns();
    if (!until_eof_) return {State::ended, Outcome::echoed};
  }
  return {State::more};
}

Exchange::Step Exchange::receive(int fd, int flags, std::span<char> scratch) {
  const ssize_t size =
      retry_eintr([&] { return ::recv(fd, scratch.data(), scratch.size(), flags); });
  if (size < 0) return received(-errno, {});
  const auto length = static_cast<std::size_t>(size);
  const Step step = received(size, {scratch.data(), length});
  if (step.state == State::more && length < scratch.size()) return {State::drained};
  return step;
}

}  // namespace c10k
