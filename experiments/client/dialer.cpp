#include "experiments/client/dialer.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>

namespace c10k {
namespace {

/// A request up to the default send buffer (net.ipv4.tcp_wmem) leaves in one write, and Nagle's
/// algorithm never holds back a lone write. A larger one may take several, and then the last small
/// segment would wait for an acknowledgement of the one before.
constexpr std::size_t one_write = 16'384;

template <typename Value>
bool set_option(int fd, int level, int name, const Value& value) {
  return ::setsockopt(fd, level, name, &value, sizeof value) == 0;
}

}  // namespace

Dialer::Dialer(const Options& options, Mode mode)
    : target_(options.target),
      mode_(mode),
      no_delay_(options.payload_bytes > one_write),
      timeout_{options.timeout_ns / 1'000'000'000, options.timeout_ns % 1'000'000'000 / 1000} {
  if (options.sources == 1) return;
  for (std::uint32_t host = 1; host <= options.sources; ++host) {
    sources_.push_back(SocketAddress::loopback_source(host));
  }
}

bool Dialer::prepare(int fd, std::size_t turn) const {
  constexpr int on = 1;
  if (!sources_.empty()) {
    // Without this option bind would choose a port that is free for every target; with it connect
    // chooses one that is free for this target (ip(7)), so TIME_WAIT ports can be used again.
    const SocketAddress& source = sources_[turn % sources_.size()];
    if (!set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, on) ||
        ::bind(fd, source.data(), source.size()) != 0) {
      return false;
    }
  }
  if (no_delay_ && !set_option(fd, IPPROTO_TCP, TCP_NODELAY, on)) return false;
  // SO_SNDTIMEO bounds connect, too (socket(7)).
  return mode_ != Mode::blocking || (set_option(fd, SOL_SOCKET, SO_SNDTIMEO, timeout_) &&
                                     set_option(fd, SOL_SOCKET, SO_RCVTIMEO, timeout_));
}

Dialer::Dialed Dialer::open(std::size_t turn) const {
  const int flags = SOCK_CLOEXEC | (mode_ == Mode::non_blocking ? SOCK_NONBLOCK : 0);
  Dialed dialed{OwnedFd(::socket(target_.family(), SOCK_STREAM | flags, 0))};
  if (!dialed.fd || !prepare(dialed.fd.get(), turn)) dialed.error = errno;
  return dialed;
}

// Not repeated after EINTR (it would say EALREADY); signals are blocked in every thread.
int Dialer::connect(int fd) const {
  return ::connect(fd, target_.data(), target_.size()) == 0 ? 0 : errno;
}

Dialer::Dialed Dialer::dial(std::size_t turn) const {
  Dialed dialed = open(turn);
  if (dialed.error == 0) dialed.error = connect(dialed.fd.get());
  return dialed;
}

}  // namespace c10k
