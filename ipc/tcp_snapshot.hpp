// A TCP connection as bytes: taken out of one socket, put into another (TCP_REPAIR; CAP_NET_ADMIN).
#pragma once

#include <linux/tcp.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ipc/socket.hpp"
#include "ipc/tcp_guard.hpp"

namespace c10k {

/// All but the bytes in the queues. Travels as it is.
struct TcpState {
  SocketAddress local;
  SocketAddress peer;
  std::uint32_t send_sequence = 0;     ///< of the first byte that the peer has not acknowledged
  std::uint32_t receive_sequence = 0;  ///< of the first byte that nobody has read
  std::uint32_t unread_bytes = 0;
  std::uint32_t sent_bytes = 0;    ///< and not acknowledged
  std::uint32_t unsent_bytes = 0;  ///< behind those
  std::uint32_t timestamp = 0;
  tcp_repair_window window{};
  int largest_segment = 0;   ///< what the peer allows
  std::uint8_t options = 0;  ///< TCPI_OPT_...
  std::uint8_t send_scale = 0;
  std::uint8_t receive_scale = 0;
  int receive_buffer = 0;
  int send_buffer = 0;
  int urgent_inline = 0;
  int no_delay = 0;
  int keep_alive = 0;

  [[nodiscard]] std::size_t queue_bytes() const {
    return std::size_t{unread_bytes} + sent_bytes + unsent_bytes;
  }
  /// As the filter sees what the peer sends.
  [[nodiscard]] TcpTuple tuple() const { return tcp_tuple(peer, local); }
};

struct TcpSnapshot {
  TcpState state;
  std::vector<std::byte> queues;  ///< unread, sent, unsent; queue_bytes() of them
};

/// Takes a snapshot of an established connection and leaves its socket frozen: in repair mode, its
/// tuple in the guard's set. No value, and the socket as it was, when the kernel has no way to put such
/// a connection into another socket (its peer has closed its side, or reset it), or when the set is full.
[[nodiscard]] std::optional<TcpSnapshot> freeze_tcp(int socket, const TcpGuard& guard);

/// Takes the frozen connection away from its socket, without a word to the peer: the socket is then
/// closed in all but its descriptor. False when the peer has sent something at the very moment of the
/// freezing, which the kernel has acknowledged and the snapshot has not.
[[nodiscard]] bool silence_tcp(int socket, const TcpSnapshot& snapshot);

enum class AfterRebuild : std::uint8_t {
  ask_if_needed,  ///< Ask the peer for an acknowledgement when anything of its was dropped meanwhile.
  ask,            ///< Always. A peer that has gone answers with a reset.
};

/// Puts the connection into `socket`, which has none: a new one, or one that has been silenced. From
/// then on its segments reach it, and for a moment the guard still keeps late ones from the listener.
/// Throws SystemError; then the socket is to be closed (which says nothing to the peer), and the guard
/// still holds the segments back. EADDRNOTAVAIL: there is another socket for the same connection.
void rebuild_tcp(int socket, const TcpState& state, std::span<const std::byte> queues,
                 const TcpGuard& guard, AfterRebuild after);

/// Ends a silenced connection so that its peer sees it: with a reset.
void reset_tcp(int socket, const TcpState& state, const TcpGuard& guard) noexcept;

}  // namespace c10k
