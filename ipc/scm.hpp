// SCM_RIGHTS over an unnamed AF_UNIX pair: the message, and the link that the three scm methods share.
//
// A message is a fixed frame and one control message with exactly as many descriptors as the frame
// has tags. What arrives is treated as hostile (see receive_frame).
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>

#include "ipc/handoff.hpp"

namespace c10k {

/// The most descriptors that one message can carry (SCM_MAX_FD, include/net/scm.h; 254 is EINVAL).
inline constexpr std::size_t scm_max_descriptors = 253;

/// What travels as data in one message: magic, count, and a tag per descriptor.
struct ScmFrame {
  static constexpr std::uint32_t expected_magic = 0x6b303163;  // "c10k"
  std::uint32_t magic = expected_magic;
  std::uint32_t count = 0;
  /// Raw, so that a message of one connection does not set 6 KiB to zero on either side.
  std::byte tags[scm_max_descriptors * sizeof(ConnectionTag)];

  void set_tag(std::size_t i, const ConnectionTag& tag) {
    std::memcpy(tags + i * sizeof tag, &tag, sizeof tag);
  }
  [[nodiscard]] ConnectionTag tag(std::size_t i) const {
    ConnectionTag tag;
    std::memcpy(&tag, tags + i * sizeof tag, sizeof tag);
    return tag;
  }
  [[nodiscard]] static constexpr std::size_t bytes(std::size_t count) {
    return offsetof(ScmFrame, tags) + count * sizeof(ConnectionTag);
  }
};
static_assert(std::is_trivially_copyable_v<ConnectionTag>);

/// Takes every descriptor out of a received message's control data, and gives those that were sent to
/// `each` (an OwnedFd). To be called for every message, whatever it is: the kernel has installed them.
/// Room for one descriptor may bring two, for CMSG_SPACE() rounds up (net/core/scm.c, scm_max_fds).
template <typename Each>
void take_descriptors(msghdr& message, Each&& each) {
  constexpr int scm_pidfd = 4;  // SCM_PIDFD, Linux 6.5: what SO_PASSPIDFD adds
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    const bool sent = header->cmsg_type == SCM_RIGHTS;
    if (header->cmsg_level != SOL_SOCKET || (!sent && header->cmsg_type != scm_pidfd)) continue;
    const std::size_t here = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < here; ++i) {
      int number;
      std::memcpy(&number, CMSG_DATA(header) + i * sizeof number, sizeof number);
      OwnedFd descriptor(number);
      if (sent) each(std::move(descriptor));
    }
  }
}

/// Sends one message with all of `batch` (1 to 253). Returns more, would_block, starved
/// (ETOOMANYREFS: too many descriptors in flight for this user; ENOBUFS; errno says which) or closed.
[[nodiscard]] Channel send_frame(int socket, std::span<const Handover> batch);

/// Receives at most one message into a prefix of `batch`, which has `receive_room`.
/// Close-on-exec is set atomically. Every control message is walked; whatever does not fit the
/// frame (surplus, shortage, foreign kinds, a wrong length or magic) is closed, and throws
/// std::runtime_error: the peer is not the acceptor, or is broken. A message truncated because this
/// process has no descriptor free keeps nothing and returns `refused`.
[[nodiscard]] ReceiveResult receive_frame(int socket, std::span<Received> batch, bool datagram);

/// The two ends over any socket that send_frame() can use. `worker_pidfd` is lent.
[[nodiscard]] std::unique_ptr<ConnectionSink> make_scm_sink(OwnedFd socket, std::size_t batch,
                                                            int worker_pidfd);
[[nodiscard]] std::unique_ptr<ConnectionSource> make_scm_source(OwnedFd socket, bool datagram,
                                                                bool exclusive,
                                                                bool shared = false);

/// The link of a socket type; `batch` bounds the descriptors in a message.
[[nodiscard]] std::unique_ptr<Link> open_scm_link(int socket_type, std::size_t batch);

/// Tries to pass a descriptor over a pair of the type.
[[nodiscard]] Support probe_scm(int socket_type);

/// The facts that the three methods share.
[[nodiscard]] MethodFacts scm_facts(std::string_view name, std::string_view summary);

/// A method that opens links of the type, with the option `batch`.
[[nodiscard]] std::unique_ptr<HandoffMethod> make_scm_method(int socket_type,
                                                             MethodOptions& options);

}  // namespace c10k
