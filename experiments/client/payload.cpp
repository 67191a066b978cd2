#include "experiments/client/payload.hpp"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
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
  fmt::format_to(stamp_.data(), "{:0{}}", stamp, stamp_size);
  payload_ = &payload;
  padding_ = payload.padding(stamp);
  sent_ = 0;
  received_ = 0;
  echoed_ns_ = 0;
  until_eof_ = until_eof;
}

Exchange::Step Exchange::send(int fd, std::size_t most) {
  // MSG_DONTWAIT also on a blocking socket: who waits here for room, with the server waiting for us
  // to take its echo, waits for ever.
  constexpr int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
  const std::size_t stamp_sent = std::min(sent_, stamp_size);
  const std::size_t padding_sent = sent_ - stamp_sent;
  const std::size_t of_stamp = std::min(stamp_size - stamp_sent, most);
  const std::size_t of_padding = std::min(padding_.size() - padding_sent, most - of_stamp);
  std::array<iovec, 2> parts{iovec{stamp_.data() + stamp_sent, of_stamp},
                             iovec{const_cast<char*>(padding_.data()) + padding_sent, of_padding}};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  const ssize_t size = retry_eintr([&] {
    return padding_.empty() ? ::send(fd, parts[0].iov_base, parts[0].iov_len, flags)
                            : ::sendmsg(fd, &message, flags);
  });
  if (size < 0) {
    if (errno == EAGAIN) return {State::blocked};
    return {State::ended, outcome_of_errno(errno), errno};
  }
  sent_ += static_cast<std::size_t>(size);
  return {static_cast<std::size_t>(size) == of_stamp + of_padding ? State::more : State::blocked};
}

bool Exchange::matches(std::string_view bytes) const {
  const std::size_t left = payload_->size() - received_;
  if (bytes.size() > left) return false;
  const std::size_t stamp_done = std::min(received_, stamp_size);
  const std::size_t of_stamp = std::min(bytes.size(), stamp_size - stamp_done);
  return bytes.substr(0, of_stamp) == std::string_view(stamp_.data() + stamp_done, of_stamp) &&
         bytes.substr(of_stamp) == padding_.substr(received_ - stamp_done, bytes.size() - of_stamp);
}

Exchange::Step Exchange::receive(int fd, int flags, std::span<char> scratch) {
  const ssize_t size =
      retry_eintr([&] { return ::recv(fd, scratch.data(), scratch.size(), flags); });
  if (size < 0) {
    if (errno == EAGAIN) return {State::blocked};
    return {State::ended, outcome_of_errno(errno), errno};
  }
  if (size == 0) return {State::ended, echoed_ns_ != 0 ? Outcome::echoed : Outcome::eof};
  const auto length = static_cast<std::size_t>(size);
  if (!matches({scratch.data(), length})) return {State::ended, Outcome::mismatched};
  received_ += length;
  if (received_ == payload_->size()) {
    echoed_ns_ = monotonic_ns();
    if (!until_eof_) return {State::ended, Outcome::echoed};
  }
  return {length == scratch.size() ? State::more : State::drained};
}

}  // namespace c10k
