#include "ipc/socket.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netdb.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <sstream>

#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

// include/net/tcp_states.h. <netinet/tcp.h> names them too, but not beside <linux/tcp.h>.
constexpr int tcp_established = 1;
constexpr int tcp_close_wait = 8;

}  // namespace

SocketAddress::SocketAddress(const sockaddr* address, socklen_t size) : size_(size) {
  std::memcpy(&storage_, address, size);
}

SocketAddress SocketAddress::parse(std::string_view what, std::string_view text) {
  const auto colon = text.rfind(':');
  const bool bracketed = text.starts_with('[');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == text.size() ||
      (bracketed && (colon < 2 || text[colon - 1] != ']')) ||
      (!bracketed && text.find(':') != colon)) {
    throw UsageError(fmt::format("{}: '{}' is not HOST:PORT (or [IPV6]:PORT)", what, text));
  }
  const std::string port(text.substr(colon + 1));
  const std::string host(bracketed ? text.substr(1, colon - 2) : text.substr(0, colon));
  (void)parse_integer<std::uint32_t>(fmt::format("{}: port", what), port, 0, 65535);

  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) {
    throw UsageError(
        fmt::format("{}: host '{}' does not resolve ({}); give a name or address of this machine",
                    what, host, ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, ::freeaddrinfo);
  // A name with both kinds of address means IPv4 here: the default listener is 127.0.0.1, and
  // "localhost" must reach it.
  const addrinfo* chosen = found;
  for (const addrinfo* next = found; next != nullptr; next = next->ai_next) {
    if (next->ai_family == AF_INET) {
      chosen = next;
      break;
    }
  }
  return {chosen->ai_addr, chosen->ai_addrlen};
}

SocketAddress SocketAddress::local(int fd) {
  SocketAddress address;
  address.size_ = sizeof address.storage_;
  checked(
      [&] {
        return ::getsockname(fd, reinterpret_cast<sockaddr*>(&address.storage_), &address.size_);
      },
      "getsockname {}", fd);
  return address;
}

SocketAddress SocketAddress::loopback_source(std::uint32_t host) {
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + host);
  return {reinterpret_cast<const sockaddr*>(&in), sizeof in};
}

std::uint16_t SocketAddress::port() const {
  return ntohs(family() == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_port
                                    : reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
}

bool SocketAddress::is_loopback_v4() const {
  return family() == AF_INET &&
         ntohl(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_addr.s_addr) >> 24 == 127;
}

bool SocketAddress::fits(const SocketAddress& asked) const {
  if (asked.family() != family() || (asked.port() != 0 && asked.port() != port())) return false;
  const auto host = [](const SocketAddress& address) {
    std::string text = address.text();
    return text.substr(0, text.rfind(':'));
  };
  return host(asked) == host(*this);
}

std::string SocketAddress::text() const {
  char host[INET6_ADDRSTRLEN] = "";
  if (family() == AF_INET6) {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_addr, host,
                sizeof host);
    return fmt::format("[{}]:{}", host, port());
  }
  ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(&storage_)->sin_addr, host,
              sizeof host);
  return fmt::format("{}:{}", host, port());
}

int socket_option(int fd, int option) {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

bool is_tcp_socket(int fd) {
  // One call, as workers ask for each connection: what has no TCP inside, whatever its family and its
  // protocol's number (a netlink socket may have 6 as well), does not know the option. TCP_INFO would tell a
  // listener too, and takes half as long again.
  int segment = 0;
  socklen_t size = sizeof segment;
  return ::getsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, &size) == 0;
}

bool is_tcp_listener(int fd) {
  return is_tcp_socket(fd) && socket_option(fd, SO_ACCEPTCONN) == 1;
}

OwnedFd listen_tcp(const SocketAddress& address, const ListenOptions& options) {
  OwnedFd fd(checked(
      [&] { return ::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); },
      "socket TCP"));
  const int on = 1;
  checked([&] { return ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on); },
          "setsockopt SO_REUSEADDR");
  // Accepted sockets inherit it: urgent bytes stay in the stream, so that an echo has all of them.
  checked([&] { return ::setsockopt(fd.get(), SOL_SOCKET, SO_OOBINLINE, &on, sizeof on); },
          "setsockopt SO_OOBINLINE");
  if (options.reuse_port) {
    checked([&] { return ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on); },
            "setsockopt SO_REUSEPORT");
  }
  checked([&] { return ::bind(fd.get(), address.data(), address.size()); }, "bind {}",
          address.text());
  checked([&] { return ::listen(fd.get(), options.backlog); }, "listen {}", address.text());
  return fd;
}

AcceptQueue accept_queue(int listener) {
  tcp_info info{};
  socklen_t size = sizeof info;
  checked([&] { return ::getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &size); },
          "getsockopt TCP_INFO of listener {}", listener);
  return {info.tcpi_unacked, info.tcpi_sacked};
}

StreamProgress stream_progress(int connection) {
  // A client that is sending does not keep the acceptor here.
  constexpr int most_looks = 1000;
  tcp_info info{};
  tcp_info again{};
  socklen_t size = sizeof info;
  int unread = 0;
  int unsent = 0;
  int looks = 0;
  // The figures of one moment are those between two equal looks: what arrives or is acknowledged in between
  // would make an untouched connection look touched.
  do {
    if (++looks > most_looks ||
        ::getsockopt(connection, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 ||
        ::ioctl(connection, SIOCINQ, &unread) != 0 || ::ioctl(connection, SIOCOUTQ, &unsent) != 0 ||
        ::getsockopt(connection, IPPROTO_TCP, TCP_INFO, &again, &size) != 0)
      return {};
  } while (info.tcpi_bytes_received != again.tcpi_bytes_received ||
           info.tcpi_bytes_acked != again.tcpi_bytes_acked || info.tcpi_state != again.tcpi_state);
  // The end of the client's stream counts as a byte received, and not as one that is unread.
  const bool client_ended = info.tcpi_state == tcp_close_wait;
  return {info.tcpi_bytes_received - static_cast<std::uint64_t>(unread) - (client_ended ? 1 : 0),
          info.tcpi_bytes_acked + static_cast<std::uint64_t>(unsent),
          client_ended || info.tcpi_state == tcp_established};
}

ListenDropCounters::ListenDropCounters()
    : file_(::open("/proc/net/netstat", O_RDONLY | O_CLOEXEC)), at_start_(read()) {}

ListenDrops ListenDropCounters::since_start() const {
  const ListenDrops now = read();
  return {now.overflows - at_start_.overflows, now.drops - at_start_.drops};
}

ListenDrops ListenDropCounters::read() const {
  std::string text(16'384, '\0');
  const ssize_t size =
      retry_eintr([&] { return ::pread(file_.get(), text.data(), text.size(), 0); });
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
  // The file has pairs of lines: names, then values, both led by the group's name.
  std::istringstream lines(text);
  std::string names;
  std::string values;
  ListenDrops result;
  while (std::getline(lines, names) && std::getline(lines, values)) {
    if (!names.starts_with("TcpExt:")) continue;
    std::istringstream name_stream(names);
    std::istringstream value_stream(values);
    std::string name;
    std::string value;
    while (name_stream >> name && value_stream >> value) {
      if (name == "ListenOverflows") result.overflows = std::stoull(value);
      if (name == "ListenDrops") result.drops = std::stoull(value);
    }
  }
  return result;
}

std::pair<OwnedFd, OwnedFd> unix_pair(int type) {
  int fds[2];
  checked([&] { return ::socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds); },
          "socketpair AF_UNIX type {}", type);
  return {OwnedFd(fds[0]), OwnedFd(fds[1])};
}

}  // namespace c10k
