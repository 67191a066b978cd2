// tcp-repair: no descriptor travels but the connection itself, as bytes: it is dumped out of the
// acceptor's socket, sent to the worker, and rebuilt there in a socket of the worker's own.
//
// Mechanism    TCP_REPAIR reads and writes what a connection consists of: sequence numbers, windows,
//              options, both queues. The snapshot goes over an unnamed SEQPACKET pair; queues above
//              16 KiB go beside it in a memfd. In between the connection is in no socket, so a segment of
//              its client would meet the listener and be answered with a reset: a filter on the
//              listener drops it, and for 100 ms more what is late; the client sends it again (guard=off
//              shows what happens without)
// Kernel       5.14 (SO_BUF_LOCK, BPF_MAP_LOOKUP_AND_DELETE_ELEM on a hash)
// Privilege    CAP_NET_ADMIN in both processes, and CAP_BPF (or CAP_SYS_ADMIN) for the filter
// System calls 25 in the acceptor, 21 in the worker, for a connection whose queues are empty
// Ownership    the acceptor's copy is an empty socket while the snapshot is under way; the sink keeps the
//              snapshot, and puts it back into the copy, until the worker has rebuilt the connection
// Death        a worker's: its half-built connection says nothing to the client (repair mode), and the
//              sink rebuilds what was under way in the acceptor's copies. One that it had just rebuilt and
//              not counted yet ends with it, and counts as lost.
//              The acceptor's: the worker resets what it had not taken. A connection that the acceptor had
//              silenced and not sent yet (some 20 us of each hand-off) ends without a word: its client
//              learns it when it next sends something
// Not dumped   a connection that is not ESTABLISHED (its client has closed its side, or reset it) or has an
//              urgent mark in its queue cannot be rebuilt: it goes as a descriptor through the same pair,
//              and the worker finds the end or the error that anybody would find
// Cost         a segment that comes in the gap is dropped, and sent again after the client's retransmission
//              timeout: 200 ms at first, whatever the round trip. The filter keeps the first one if it is
//              small, and then it costs nothing
// Man pages    tcp(7) does not have it: net/ipv4/tcp.c, and CRIU's libsoccr; unix(7), memfd_create(2), bpf(2)
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>

#include "ipc/methods.hpp"
#include "ipc/process.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"
#include "ipc/tcp_message.hpp"

namespace c10k {
namespace {

/// Sent and not known to have been rebuilt or refused; what the worker says about each fits a ring.
constexpr std::size_t most_in_flight = 1024;
/// Bytes of queues in the snapshots that one sink keeps; a larger one goes when it is the only one.
constexpr std::size_t most_kept_bytes = std::size_t{32} << 20;
constexpr std::size_t rebuilds_per_call = 32;

/// What the worker says to the sink; it is the only writer.
struct Progress {
  alignas(64) std::atomic<std::uint64_t> done{0};
  std::array<std::atomic<std::uint8_t>, most_in_flight> refused{};  ///< by message, modulo the size
};
using SharedProgress = std::shared_ptr<SharedArray<Progress>>;

class RepairSink : public ConnectionSink {
 public:
  RepairSink(OwnedFd socket, SharedProgress progress, std::shared_ptr<const TcpGuard> guard,
             int worker_pidfd)
      : socket_(std::move(socket)),
        progress_(std::move(progress)),
        guard_(std::move(guard)),
        worker_pidfd_(worker_pidfd) {
    int size = 0;
    socklen_t length = sizeof size;
    checked([&] { return ::getsockopt(socket_.get(), SOL_SOCKET, SO_SNDBUF, &size, &length); },
            "getsockopt SO_SNDBUF");
    room_ = size;
  }

  /// Nobody will rebuild what a dead worker has not: their clients get an end to see. (A worker that
  /// lives still takes what is in the channel.)
  ~RepairSink() override {
    if (!has_ended(worker_pidfd_)) return;
    settle();
    for (const Kept& kept : kept_) {
      if (kept.done && !kept.refused) continue;
      if (!kept.dumped) continue;
      try {
        const OwnedFd socket(::socket(kept.snapshot.state.local.family(), SOCK_STREAM, 0));
        reset_tcp(socket.get(), kept.snapshot.state, *guard_);
      } catch (const std::exception&) {
        continue;
      }
    }
  }

  SendResult send(std::span<const Handover> batch) override {
    settle();
    SendResult result;
    if (has_ended(worker_pidfd_)) return {.state = Channel::closed};
    while (result.taken < batch.size()) {
      result.state = send_one(batch[result.taken]);
      if (result.state != Channel::more) {
        if (result.state == Channel::starved) result.error = errno;
        break;
      }
      ++result.taken;
    }
    return result;
  }

  /// The kernel calls the pair writable when a quarter of its buffer is in use, and the kept bytes have a
  /// bound of their own: the acceptor looks again as the worker's counter goes on.
  [[nodiscard]] int writable_fd() const override { return -1; }

  [[nodiscard]] bool take_back(const Handover& handover) override {
    settle();
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& kept) {
      return kept.fd == handover.fd && kept.id == handover.tag.id && (!kept.done || kept.refused);
    });
    // Rebuilt by a worker that has died before it could count it: the kernel has ended it.
    if (found == kept_.end()) return false;
    const Kept kept = std::move(*found);
    kept_bytes_ -= kept.snapshot.queues.size();
    kept_.erase(found);
    return !kept.dumped || put_back(kept.fd, kept.snapshot);
  }

 private:
  /// What send() took, until the worker has rebuilt it or take_back() has put it back.
  struct Kept {
    std::uint64_t sequence = 0;
    int fd = -1;
    std::uint64_t id = 0;
    bool dumped = false;
    bool done = false;
    bool refused = false;
    TcpSnapshot snapshot;
  };

  /// Forgets what the worker has rebuilt; what it has refused waits for take_back().
  void settle() {
    const Progress& progress = (*progress_)[0];
    const std::uint64_t done = progress.done.load(std::memory_order_acquire);
    if (done == settled_) return;
    settled_ = done;
    std::erase_if(kept_, [&](Kept& kept) {
      if (kept.done || kept.sequence >= done) return false;
      kept.done = true;
      kept.refused =
          progress.refused[kept.sequence % most_in_flight].load(std::memory_order_relaxed) != 0;
      if (!kept.refused) kept_bytes_ -= kept.snapshot.queues.size();
      return !kept.refused;
    });
  }

  /// Whether the pair takes another message. Only this process adds to it, so the answer stays true; to
  /// find out by trying would cost a silenced connection its way back.
  [[nodiscard]] bool has_room() const {
    int in_use = 0;
    checked([&] { return ::ioctl(socket_.get(), SIOCOUTQ, &in_use); }, "ioctl SIOCOUTQ");
    return in_use < room_ && kept_.size() < most_in_flight && kept_bytes_ < most_kept_bytes;
  }

  Channel send_one(const Handover& handover) {
    if (!has_room()) return Channel::would_block;
    Kept kept{.sequence = sent_, .fd = handover.fd, .id = handover.tag.id, .snapshot = {}};
    if (std::optional<TcpSnapshot> snapshot = freeze_tcp(handover.fd, *guard_)) {
      kept.snapshot = std::move(*snapshot);
      kept.dumped = silence_tcp(handover.fd, kept.snapshot);
      // Else bytes have been acknowledged that are nowhere now. The connection must not go on without
      // them: its client sees a reset, and the worker the socket that had it.
      if (!kept.dumped) reset_tcp(handover.fd, kept.snapshot.state, *guard_);
    }
    const Channel state = kept.dumped ? send_snapshot(socket_.get(), handover.tag, kept.snapshot)
                                      : send_descriptor(socket_.get(), handover.tag, handover.fd);
    if (state != Channel::more) {
      const int error = errno;
      // When that fails too, the next attempt hands on a socket that says so.
      if (kept.dumped) (void)put_back(handover.fd, kept.snapshot);
      errno = error;
      return state;
    }
    ++sent_;
    kept_bytes_ += kept.snapshot.queues.size();
    kept_.push_back(std::move(kept));
    return Channel::more;
  }

  [[nodiscard]] bool put_back(int fd, const TcpSnapshot& snapshot) {
    try {
      // The client may have gone meanwhile, or have been told an end by a worker that died in between.
      rebuild_tcp(fd, snapshot.state, snapshot.queues, *guard_, AfterRebuild::ask);
      int aborted = 0;  // what silencing left behind (ECONNABORTED)
      socklen_t size = sizeof aborted;
      ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &aborted, &size);
      return true;
    } catch (const SystemError&) {
      reset_tcp(fd, snapshot.state, *guard_);
      return false;
    }
  }

  OwnedFd socket_;
  SharedProgress progress_;
  std::shared_ptr<const TcpGuard> guard_;
  int worker_pidfd_;
  int room_ = 0;
  std::deque<Kept> kept_;
  std::size_t kept_bytes_ = 0;
  std::uint64_t sent_ = 0;
  std::uint64_t settled_ = 0;
};

class RepairSource : public ConnectionSource {
 public:
  RepairSource(OwnedFd socket, SharedProgress progress, std::shared_ptr<const TcpGuard> guard)
      : socket_(std::move(socket)), progress_(std::move(progress)), guard_(std::move(guard)) {}

  /// While the acceptor lives it takes back what has not been received here. When it has died, nobody
  /// does: the clients are to see an end.
  ~RepairSource() override {
    pollfd entry{socket_.get(), 0, 0};
    if (::poll(&entry, 1, 0) != 1 || (entry.revents & POLLHUP) == 0) return;
    try {
      Received unserved;
      while (receive_one(unserved) == Arrival::connection) {
        const linger reset{1, 0};
        ::setsockopt(unserved.fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        unserved.fd.reset();
      }
    } catch (const std::exception&) {
      return;
    }
  }

  [[nodiscard]] int fd() const override { return socket_.get(); }

  ReceiveResult receive(std::span<Received> batch) override {
    ReceiveResult result;
    const std::size_t most = std::min(batch.size(), rebuilds_per_call);
    while (result.received < most) {
      switch (receive_one(batch[result.received])) {
        case Arrival::connection:
          ++result.received;
          continue;
        case Arrival::refused:
          result.refused = 1;
          result.error = error_;
          return result;
        case Arrival::none:
          result.state = Channel::would_block;
          return result;
        case Arrival::end:
          result.state = Channel::closed;
          return result;
      }
    }
    return result;
  }

 private:
  enum class Arrival : std::uint8_t { connection, refused, none, end };

  Arrival receive_one(Received& arrived) {
    TcpMessage message;
    switch (receive_message(socket_.get(), message)) {
      case Channel::more:
        break;
      case Channel::closed:
        return Arrival::end;
      default:
        return Arrival::none;
    }
    arrived.tag = message.tag;
    if (message.descriptor) {
      arrived.fd = std::move(message.descriptor);
      TcpGuard::detach(arrived.fd.get());
      return settle(Arrival::connection, 0);
    }
    if (!message.snapshot) return settle(Arrival::refused, EMFILE);
    try {
      const TcpState& state = message.snapshot->state;
      OwnedFd socket(checked(
          [&] {
            return ::socket(state.local.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
          },
          "socket TCP"));
      rebuild_tcp(socket.get(), state, message.snapshot->queues, *guard_,
                  AfterRebuild::ask_if_needed);
      arrived.fd = std::move(socket);
    } catch (const SystemError& error) {
      // No descriptor, no memory, or another socket for the same connection. The acceptor tries again.
      return settle(Arrival::refused, error.code().value());
    }
    return settle(Arrival::connection, 0);
  }

  /// Lets the sink forget its snapshot, or keep it.
  Arrival settle(Arrival arrival, int error) {
    Progress& progress = (*progress_)[0];
    const std::uint64_t sequence = progress.done.load(std::memory_order_relaxed);
    progress.refused[sequence % most_in_flight].store(arrival == Arrival::refused ? 1 : 0,
                                                      std::memory_order_relaxed);
    progress.done.store(sequence + 1, std::memory_order_release);
    error_ = error;
    return arrival;
  }

  OwnedFd socket_;
  SharedProgress progress_;
  std::shared_ptr<const TcpGuard> guard_;
  int error_ = 0;
};

class RepairLink : public Link {
 public:
  explicit RepairLink(std::shared_ptr<const TcpGuard> guard)
      : ends_(unix_pair(SOCK_SEQPACKET)),
        progress_(std::make_shared<SharedArray<Progress>>(1, SharedWith::one_child)),
        guard_(std::move(guard)) {}

  std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) override {
    ends_.second.reset();
    return std::make_unique<RepairSink>(std::move(ends_.first), progress_, guard_, worker_pidfd);
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    return std::make_unique<RepairSource>(std::move(ends_.second), progress_, guard_);
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    std::vector<int> needed = guard_->descriptors();
    needed.push_back(ends_.second.get());
    return needed;
  }

 private:
  std::pair<OwnedFd, OwnedFd> ends_;
  SharedProgress progress_;
  std::shared_ptr<const TcpGuard> guard_;
};

class TcpRepair : public HandoffMethod {
 public:
  explicit TcpRepair(bool guarded) : guarded_(guarded) {}

  /// Moves a connection of its own over loopback.
  [[nodiscard]] Support probe() override {
    try {
      const TcpGuard guard;
      const OwnedFd listener = listen_tcp(SocketAddress::loopback_source(1), {.backlog = 1});
      const SocketAddress address = SocketAddress::local(listener.get());
      const OwnedFd client(
          checked([] { return ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); }, "socket TCP"));
      checked([&] { return ::connect(client.get(), address.data(), address.size()); }, "connect");
      const OwnedFd accepted(checked(
          [&] { return ::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC); }, "accept4"));
      guard.attach(listener.get());
      const std::optional<TcpSnapshot> snapshot = freeze_tcp(accepted.get(), guard);
      if (!snapshot) return {false, "TCP_REPAIR: a fresh connection could not be dumped"};
      const bool whole = silence_tcp(accepted.get(), *snapshot);
      const OwnedFd rebuilt(
          checked([] { return ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); }, "socket TCP"));
      rebuild_tcp(rebuilt.get(), snapshot->state, snapshot->queues, guard,
                  AfterRebuild::ask_if_needed);
      char byte = 0;
      if (!whole || ::send(client.get(), "x", 1, MSG_NOSIGNAL) != 1 ||
          ::recv(rebuilt.get(), &byte, 1, 0) != 1)
        return {false, "TCP_REPAIR: a moved connection did not go on"};
      return {};
    } catch (const SystemError& error) {
      const int number = error.code().value();
      const char* remedy = number == EPERM ? "; it needs CAP_NET_ADMIN and CAP_BPF: run as root"
                           : number == ENOSYS || number == EINVAL || number == ENOPROTOOPT
                               ? "; it needs Linux 5.14 with CONFIG_BPF_SYSCALL"
                               : "";
      return {false, fmt::format("{}{}", error.what(), remedy)};
    } catch (const std::exception& error) {
      return {false, error.what()};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest& request) override {
    if (!guard_) guard_ = std::make_shared<TcpGuard>();
    if (guarded_ && request.listener >= 0) guard_->attach(request.listener);
    return std::make_unique<RepairLink>(guard_);
  }

  /// A listener has one filter, which its connections inherit. So while a server and its successor both have
  /// connections under way they must go by one set.
  [[nodiscard]] std::string listening(std::size_t /*workers*/) const override {
    return guarded_ ? "one listener with the filter of tcp-repair" : "one listener";
  }
  [[nodiscard]] std::vector<int> listeners(int server) const override {
    std::vector<int> all{server};
    if (guarded_) {
      const std::vector<int> guards = guard_->descriptors();
      all.insert(all.end(), guards.begin(), guards.end());
    }
    return all;
  }
  [[nodiscard]] OwnedFd adopt_listeners(std::vector<OwnedFd> listeners,
                                        const ListenOptions& /*options*/) override {
    if (listeners.size() != (guarded_ ? 4 : 1))
      throw std::runtime_error("tcp-repair: the running server sent another number of descriptors");
    if (guarded_)
      guard_ = std::make_shared<TcpGuard>(std::move(listeners[1]), std::move(listeners[2]),
                                          std::move(listeners[3]));
    return std::move(listeners[0]);
  }

 private:
  bool guarded_;
  std::shared_ptr<const TcpGuard> guard_;
};

}  // namespace

MethodEntry tcp_repair() {
  return {
      {.name = "tcp-repair",
       .summary = "the connection itself as bytes: dumped, sent, rebuilt in the worker",
       .options = "guard=on|off (on)",
       .kernel = "5.14",
       .privilege = "CAP_NET_ADMIN and CAP_BPF in the acceptor and in every worker",
       .syscalls = "acceptor 25, worker 21",
       .isolation = "descriptors apart, but CAP_NET_ADMIN lets a worker take over any connection",
       .after_death = "nothing: the sink rebuilds what was under way in the acceptor's copies",
       .consumes_connection = true,
       .needs_trust = "a worker rebuilds connections, so it must have CAP_NET_ADMIN"},
      [](MethodOptions& options) -> std::unique_ptr<HandoffMethod> {
        return std::make_unique<TcpRepair>(options.flag("guard", true));
      }};
}

}  // namespace c10k
