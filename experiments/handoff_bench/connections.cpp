#include "experiments/handoff_bench/connections.hpp"

#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>

#include "ipc/socket.hpp"
#include "ipc/syscall.hpp"

namespace c10k {

std::uint64_t ConnectionSupply::at_most(std::uint64_t wanted) {
  rlimit limit{};
  checked([&] { return ::getrlimit(RLIMIT_NOFILE, &limit); }, "getrlimit RLIMIT_NOFILE");
  // Two each here, and up to two for each that is on its way.
  return std::clamp<std::uint64_t>(limit.rlim_cur / 4, 1, std::min(wanted, most));
}

void ConnectionSupply::refill(std::uint64_t count) {
  count = std::min(count, most);
  if (left() >= count) return;
  // The clients first: their reset ends what the receivers have closed, and leaves no TIME_WAIT.
  clients_.clear();
  accepted_.clear();
  used_ = 0;
  const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {.backlog = 1});
  const SocketAddress address = SocketAddress::local(listener.get());
  const linger reset{1, 0};
  for (std::uint64_t i = 0; i < count; ++i) {
    OwnedFd client(checked(
        [&] { return ::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0); }, "socket"));
    checked([&] { return ::setsockopt(client.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset); },
            "setsockopt SO_LINGER");
    checked([&] { return ::connect(client.get(), address.data(), address.size()); }, "connect {}",
            address.text());
    // On loopback the handshake is over when connect() returns.
    accepted_.emplace_back(checked(
        [&] { return ::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC); },
        "accept4"));
    clients_.push_back(std::move(client));
  }
}

}  // namespace c10k
