// The hand-off contract: how a connection gets from the process that accepted it to a worker.
//
// A method is a pair of a sink (acceptor) and a source (worker). Adding one costs one file that
// implements HandoffMethod and one line in registry.cpp.
//
// Who owns the descriptor. The acceptor owns what it accepted and *lends* it to the sink. The
// worker owns what its source returns. The acceptor closes its copy only when the worker's
// `consumed` counter (shared memory, one writer) has passed the connection, or, with --retain, when it
// has ended there: until then the connection survives the worker's death.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/confinement.hpp"
#include "ipc/method_options.hpp"
#include "ipc/owned_fd.hpp"
#include "ipc/socket.hpp"

namespace c10k {

/// What travels beside a descriptor.
struct ConnectionTag {
  std::uint64_t id = 0;          ///< Unique within a run of the server.
  std::int64_t accepted_ns = 0;  ///< monotonic_ns() when it was accepted.
  std::uint32_t attempt = 0;     ///< 0 the first time, more when it is handed over again.
  std::uint32_t copy = 0;        ///< The acceptor's number for the copy that it keeps.
};

/// A connection on its way out; the descriptor stays the caller's.
struct Handover {
  int fd = -1;
  ConnectionTag tag;
};

/// A connection that has arrived; the receiver owns it. Non-blocking and close-on-exec.
struct Received {
  OwnedFd fd;
  ConnectionTag tag;
};

enum class Channel : std::uint8_t {
  more,         ///< Works; call again.
  would_block,  ///< Full (sink) or empty (source): wait on the descriptor, then call again.
  starved,      ///< This process or the kernel lacks a resource: pause, then call again.
  at_limit,     ///< Source: this process has no number free and others have, who take what waits:
                ///< call again when a connection has ended here.
  closed,       ///< The other side is gone.
};

struct SendResult {
  std::size_t taken = 0;  ///< The first `taken` of the batch are on their way; the rest are not.
  Channel state = Channel::more;
  int error = 0;  ///< When starved: the errno.
};

/// What one call of receive() did. A connection counts exactly once among the first three.
struct ReceiveResult {
  std::size_t received = 0;  ///< The first `received` of the batch are filled in.
  std::size_t refused = 0;   ///< The next `refused` of the batch have a tag and no descriptor: they
                             ///< arrived as a message when this process had no number free. The
                             ///< acceptor still has its copy and hands it to somebody else.
  std::size_t shed = 0;      ///< Accepted here and closed at once for lack of a descriptor.
  int error = 0;             ///< An errno worth counting; the state says whether to go on.
  std::uint32_t queue_length = 0;  ///< Of a listener: how many waited, when it was looked at.
  Channel state = Channel::more;
};

/// Thrown by a sink: its worker breaks the protocol of their channel. Nothing more is to be asked of the
/// sink, and the worker is to be ended; what it had not received is as safe as at any death.
class BrokenProtocol : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The acceptor's end. What comes from the worker, by whatever way, may be the work of an enemy.
class ConnectionSink {
 public:
  virtual ~ConnectionSink() = default;
  /// Hands over a prefix of `batch`. Never blocks and never drops: what is not taken stays with
  /// the caller. Throws SystemError for what no retry can mend, and BrokenProtocol, as attend() does.
  virtual SendResult send(std::span<const Handover> batch) = 0;
  /// Becomes writable when a full channel has room again; -1 when only time can tell.
  [[nodiscard]] virtual int writable_fd() const = 0;

  /// For a method whose acceptor must answer its worker: a descriptor that is readable when attend()
  /// has something to do, or -1. It is asked for once the worker has said that it is ready.
  [[nodiscard]] virtual int attention_fd() { return -1; }
  virtual void attend() {}

  /// The connection was taken by send(), and its worker ended without it: makes the acceptor's copy
  /// fit to be handed over again. False when that cannot be done: the connection is lost.
  [[nodiscard]] virtual bool take_back(const Handover&) { return true; }

  /// The worker says that it has received the connection, and the acceptor closes its copy next: the
  /// number must not be used any more, also when the worker has not said the truth.
  virtual void released(const Handover&) {}

  /// For a channel that several workers pull from: true when all that was sent has been pulled.
  [[nodiscard]] virtual bool drained() const { return false; }
};

/// Slots that receive() needs: the most that one message brings (SCM_RIGHTS: 253), rounded up.
inline constexpr std::size_t receive_room = 256;

class AcceptQueueReader;

/// The worker's end.
class ConnectionSource {
 public:
  virtual ~ConnectionSource() = default;
  /// Readable as long as receive() has something to do (wait for it level-triggered).
  [[nodiscard]] virtual int fd() const = 0;
  /// Fills a prefix of `batch`, which has `receive_room` empty slots: what one message brought, or
  /// one drain of a listener. Connections come in the order in which the sink took them. Throws
  /// when the other side breaks the protocol.
  virtual ReceiveResult receive(std::span<Received> batch) = 0;
  /// True when several workers wait on the same open file and only one should wake up.
  [[nodiscard]] virtual bool exclusive_wake_up() const { return false; }
  /// For a source that several workers share: a descriptor that is readable when one of them that was
  /// woken has left what waits to the others (at_limit), or -1. Wait for it as for fd(); then call
  /// attend() and receive().
  [[nodiscard]] virtual int attention_fd() const { return -1; }
  virtual void attend() {}
  /// True when receive() returns descriptors of another process's, which may have sent anything: whoever
  /// serves them looks whether they are TCP sockets. False for what this source has made itself.
  [[nodiscard]] virtual bool brings_descriptors() const { return true; }
  /// True while a connection that receive() has returned lives on this source: a worker that drains
  /// must go on calling receive(), even when its handler has closed the descriptor.
  [[nodiscard]] virtual bool in_use() const { return false; }
  /// Not null when receive() is nothing but this reader's accept(), takes all that waits and no other
  /// process accepts from the same listener: then a loop may also accept there by its own means.
  [[nodiscard]] virtual AcceptQueueReader* sole_reader() { return nullptr; }
  /// True for the worker's end of a channel that several workers pull from: what it does not want stays
  /// for others.
  [[nodiscard]] virtual bool shared() const { return false; }
  /// This worker takes nothing for a while, and may have been woken in place of one that would.
  virtual void leave_to_others() {}
  /// The acceptor has ended without a word: ends what would go on in its place and nobody serve.
  virtual void acceptor_ended() {}
  /// How many connections this worker has open by now: for a kernel that dispatches by load.
  virtual void report_load(std::uint64_t /*connections*/) {}
  /// Of a listener: its accept queue ends with this process, so that a worker that leaves must take what
  /// is in it, and what may still come. Otherwise whoever else holds it accepts that.
  [[nodiscard]] virtual bool owns_queue() const { return false; }
};

/// The most listeners that a method may have: as many as workers.
inline constexpr std::size_t most_listeners = 1024;

/// What a method gets to open a link with.
struct LinkRequest {
  std::size_t worker = 0;        ///< The worker's slot; a replaced worker has the same.
  std::size_t workers = 1;       ///< How many slots there are.
  int listener = -1;             ///< The server's listener; lent.
  ListenOptions listen_options;  ///< How it was opened.
  bool accept_drain = true;      ///< Accept until the queue is empty, or one a wake-up.
  /// Close a client that takes nothing for so long; 0: never. For an acceptor that serves clients itself.
  std::int64_t write_timeout_ns = 0;
  bool exclusive_possible = false;  ///< The worker's loop can wait with EPOLLEXCLUSIVE.
};

/// One worker's way in, made before the fork. Afterwards the acceptor calls acceptor_end() and the
/// worker calls worker_end(), each at most once. Destroying it gives up what has not been taken.
/// A sink may outlive its worker; it must then say closed, and it gives up what is in flight when it
/// is destroyed.
class Link {
 public:
  virtual ~Link() = default;
  /// The acceptor's end; closes the worker's. Null when the kernel hands over. `worker_pidfd` is
  /// lent for as long as the sink lives.
  virtual std::unique_ptr<ConnectionSink> acceptor_end(int worker_pidfd) = 0;
  virtual std::unique_ptr<ConnectionSource> worker_end() = 0;
  /// The descriptors that the worker needs; the fork closes all others.
  [[nodiscard]] virtual std::vector<int> worker_descriptors() const = 0;

  /// After the fork: a descriptor that only the worker goes on to use. Closes the acceptor's, unless
  /// that is the worker's too.
  virtual void leave_to_worker(OwnedFd) {}
};

/// Whether a method works here; found by trying it, never by reading a version.
struct Support {
  bool available = true;
  std::string reason;  ///< When not available: the call, its errno and what would help.
};

class HandoffMethod {
 public:
  virtual ~HandoffMethod() = default;
  [[nodiscard]] virtual Support probe() = 0;
  virtual std::unique_ptr<Link> open(const LinkRequest& request) = 0;
  /// Closes the listeners that the method keeps for successors of dead workers.
  virtual void close_listeners() {}

  // An upgrade: the server's successor, another process that may run another program, takes over what
  // it listens with.

  /// How it listens, in words that are the same for two servers if and only if one can take the other
  /// over.
  [[nodiscard]] virtual std::string listening(std::size_t /*workers*/) const {
    return "one listener";
  }
  /// What the successor needs for that, lent: first a listener with the server's address.
  [[nodiscard]] virtual std::vector<int> listeners(int server) const { return {server}; }
  /// In the successor, before the first open(): the predecessor's listeners(). Returns the server's
  /// listener. Throws std::runtime_error for descriptors that are not what they should be.
  [[nodiscard]] virtual OwnedFd adopt_listeners(std::vector<OwnedFd> listeners,
                                                const ListenOptions& options);
  /// Connections go to this server's workers from now on: it has adopted the listeners and all its workers
  /// are ready, or a successor that has said so has failed.
  virtual void claim_listeners(const ListenOptions& /*options*/) {}
  /// The worker in a slot has ended and been reaped. Its successor gets a link of its own.
  virtual void worker_ended(std::size_t /*worker*/) {}
  /// After worker_ended(): there will be no successor. What was kept for one goes.
  virtual void worker_abandoned(std::size_t /*worker*/) {}
};

/// What is known about a method before it runs.
struct MethodFacts {
  std::string_view name;
  std::string_view summary;
  std::string_view options;        ///< "batch=1..253 (64)": key=allowed (default), or "".
  std::string_view kernel;         ///< The first kernel that has what it needs.
  std::string_view privilege;      ///< "none" or what it needs.
  std::string_view syscalls;       ///< System calls per connection: acceptor, worker.
  std::string_view isolation;      ///< Who can harm whom.
  std::string_view after_death;    ///< What a worker's death leaves behind.
  bool kernel_dispatches = false;  ///< Without a sink: the workers accept for themselves.
  bool shared_channel = false;     ///< All sinks lead to one channel from which the workers pull.
  bool shared_table = false;  ///< Workers have the acceptor's descriptor table (Table::shared).
  /// send() takes the connection out of the descriptor: the same one cannot be sent twice.
  bool consumes_connection = false;
  /// Descriptors that the sink needs, beside the acceptor's copy, for each connection in flight.
  std::size_t descriptors_in_flight = 0;
  /// The acceptor keeps each connection for its whole life, which costs it a descriptor, and its death
  /// ends them all.
  bool connections_stay = false;
  bool listener_per_worker = false;  ///< Each worker has its own listener (SO_REUSEPORT).
  /// Why its workers must be trusted, so that they cannot be confined (--user): what they need to have
  /// is as good as the acceptor's rights. Empty when they can.
  std::string_view needs_trust = {};
  /// Beside what every worker may call: what its source does once the worker serves.
  CallGroups worker_calls = {};
  /// Option strings worth testing beside the default, such as "auth=off".
  std::vector<std::string_view> variants = {};

  /// Why the acceptor cannot keep a copy of a connection that a worker serves; null when it can.
  [[nodiscard]] const char* why_not_retained() const {
    return kernel_dispatches     ? "the acceptor never has the connection"
           : consumes_connection ? "the acceptor's copy is no connection any more"
           : connections_stay    ? "the connections stay in the acceptor anyway"
                                 : nullptr;
  }
  /// Who else than the acceptor chooses a connection's worker, in words; null when nobody does.
  [[nodiscard]] const char* who_chooses() const {
    return kernel_dispatches ? "the kernel dispatches"
           : shared_channel  ? "the workers pull"
                             : nullptr;
  }
};

/// A line of the registry: the facts, and how to make the method from `name:key=value,...`.
struct MethodEntry : MethodFacts {
  /// Throws UsageError for a value that is not allowed.
  std::unique_ptr<HandoffMethod> (*make)(MethodOptions& options);
};

}  // namespace c10k
