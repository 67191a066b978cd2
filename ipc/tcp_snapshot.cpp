#include "ipc/tcp_snapshot.hpp"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

// TCP's option kinds (RFC 9293, RFC 7323, RFC 2018), which TCP_REPAIR_OPTIONS takes. <netinet/tcp.h>
// has them and does not go with <linux/tcp.h>.
constexpr std::uint32_t kind_segment = 2;
constexpr std::uint32_t kind_window_scale = 3;
constexpr std::uint32_t kind_sack_permitted = 4;
constexpr std::uint32_t kind_timestamps = 8;

/// Bytes that fit any receive buffer.
constexpr std::uint32_t small_queue = 2048;

template <typename Value>
void set_option(int socket, int level, int name, const Value& value, const char* text) {
  checked([&] { return ::setsockopt(socket, level, name, &value, sizeof value); },
          "setsockopt {} {}", socket, text);
}
template <typename Value>
Value get_option(int socket, int level, int name, const char* text) {
  Value value{};
  socklen_t size = sizeof value;
  checked([&] { return ::getsockopt(socket, level, name, &value, &size); }, "getsockopt {} {}",
          socket, text);
  return value;
}
void set_tcp(int socket, int name, int value, const char* text) {
  set_option(socket, IPPROTO_TCP, name, value, text);
}
void set_repair(int socket, int value) {
  set_tcp(socket, TCP_REPAIR, value, "TCP_REPAIR");
}
std::uint32_t sequence_of(int socket, int queue) {
  set_tcp(socket, TCP_REPAIR_QUEUE, queue, "TCP_REPAIR_QUEUE");
  return get_option<std::uint32_t>(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ");
}
std::uint32_t bytes_in(int socket, unsigned long queue, const char* text) {
  int bytes = 0;
  checked([&] { return ::ioctl(socket, queue, &bytes); }, "ioctl {} {}", socket, text);
  return static_cast<std::uint32_t>(std::max(bytes, 0));
}

/// Copies the queue that TCP_REPAIR_QUEUE names; false when not all of it can be seen in one piece (an
/// urgent mark stands in it).
bool peek(int socket, std::span<std::byte> into) {
  if (into.empty()) return true;
  const ssize_t got = retry_eintr(
      [&] { return ::recv(socket, into.data(), into.size(), MSG_PEEK | MSG_DONTWAIT); });
  return got == static_cast<ssize_t>(into.size());
}

/// Sends nothing in repair mode, and otherwise a reset.
void disconnect(int socket) {
  const sockaddr none{AF_UNSPEC, {}};
  checked([&] { return ::connect(socket, &none, sizeof none); }, "connect {} AF_UNSPEC", socket);
}

/// What accept4(2) and getpeername(2) say of the other side.
SocketAddress peer_of(int socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  checked([&] { return ::getpeername(socket, reinterpret_cast<sockaddr*>(&address), &size); },
          "getpeername {}", socket);
  return {reinterpret_cast<const sockaddr*>(&address), size};
}

/// Fills all but the addresses; false when it cannot be done.
bool dump(int socket, TcpSnapshot& snapshot) {
  TcpState& state = snapshot.state;
  const auto info = get_option<tcp_info>(socket, IPPROTO_TCP, TCP_INFO, "TCP_INFO");
  // The kernel lets only an established connection be rebuilt. tcpi_state as in <netinet/tcp.h>.
  constexpr std::uint8_t established = 1;
  if (info.tcpi_state != established) return false;
  state.options = info.tcpi_options;
  state.send_scale = info.tcpi_snd_wscale;
  state.receive_scale = info.tcpi_rcv_wscale;
  set_repair(socket, TCP_REPAIR_ON);
  state.largest_segment = get_option<int>(socket, IPPROTO_TCP, TCP_MAXSEG, "TCP_MAXSEG");
  state.timestamp = get_option<std::uint32_t>(socket, IPPROTO_TCP, TCP_TIMESTAMP, "TCP_TIMESTAMP");
  state.window =
      get_option<tcp_repair_window>(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, "TCP_REPAIR_WINDOW");
  const auto socket_option = [&](int name) {
    return get_option<int>(socket, SOL_SOCKET, name, "SOL_SOCKET");
  };
  state.receive_buffer = socket_option(SO_RCVBUF);
  state.send_buffer = socket_option(SO_SNDBUF);
  state.urgent_inline = socket_option(SO_OOBINLINE);
  state.keep_alive = socket_option(SO_KEEPALIVE);
  state.no_delay = get_option<int>(socket, IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY");

  const std::uint32_t sent_to = sequence_of(socket, TCP_SEND_QUEUE);
  const std::uint32_t unacknowledged = bytes_in(socket, SIOCOUTQ, "SIOCOUTQ");
  state.unsent_bytes = unacknowledged == 0 ? 0 : bytes_in(socket, SIOCOUTQNSD, "SIOCOUTQNSD");
  state.sent_bytes = unacknowledged - state.unsent_bytes;
  state.send_sequence = sent_to - unacknowledged;
  std::vector<std::byte> to_send(unacknowledged);
  if (!peek(socket, to_send)) return false;

  // Last, so that the least can come in between.
  const std::uint32_t received_to = sequence_of(socket, TCP_RECV_QUEUE);
  state.unread_bytes = bytes_in(socket, SIOCINQ, "SIOCINQ");
  state.receive_sequence = received_to - state.unread_bytes;
  snapshot.queues.resize(state.unread_bytes);
  if (!peek(socket, snapshot.queues)) return false;
  snapshot.queues.insert(snapshot.queues.end(), to_send.begin(), to_send.end());
  return true;
}

void send_all(int socket, std::span<const std::byte> bytes, const char* where) {
  while (!bytes.empty()) {
    const ssize_t sent = checked(
        [&] { return ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT); },
        "send {} bytes to the {} queue of {}", bytes.size(), where, socket);
    bytes = bytes.subspan(static_cast<std::size_t>(sent));
  }
}

/// Room for the queues, and as large a receive buffer as the peer has been promised room in. Twice as
/// much, for what was many small buffers may now be charged as fewer and larger ones; and unlocked again
/// (SO_BUF_LOCK, 5.14), so that the kernel goes on tuning both.
void fit_buffers(int socket, const TcpState& state) {
  const std::size_t to_send = std::size_t{state.sent_bytes} + state.unsent_bytes;
  const bool receive =
      state.unread_bytes > small_queue ||
      state.receive_buffer > get_option<int>(socket, SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF");
  // The kernel doubles what it is given (socket(7)).
  if (receive) {
    set_option(socket, SOL_SOCKET, SO_RCVBUFFORCE,
               state.receive_buffer + static_cast<int>(state.unread_bytes), "SO_RCVBUFFORCE");
  }
  if (to_send != 0) {
    set_option(socket, SOL_SOCKET, SO_SNDBUFFORCE, state.send_buffer + static_cast<int>(to_send),
               "SO_SNDBUFFORCE");
  }
  if (receive || to_send != 0) set_option(socket, SOL_SOCKET, SO_BUF_LOCK, 0, "SO_BUF_LOCK");
}

/// Makes it the connection of these two addresses. Sends nothing: it is in repair mode.
void take_addresses(int socket, const TcpState& state) {
  // Repair mode lets it share the listener's address, whatever that has set (SK_FORCE_REUSE).
  const int bound =
      retry_eintr([&] { return ::bind(socket, state.local.data(), state.local.size()); });
  // A socket that was bound here before, and silenced since, still is.
  const bool was_bound = bound < 0 && errno == EINVAL;
  if (bound < 0 && !was_bound) throw_system_error(errno, "bind {}", state.local.text());
  checked([&] { return ::connect(socket, state.peer.data(), state.peer.size()); }, "connect {}",
          state.peer.text());
  if (was_bound && tcp_tuple(state.peer, SocketAddress::local(socket)) != state.tuple())
    throw_system_error(EADDRNOTAVAIL, "bind {}", state.local.text());
}

/// To be set once the connection is there.
void restore_options(int socket, const TcpState& state) {
  std::array<tcp_repair_opt, 4> options{};
  std::size_t count = 0;
  options[count++] = {kind_segment, static_cast<std::uint32_t>(state.largest_segment)};
  if ((state.options & TCPI_OPT_WSCALE) != 0) {
    options[count++] = {kind_window_scale,
                        state.send_scale | std::uint32_t{state.receive_scale} << 16};
  }
  if ((state.options & TCPI_OPT_SACK) != 0) options[count++] = {kind_sack_permitted, 0};
  if ((state.options & TCPI_OPT_TIMESTAMPS) != 0) options[count++] = {kind_timestamps, 0};
  checked(
      [&] {
        return ::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(),
                            static_cast<socklen_t>(count * sizeof(tcp_repair_opt)));
      },
      "setsockopt {} TCP_REPAIR_OPTIONS", socket);
  if ((state.options & TCPI_OPT_TIMESTAMPS) != 0)
    set_option(socket, IPPROTO_TCP, TCP_TIMESTAMP, state.timestamp, "TCP_TIMESTAMP");
}

/// Behind the unread bytes, which are in place: those of the first segment that the guard has dropped,
/// if they come next. The peer learns it as usual, with the next segment that it is sent; one of its own
/// that comes before is known by its sequence number to be here already.
bool append_dropped(int socket, const TcpState& state, const TcpGuard& guard) {
  const TcpTuple tuple = state.tuple();
  if (guard.dropped(tuple).size == 0) return false;
  // Its size has been seen, so by now it is complete.
  const DroppedSegments first = guard.dropped(tuple);
  if (ntohl(first.sequence) != state.receive_sequence + state.unread_bytes) return false;
  send_all(socket,
           std::span(first.bytes).first(std::min<std::size_t>(first.size, first.bytes.size())),
           "receive");
  return true;
}

}  // namespace

std::optional<TcpSnapshot> freeze_tcp(int socket, const TcpGuard& guard) {
  TcpSnapshot snapshot;
  try {
    snapshot.state.peer = peer_of(socket);
  } catch (const SystemError& error) {
    if (error.code().value() == ENOTCONN) return std::nullopt;  // reset meanwhile
    throw;
  }
  snapshot.state.local = SocketAddress::local(socket);
  const TcpTuple tuple = snapshot.state.tuple();
  if (!guard.insert(tuple)) return std::nullopt;
  // From here on nothing reaches the socket, so that what is read next is all there is and stays so.
  guard.attach(socket);
  if (dump(socket, snapshot)) return snapshot;
  TcpGuard::detach(socket);
  // Something that was dropped is sent again, except a reset: ask.
  const bool dropped = guard.remove(tuple) != 0;
  set_repair(socket, dropped ? TCP_REPAIR_OFF : TCP_REPAIR_OFF_NO_WP);
  const int on = 1;
  set_option(socket, SOL_SOCKET, SO_REUSEADDR, on, "SO_REUSEADDR");
  return std::nullopt;
}

bool silence_tcp(int socket, const TcpSnapshot& snapshot) {
  // In repair mode a disconnect removes the connection from the kernel's table and sends nothing
  // (net/ipv4/tcp.c, tcp_disconnect). It keeps the sequence number up to which has been received.
  disconnect(socket);
  // A segment that had passed the filter before the tuple was in its set.
  return sequence_of(socket, TCP_RECV_QUEUE) ==
         snapshot.state.receive_sequence + snapshot.state.unread_bytes;
}

void rebuild_tcp(int socket, const TcpState& state, std::span<const std::byte> queues,
                 const TcpGuard& guard, AfterRebuild after) {
  const int on = 1;
  // What comes between the connect and the end of the repair finds only part of a connection.
  guard.attach(socket);
  set_repair(socket, TCP_REPAIR_ON);
  set_tcp(socket, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE, "TCP_REPAIR_QUEUE");
  set_option(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, state.send_sequence, "TCP_QUEUE_SEQ");
  set_tcp(socket, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE, "TCP_REPAIR_QUEUE");
  set_option(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, state.receive_sequence, "TCP_QUEUE_SEQ");
  take_addresses(socket, state);
  restore_options(socket, state);
  fit_buffers(socket, state);
  const auto unread = queues.first(state.unread_bytes);
  const auto sent = queues.subspan(state.unread_bytes, state.sent_bytes);
  const auto unsent = queues.subspan(std::size_t{state.unread_bytes} + state.sent_bytes);
  send_all(socket, unread, "receive");
  const bool appended = append_dropped(socket, state, guard);
  if (!sent.empty()) {
    // In repair mode they count as sent: the peer acknowledges them, or they are sent again.
    set_tcp(socket, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE, "TCP_REPAIR_QUEUE");
    send_all(socket, sent, "send");
  }
  set_option(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, state.window, "TCP_REPAIR_WINDOW");
  if (state.urgent_inline != 0) set_option(socket, SOL_SOCKET, SO_OOBINLINE, on, "SO_OOBINLINE");
  if (state.keep_alive != 0) set_option(socket, SOL_SOCKET, SO_KEEPALIVE, on, "SO_KEEPALIVE");
  if (state.no_delay != 0) set_option(socket, IPPROTO_TCP, TCP_NODELAY, on, "TCP_NODELAY");

  // In this order the listener answers at no moment: what has found it meets one of the guard's maps.
  // And what finds this socket is dropped only while it is counted, or when it has been held up since.
  guard.rebuilt(state.tuple());
  TcpGuard::detach(socket);
  // What else was dropped the peer sends again, but for a reset. An answer tells whether it is there.
  const bool dropped_more = guard.remove(state.tuple()) > (appended ? 1 : 0);
  set_repair(socket,
             after == AfterRebuild::ask || dropped_more ? TCP_REPAIR_OFF : TCP_REPAIR_OFF_NO_WP);
  // Leaving repair mode clears it (SK_NO_REUSE), and without it no successor of the listener could bind.
  set_option(socket, SOL_SOCKET, SO_REUSEADDR, on, "SO_REUSEADDR");
  send_all(socket, unsent, "send");
}

void reset_tcp(int socket, const TcpState& state, const TcpGuard& guard) noexcept {
  try {
    // Neither queue matters any more, but the reset must have the sequence number that the peer expects.
    TcpState bare = state;
    bare.send_sequence += bare.sent_bytes;
    bare.receive_sequence += bare.unread_bytes;
    bare.unread_bytes = bare.sent_bytes = bare.unsent_bytes = 0;
    // There may be half a connection in it.
    set_repair(socket, TCP_REPAIR_ON);
    disconnect(socket);
    rebuild_tcp(socket, bare, {}, guard, AfterRebuild::ask_if_needed);
    disconnect(socket);
  } catch (const std::exception&) {
    // Another socket has the connection, or there is no memory: its peer learns it with its next segment.
    try {
      guard.remove(state.tuple());
    } catch (const std::exception&) {
      return;
    }
  }
}

}  // namespace c10k
