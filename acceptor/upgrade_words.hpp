// What a server and its successor say to each other, over AF_UNIX SOCK_SEQPACKET.
//
//   successor               server
//   hello            ->
//                    <-     offer: a frame of descriptors follows it (ipc/scm.hpp), or refusal
//   (starts; its workers are ready)
//   ready            ->     stops accepting, unless ...
//                    <-     retiring: the only point of no return, for both
//   (accepts)
//                    <-     left: all its processes have let go of the listeners
//                    <-     with --retain: frames of descriptors, each a connection
//   adopted          ->     for each of them
//                    <-     its end
//
// Until `retiring` is sent, whatever goes wrong on either side leaves the server as it was.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace c10k {

/// How long either side waits for a word of the other that needs no work there.
inline constexpr std::int64_t word_deadline_ns = 10'000'000'000;
/// How long a successor may take from the offer to being ready. Its own workers' deadline is 10 s, and it
/// should be the one to say what was wrong.
inline constexpr std::int64_t start_of_successor_ns = 15'000'000'000;

enum class Word : std::uint16_t {
  hello,    ///< text: how it would listen (HandoffMethod::listening())
  offer,    ///< first: descriptors that follow; text: how the server listens
  refusal,  ///< text: why not
  ready,    ///< first: 1 when it adopts live connections
  retiring,
  left,
  adopted,  ///< Of one frame. first: taken; second: refused for want of a descriptor
};

struct Message {
  static constexpr std::uint32_t expected_magic = 0x72653163;
  static constexpr std::uint16_t current_version = 1;
  std::uint32_t magic = expected_magic;
  std::uint16_t version = current_version;
  Word word{};
  std::uint64_t first = 0;
  std::uint64_t second = 0;
  char text[232] = {};  ///< ends with a zero

  [[nodiscard]] std::string_view words() const { return text; }
};

/// Sends a message, which is far smaller than the socket's buffer. False when the other side has gone, or
/// has let its messages pile up until there was no room.
[[nodiscard]] bool say(int socket, Word word, std::uint64_t first = 0, std::uint64_t second = 0,
                       std::string_view text = "");

/// The next message, or nothing while there is none. Descriptors that come with it are closed. Throws
/// std::runtime_error at the end of the stream and for anything that is no message of this version.
[[nodiscard]] std::optional<Message> hear(int socket, std::string_view who);

/// Waits for the next message. Throws also when none has come in time.
[[nodiscard]] Message wait_to_hear(int socket, std::string_view who);

/// True when what waits next is a message, false when it is a frame of descriptors or the end.
[[nodiscard]] bool message_is_next(int socket);

/// Waits until there is something to read. Throws std::runtime_error after word_deadline_ns.
void wait_to_read(int socket, std::string_view who);

}  // namespace c10k
