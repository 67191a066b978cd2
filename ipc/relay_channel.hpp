// Many byte streams over one socket: what relay's acceptor and worker speak.
//
// Each side has a local socket for every stream (the acceptor the client's, the worker one end of a
// pair) and shovels between them and the channel. A side may send `window` bytes of a stream
// beyond what the other has passed on, so nobody's buffer grows without bound and a slow reader stops
// only its own stream. What is read goes straight into the channel's next write, so that a turn costs
// one write and one read of the channel however many streams move.
#pragma once

#include <sys/epoll.h>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "ipc/handoff.hpp"

namespace c10k {

/// Bytes that wait to be parsed or to be written; reuses its memory, and touches no more of it than was
/// ever full.
class ByteQueue {
 public:
  [[nodiscard]] std::size_t size() const { return end_ - begin_; }
  [[nodiscard]] const char* data() const { return bytes_.get() + begin_; }
  /// Where the next `size` bytes go; commit() says how many there are.
  [[nodiscard]] char* room(std::size_t size);
  void commit(std::size_t size) { end_ += size; }
  void consume(std::size_t size);
  void clear() { begin_ = end_ = 0; }

 private:
  std::unique_ptr<char[]> bytes_;
  std::size_t capacity_ = 0;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

class RelayChannel {
 public:
  enum class Side : std::uint8_t { acceptor, worker };
  static constexpr std::size_t window = std::size_t{64} * 1024;

  /// The worker's: asked for its local socket when a stream opens. Empty: refused.
  using OnOpen = std::function<OwnedFd(const ConnectionTag&)>;

  RelayChannel(OwnedFd socket, Side side, OnOpen on_open = nullptr);

  /// Readable (level-triggered) when step() has something to do.
  [[nodiscard]] int fd() const { return epoll_.get(); }
  /// Moves what can be moved, and returns. Throws when the other side breaks the protocol.
  void step();
  /// Writes what waits, as far as it goes.
  void flush();
  /// Closes the channel and every local socket.
  void end();
  [[nodiscard]] bool ended() const { return !socket_; }
  /// True once nothing can be written any more; what the other side wrote may still be there.
  [[nodiscard]] bool broken() const { return broken_ || ended(); }

  /// The acceptor's: begins a stream. Not a byte of `local` is read before the worker has confirmed
  /// it. Call flush() afterwards.
  void open(OwnedFd local, const ConnectionTag& tag);
  /// Streams begun and neither confirmed nor refused.
  [[nodiscard]] std::size_t unanswered() const { return unanswered_; }
  /// The worker's: confirms what has been opened, at the next step().
  void confirm_opened();

  /// Streams that either side still has something to say about.
  [[nodiscard]] std::size_t in_use() const { return in_use_; }
  /// True while more waits to be written than a turn should leave behind.
  [[nodiscard]] bool congested() const;

 private:
  enum class Kind : std::uint32_t { open = 1, refused, confirmed, data, credit, end, closed };
  struct Header {
    std::uint32_t stream;
    Kind kind;
    std::uint32_t size;  ///< of what follows (open, data), or the credit
  };
  struct Stream {
    OwnedFd local;
    std::vector<char> pending;  ///< for `local`, which is full
    std::size_t pending_from = 0;
    std::size_t may_send = window;
    std::size_t passed_on = 0;   ///< and not yet credited to the other side
    std::uint32_t interest = 0;  ///< as registered
    bool in_use = false;
    bool registered = false;
    bool confirmed = false;
    bool congested = false;   ///< waits for the channel to have room
    bool read_ended = false;  ///< `local` has said its end
    bool end_due = false;     ///< the other side has: shut down behind what is pending
    bool write_ended = false;
    bool close_due = false;  ///< the other side has closed: close behind what is pending
    bool said_closed = false;
    bool heard_closed = false;
  };
  static constexpr std::uint64_t channel_key = ~std::uint64_t{0};

  void say(std::uint32_t id, Kind kind, std::size_t size = 0);
  void read_channel();
  void handle(const Header& header, const char* payload);
  void handle_open(std::uint32_t id, const char* payload);
  Stream& known(std::uint32_t id);

  void read_local(std::uint32_t id, bool hung_up);
  void write_local(std::uint32_t id, const char* data, std::size_t size);
  void write_pending(std::uint32_t id);
  /// Says how many bytes went to the local socket; -1 when it takes none any more.
  ssize_t send_local(std::uint32_t id, const char* data, std::size_t size);
  void close_local(std::uint32_t id);
  void release_if_closed(std::uint32_t id);
  void register_local(std::uint32_t id);
  void register_channel();
  void resume_congested();

  Side side_;
  OnOpen on_open_;
  OwnedFd socket_;
  OwnedFd epoll_;
  std::uint32_t channel_interest_ = 0;
  bool broken_ = false;
  std::vector<Stream> streams_;
  std::vector<std::uint32_t> free_;
  std::vector<std::uint32_t> opened_;  // and not yet confirmed
  /// Wait for the channel to have room; may name a stream twice, or one that is gone.
  std::deque<std::uint32_t> congested_;
  std::size_t unanswered_ = 0;
  std::size_t in_use_ = 0;
  ByteQueue in_;
  ByteQueue out_;
  std::array<epoll_event, 256> events_;
};

}  // namespace c10k
