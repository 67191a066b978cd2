// A connection's snapshot as a message between two processes.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "ipc/handoff.hpp"
#include "ipc/tcp_snapshot.hpp"

namespace c10k {

/// One message of a SEQPACKET pair: the state and the queues; large queues are in a memfd beside it.
/// Never blocks. With starved, errno says what is lacking.
Channel send_snapshot(int socket, const ConnectionTag& tag, const TcpSnapshot& snapshot);
/// The connection's own descriptor instead.
Channel send_descriptor(int socket, const ConnectionTag& tag, int descriptor);

struct TcpMessage {
  ConnectionTag tag;
  std::optional<TcpSnapshot> snapshot;
  OwnedFd descriptor;  ///< When there is no snapshot; empty when this process had no number free.
};

/// State more: the message is filled in. Throws for what is no message, and when there is no memory.
Channel receive_message(int socket, TcpMessage& message);

}  // namespace c10k
