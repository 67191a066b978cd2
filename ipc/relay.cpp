// relay: no hand-off at all, the control. The acceptor keeps the client's connection and relays bytes
// to the worker and back, as a reverse proxy does.
//
// Mechanism    all connections of a worker share one AF_UNIX stream, framed (relay_channel.hpp). The
//              worker's source makes a socketpair for each, gives one end to the handler, and moves
//              bytes between the other end and the channel whenever receive() is called. A stream has
//              a window of 64 KiB each way, so a slow client stops only itself
// Kernel       any (epoll(7): 2.6)
// Privilege    none
// System calls per connection: acceptor 5 and 2 per echo (dup, 3 epoll_ctl, close; recv, send),
//              worker 5 and 2 per echo (socketpair, 2 epoll_ctl, shutdown, close; send, recv) beside
//              the handler's; the channel's are shared by all that moves in a turn. splice(2) would
//              not pay: TCP to AF_UNIX through a pipe takes 6.0 us for 20 bytes where recv and send
//              take 5.3, it breaks even near 16 KiB (6.0 against 6.5), and its length would have to be
//              known before it is framed
// Ownership    the acceptor's duplicate of the connection is the only one that lives; the handler's
//              descriptor is a socketpair's end, so options of TCP have no effect there. Not a byte
//              is taken from the client before the worker has counted the connection as received: it
//              confirms in the call of receive() after the one that returned it. So a worker that dies
//              before has lost nothing
// Death        of a worker: the acceptor passes on what it still finds in the channel and closes the
//              clients. Of the acceptor: all clients end with it, for their connections are its own
// Limits       a descriptor of the acceptor and two of a worker for a connection's whole life. Two in
//              the acceptor, as a proxy with a connection to its upstream for each has, would not hold
//              10,000 under an RLIMIT_NOFILE of 20,000
// Man pages    socketpair(2), unix(7), epoll(7), shutdown(2)
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdio>

#include "ipc/methods.hpp"
#include "ipc/process.hpp"
#include "ipc/relay_channel.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

class RelaySink : public ConnectionSink {
 public:
  RelaySink(OwnedFd socket, int worker_pidfd, std::int64_t write_timeout_ns)
      : channel_(std::move(socket), RelayChannel::Side::acceptor),
        worker_pidfd_(worker_pidfd),
        write_timeout_ns_(write_timeout_ns) {}

  /// A dead worker's last words: as many as its channel can hold.
  ~RelaySink() override {
    try {
      for (int i = 0; i < 16 && !channel_.ended() && has_ended(worker_pidfd_); ++i) attend();
    } catch (const std::exception& error) {
      fmt::print(stderr, "relay: {}\n", error.what());
    }
  }

  SendResult send(std::span<const Handover> batch) override {
    SendResult result;
    while (result.taken < batch.size()) {
      if (channel_.broken()) {
        result.state = Channel::closed;
        break;
      }
      // Unconfirmed ones are the channel's content, and a receive() of the worker has room for so many.
      if (channel_.unanswered() >= receive_room || channel_.congested()) {
        result.state = has_ended(worker_pidfd_) ? Channel::closed : Channel::would_block;
        break;
      }
      const Handover& next = batch[result.taken];
      OwnedFd own(::fcntl(next.fd, F_DUPFD_CLOEXEC, 3));
      if (!own) {
        if (errno != EMFILE) throw_system_error(errno, "fcntl {} F_DUPFD_CLOEXEC", next.fd);
        result.state = Channel::starved;
        result.error = errno;
        break;
      }
      if (write_timeout_ns_ != 0) limit_stall(own.get());
      channel_.open(std::move(own), next.tag);
      ++result.taken;
    }
    channel_.flush();
    return result;
  }

  /// A worker's confirmation makes room, and its counter tells.
  [[nodiscard]] int writable_fd() const override { return -1; }

  [[nodiscard]] int attention_fd() override { return channel_.fd(); }
  void attend() override {
    try {
      channel_.step();
    } catch (const std::exception& error) {
      // A worker that breaks the protocol harms only the connections that it has.
      channel_.end();
      throw BrokenProtocol(error.what());
    }
  }

 private:
  /// A worker that gives up a client which takes nothing closes behind what waits here for that client,
  /// and this process would keep it for ever. The worker, who counts it, comes first: so twice the time.
  void limit_stall(int connection) const {
    const auto limit_ms = static_cast<unsigned>(
        std::clamp<std::int64_t>(write_timeout_ns_ / 500'000, 1, 1'000'000'000));
    (void)::setsockopt(connection, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit_ms, sizeof limit_ms);
  }

  RelayChannel channel_;
  int worker_pidfd_;
  std::int64_t write_timeout_ns_;
};

class RelaySource : public ConnectionSource {
 public:
  explicit RelaySource(OwnedFd socket)
      : channel_(std::move(socket), RelayChannel::Side::worker,
                 [this](const ConnectionTag& tag) { return open(tag); }) {}

  [[nodiscard]] int fd() const override { return channel_.fd(); }
  [[nodiscard]] bool in_use() const override { return channel_.in_use() != 0; }
  [[nodiscard]] bool brings_descriptors() const override { return false; }

  ReceiveResult receive(std::span<Received> batch) override {
    batch_ = batch;
    result_ = {};
    refused_.clear();
    channel_.step();
    channel_.confirm_opened();
    for (const ConnectionTag& tag : refused_)
      batch_[result_.received + result_.refused++].tag = tag;
    result_.state = channel_.ended() ? Channel::closed : Channel::would_block;
    return result_;
  }

 private:
  /// The channel's end of a new pair; the other is the handler's.
  OwnedFd open(const ConnectionTag& tag) {
    if (result_.received + refused_.size() == batch_.size())
      throw std::runtime_error("relay: more connections than there is room for");
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) {
      if (errno != EMFILE && errno != ENFILE) throw_system_error(errno, "socketpair AF_UNIX");
      result_.error = errno;
      refused_.push_back(tag);
      return {};
    }
    batch_[result_.received++] = {OwnedFd(ends[1]), tag};
    return OwnedFd(ends[0]);
  }

  RelayChannel channel_;
  // Of the call of receive() that is under way:
  std::span<Received> batch_;
  ReceiveResult result_;
  std::vector<ConnectionTag> refused_;
};

class RelayLink : public Link {
 public:
  explicit RelayLink(std::int64_t write_timeout_ns) : write_timeout_ns_(write_timeout_ns) {}

  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    ends_.second.reset();
    return std::make_unique<RelaySink>(std::move(ends_.first), worker_pidfd, write_timeout_ns_);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    ends_.first.reset();
    return std::make_unique<RelaySource>(std::move(ends_.second));
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    return {ends_.second.get()};
  }

 private:
  std::int64_t write_timeout_ns_;
  std::pair<OwnedFd, OwnedFd> ends_ = unix_pair(SOCK_STREAM);
};

class Relay : public HandoffMethod {
 public:
  /// Both ends in one process: a connection opens, and its handler's end arrives.
  [[nodiscard]] Support probe() override {
    try {
      auto [ours, theirs] = unix_pair(SOCK_STREAM);
      const OwnedFd self = open_pidfd(::getpid());
      RelaySink sink(std::move(ours), self.get(), 0);
      RelaySource source(std::move(theirs));
      const auto [client, accepted] = unix_pair(SOCK_STREAM);
      const Handover one{accepted.get(), {}};
      std::vector<Received> arrived(receive_room);
      if (sink.send({&one, 1}).taken == 1 && source.receive(arrived).received == 1) return {};
      return {false, "a stream opened over a socketpair did not arrive"};
    } catch (const std::exception& error) {
      return {false, error.what()};
    }
  }
  std::unique_ptr<Link> open(const LinkRequest& request) override {
    return std::make_unique<RelayLink>(request.write_timeout_ns);
  }
};

}  // namespace

MethodEntry relay() {
  return {
      {.name = "relay",
       .summary = "no hand-off: the acceptor keeps the connection and relays bytes (the control)",
       .options = "",
       .kernel = "any",
       .privilege = "none",
       .syscalls =
           "acceptor 5 + 2 an echo, worker 5 + 2 an echo; the channel's are shared by a turn",
       .isolation = "full: no worker has a client's descriptor",
       .after_death = "nothing: its clients are closed. The acceptor's death ends all clients",
       .descriptors_in_flight = 1,
       .connections_stay = true,
       .worker_calls = {CallGroup::local_pair}},
      [](MethodOptions&) -> std::unique_ptr<HandoffMethod> { return std::make_unique<Relay>(); }};
}

}  // namespace c10k
