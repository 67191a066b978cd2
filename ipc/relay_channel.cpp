#include "ipc/relay_channel.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// A turn that has read so much writes it before it reads on.
constexpr std::size_t write_early = std::size_t{128} * 1024;
/// Beyond it no local socket is read until the other side has taken some.
constexpr std::size_t most_waiting = std::size_t{256} * 1024;
constexpr std::size_t read_size = std::size_t{256} * 1024;

}  // namespace

char* ByteQueue::room(std::size_t size) {
  if (capacity_ - end_ < size) {
    const std::size_t used = this->size();
    if (capacity_ - used < size) {
      const std::size_t larger = std::max(2 * capacity_, used + size);
      auto bytes = std::make_unique_for_overwrite<char[]>(larger);
      if (used != 0) std::memcpy(bytes.get(), data(), used);
      bytes_ = std::move(bytes);
      capacity_ = larger;
    } else if (used != 0) {
      std::memmove(bytes_.get(), data(), used);
    }
    begin_ = 0;
    end_ = used;
  }
  return bytes_.get() + end_;
}

void ByteQueue::consume(std::size_t size) {
  begin_ += size;
  if (begin_ == end_) begin_ = end_ = 0;
}

RelayChannel::RelayChannel(OwnedFd socket, Side side, OnOpen on_open)
    : side_(side),
      on_open_(std::move(on_open)),
      socket_(std::move(socket)),
      epoll_(checked([] { return ::epoll_create1(EPOLL_CLOEXEC); }, "epoll_create1")) {
  register_channel();
}

bool RelayChannel::congested() const {
  return out_.size() >= most_waiting;
}

void RelayChannel::step() {
  if (ended()) return;
  const int ready = retry_eintr([&] {
    return ::epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()), 0);
  });
  if (ready < 0) throw_system_error(errno, "epoll_wait {}", epoll_.get());
  for (int i = 0; i < ready && !ended(); ++i) {
    const epoll_event& event = events_[static_cast<std::size_t>(i)];
    constexpr std::uint32_t hung_up = EPOLLHUP | EPOLLERR;
    if (event.data.u64 == channel_key) {
      if ((event.events & (EPOLLIN | hung_up)) != 0) read_channel();
      continue;
    }
    // Its stream may have ended in this turn, and another have begun: reading that is no harm.
    const auto id = static_cast<std::uint32_t>(event.data.u64);
    if (!streams_[id].local || !streams_[id].registered) continue;
    if ((event.events & (EPOLLOUT | hung_up)) != 0) write_pending(id);
    if ((event.events & (EPOLLIN | hung_up)) != 0) read_local(id, (event.events & EPOLLHUP) != 0);
  }
  flush();
  resume_congested();
}

void RelayChannel::flush() {
  while (!ended() && !broken_ && out_.size() != 0) {
    const ssize_t sent = retry_eintr([&] {
      return ::send(socket_.get(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    });
    if (sent < 0) {
      if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM) break;
      broken_ =
          true;  // EPIPE, ECONNRESET: the other side has ended, but what it said is still there
      break;
    }
    out_.consume(static_cast<std::size_t>(sent));
  }
  if (ended()) return;
  if (broken_) out_.clear();
  register_channel();
}

/// In their order and only as far as there is room: to register all would be to take most out again.
void RelayChannel::resume_congested() {
  if (congested_.empty()) return;
  while (!ended() && !congested_.empty() && !congested()) {
    const std::uint32_t id = congested_.front();
    congested_.pop_front();
    streams_[id].congested = false;
    read_local(id, false);
  }
  flush();
}

void RelayChannel::end() {
  socket_.reset();  // no one else holds this end: the epoll forgets it
  for (std::uint32_t id = 0; id < streams_.size(); ++id) {
    Stream& stream = streams_[id];
    if (stream.registered) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, stream.local.get(), nullptr);
    stream = {};
  }
  in_use_ = unanswered_ = 0;
  opened_.clear();
  congested_.clear();
  out_.clear();
  in_.clear();
}

void RelayChannel::open(OwnedFd local, const ConnectionTag& tag) {
  if (free_.empty()) {
    free_.push_back(static_cast<std::uint32_t>(streams_.size()));
    streams_.emplace_back();
  }
  const std::uint32_t id = free_.back();
  free_.pop_back();
  streams_[id].local = std::move(local);
  streams_[id].in_use = true;
  ++in_use_;
  ++unanswered_;
  say(id, Kind::open, sizeof tag);
  std::memcpy(out_.room(sizeof tag), &tag, sizeof tag);
  out_.commit(sizeof tag);
}

void RelayChannel::confirm_opened() {
  if (opened_.empty() || ended()) return;
  for (const std::uint32_t id : opened_) say(id, Kind::confirmed);
  opened_.clear();
  register_channel();
}

void RelayChannel::say(std::uint32_t id, Kind kind, std::size_t size) {
  const Header header{id, kind, static_cast<std::uint32_t>(size)};
  std::memcpy(out_.room(sizeof header), &header, sizeof header);
  out_.commit(sizeof header);
}

void RelayChannel::read_channel() {
  char* const room = in_.room(read_size);
  const ssize_t got =
      retry_eintr([&] { return ::recv(socket_.get(), room, read_size, MSG_DONTWAIT); });
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) return end();
  in_.commit(static_cast<std::size_t>(got));
  Header header;
  while (in_.size() >= sizeof header) {
    std::memcpy(&header, in_.data(), sizeof header);
    const bool follows = header.kind == Kind::open || header.kind == Kind::data;
    const std::size_t payload = follows ? header.size : 0;
    if (header.size > window) throw std::runtime_error("relay: no frame");
    if (in_.size() < sizeof header + payload) return;
    handle(header, in_.data() + sizeof header);
    if (ended()) return;
    in_.consume(sizeof header + payload);
  }
}

RelayChannel::Stream& RelayChannel::known(std::uint32_t id) {
  if (id >= streams_.size() || !streams_[id].in_use || streams_[id].heard_closed)
    throw std::runtime_error("relay: a frame for a stream that is not open");
  return streams_[id];
}

void RelayChannel::handle(const Header& header, const char* payload) {
  const std::uint32_t id = header.stream;
  if (header.kind == Kind::open) {
    if (side_ != Side::worker || header.size != sizeof(ConnectionTag))
      throw std::runtime_error("relay: an open frame that is none");
    return handle_open(id, payload);
  }
  Stream& stream = known(id);
  const bool answers = header.kind == Kind::refused || header.kind == Kind::confirmed;
  if (stream.confirmed == answers)  // to a worker, which has confirmed, nothing is an answer
    throw std::runtime_error("relay: a stream is answered once, and first");
  switch (header.kind) {
    case Kind::refused:
      // The acceptor's own copy lives on: this one goes without a word to the client.
      --unanswered_;
      stream.said_closed = stream.heard_closed = true;
      stream.local.reset();
      return release_if_closed(id);
    case Kind::confirmed:
      // The bytes have mostly come by now: reading comes before registering.
      --unanswered_;
      stream.confirmed = true;
      return read_local(id, false);
    case Kind::data:
      return write_local(id, payload, header.size);
    case Kind::credit:
      stream.may_send = std::min(stream.may_send + header.size, window);
      return register_local(id);
    case Kind::end:
      stream.end_due = true;
      return write_pending(id);
    case Kind::closed:
      stream.heard_closed = true;
      stream.close_due = stream.read_ended = true;
      if (side_ == Side::worker) stream.pending.clear();  // the client is gone
      return write_pending(id);
    case Kind::open:
      break;
  }
  throw std::runtime_error("relay: a frame of no kind");
}

void RelayChannel::handle_open(std::uint32_t id, const char* payload) {
  // The acceptor's numbers have no gaps: a new one is the next, and its streams come in their order.
  if (id > streams_.size()) throw std::runtime_error("relay: a stream out of its order");
  if (id == streams_.size()) streams_.emplace_back();
  if (streams_[id].in_use) throw std::runtime_error("relay: a stream is opened twice");
  ConnectionTag tag;
  std::memcpy(&tag, payload, sizeof tag);
  OwnedFd local = on_open_(tag);
  if (!local) return say(id, Kind::refused);
  streams_[id].local = std::move(local);
  streams_[id].in_use = streams_[id].confirmed = true;
  ++in_use_;
  opened_.push_back(id);
  register_local(id);
}

void RelayChannel::read_local(std::uint32_t id, bool hung_up) {
  Stream& stream = streams_[id];
  if (!stream.local) return;
  if (out_.size() >= write_early) {
    flush();
    if (ended()) return;
    if (congested() && !stream.congested) {
      stream.congested = true;
      congested_.push_back(id);
    }
  }
  if (stream.congested || stream.close_due || (stream.may_send == 0 && !stream.read_ended))
    return register_local(id);

  // After its end there is nothing but to see whether it is the end of the other direction too.
  const std::size_t most = std::max<std::size_t>(stream.may_send, 1);
  char* const room = out_.room(sizeof(Header) + most);
  const ssize_t got = retry_eintr(
      [&] { return ::recv(stream.local.get(), room + sizeof(Header), most, MSG_DONTWAIT); });
  if (got > 0 && !stream.read_ended) {
    say(id, Kind::data, static_cast<std::size_t>(got));
    out_.commit(static_cast<std::size_t>(got));
    stream.may_send -= static_cast<std::size_t>(got);
  } else if (got < 0 && errno != EAGAIN) {
    return close_local(id);
  } else if (got == 0) {
    if (hung_up) return close_local(id);
    if (!stream.read_ended) say(id, Kind::end);
    stream.read_ended = true;
  }
  register_local(id);
}

ssize_t RelayChannel::send_local(std::uint32_t id, const char* data, std::size_t size) {
  Stream& stream = streams_[id];
  const ssize_t sent = retry_eintr(
      [&] { return ::send(stream.local.get(), data, size, MSG_NOSIGNAL | MSG_DONTWAIT); });
  if (sent < 0 && errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM) {
    stream.pending.clear();
    stream.write_ended = true;
    // A client that takes nothing any more has gone. A handler that has closed may have left an
    // answer, which is still to be read; then comes the end.
    if (side_ == Side::acceptor) close_local(id);
    return -1;
  }
  const auto taken = static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
  stream.passed_on += taken;
  if (stream.passed_on >= window / 2 && !stream.heard_closed)
    say(id, Kind::credit, std::exchange(stream.passed_on, 0));
  return static_cast<ssize_t>(taken);
}

void RelayChannel::write_local(std::uint32_t id, const char* data, std::size_t size) {
  Stream& stream = streams_[id];
  if (!stream.local || stream.write_ended) return;
  std::vector<char>& pending = stream.pending;
  if (pending.empty()) {
    const ssize_t sent = send_local(id, data, size);
    if (sent < 0) return;
    data += sent;
    size -= static_cast<std::size_t>(sent);
    if (size == 0) return;
    stream.pending_from = 0;
  }
  if (pending.size() - stream.pending_from + size > window)
    throw std::runtime_error("relay: more than the window allows");
  pending.erase(pending.begin(),
                pending.begin() + static_cast<std::ptrdiff_t>(stream.pending_from));
  stream.pending_from = 0;
  pending.insert(pending.end(), data, data + size);
  register_local(id);
}

void RelayChannel::write_pending(std::uint32_t id) {
  Stream& stream = streams_[id];
  std::vector<char>& pending = stream.pending;
  if (stream.local && !pending.empty()) {
    const ssize_t sent =
        send_local(id, pending.data() + stream.pending_from, pending.size() - stream.pending_from);
    if (sent > 0) stream.pending_from += static_cast<std::size_t>(sent);
    if (stream.pending_from == pending.size()) pending.clear();
  }
  if (pending.empty()) {
    stream.pending_from = 0;
    std::vector<char>().swap(pending);
    if (stream.close_due) return close_local(id);
    if (stream.end_due && stream.local && !std::exchange(stream.write_ended, true))
      ::shutdown(stream.local.get(), SHUT_WR);  // fails when it has ended already
  }
  register_local(id);
}

void RelayChannel::close_local(std::uint32_t id) {
  Stream& stream = streams_[id];
  if (stream.local) {
    // The acceptor's own copy may still be open, and an event belongs to the open file.
    if (stream.registered)
      checked([&] { return ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, stream.local.get(), nullptr); },
              "epoll_ctl DEL {}", stream.local.get());
    stream.registered = false;
    stream.local.reset();
    std::vector<char>().swap(stream.pending);
  }
  if (!std::exchange(stream.said_closed, true)) say(id, Kind::closed);
  release_if_closed(id);
}

void RelayChannel::release_if_closed(std::uint32_t id) {
  Stream& stream = streams_[id];
  if (!stream.in_use || !stream.said_closed || !stream.heard_closed) return;
  stream = {};
  --in_use_;
  if (side_ == Side::acceptor) free_.push_back(id);
}

/// Level-triggered, so that the usual short read needs no second one to see that there is no more. A
/// socket that nothing is wanted from is not registered at all: its hang-up would be reported for ever.
void RelayChannel::register_local(std::uint32_t id) {
  Stream& stream = streams_[id];
  if (!stream.local) return;
  if (stream.read_ended && stream.write_ended && stream.pending.empty()) return close_local(id);
  const bool reads = stream.confirmed && !stream.read_ended && !stream.congested &&
                     !stream.close_due && stream.may_send != 0;
  const bool writes = !stream.pending.empty();
  // Behind the end of what it says, its hang-up says that it is gone.
  const bool waits = reads || writes || stream.read_ended;
  const std::uint32_t interest =
      (reads ? std::uint32_t{EPOLLIN} : 0) | (writes ? std::uint32_t{EPOLLOUT} : 0);
  if (waits == stream.registered && (!waits || interest == stream.interest)) return;
  epoll_event event{.events = interest, .data = {.u64 = id}};
  const int operation = !waits ? EPOLL_CTL_DEL : stream.registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  checked([&] { return ::epoll_ctl(epoll_.get(), operation, stream.local.get(), &event); },
          "epoll_ctl {} {}", operation, stream.local.get());
  stream.registered = waits;
  stream.interest = interest;
}

void RelayChannel::register_channel() {
  const bool writes = out_.size() != 0 || !congested_.empty();
  const std::uint32_t interest = writes ? EPOLLIN | EPOLLOUT : EPOLLIN;
  if (interest == channel_interest_) return;
  epoll_event event{.events = interest, .data = {.u64 = channel_key}};
  const int operation = channel_interest_ == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  checked([&] { return ::epoll_ctl(epoll_.get(), operation, socket_.get(), &event); },
          "epoll_ctl {} {}", operation, socket_.get());
  channel_interest_ = interest;
}

}  // namespace c10k
