// queue-python3: what CPython 3.11 does when a socket is put into a multiprocessing.Queue, step by
// step, with the interpreter left out (Lib/multiprocessing/{queues,resource_sharer,connection,
// reduction}.py). The study takes it apart; nobody should build a server on it.
//
// Mechanism    the queue carries no descriptor, only a ticket: the path of a listener and a key. The
//              worker connects to the listener, both prove that they know the authentication key
//              (HMAC-MD5, both directions), the worker names the ticket, and only then does one
//              SCM_RIGHTS message bring the descriptor; then the connection is closed
// Kernel       any Linux
// Privilege    none
// System calls 46: feeder 2, sharer thread 21, worker 23 (counted with strace on CPython 3.11.2; the
//              futexes of the threads come on top)
// Ownership    acceptor's copy; the feeder's duplicate under a key, until the sharer has sent it
// Death        unlike CPython, where an unfetched duplicate stays in the parent for ever and its
//              client never sees an end, the duplicates of a dead worker's queue are closed
// Man pages    unix(7), pipe(7), sem_init(3)
//
// Differences from CPython, both for the sake of safety: messages are fixed binary frames of the size
// of the pickles, and the listener's path is gone from /tmp before the first worker runs (it is
// reached through an O_PATH descriptor), so that nothing stays behind whoever is killed.
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "ipc/methods.hpp"
#include "ipc/multiprocessing.hpp"
#include "ipc/resource_sharer.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

using namespace multiprocessing;

constexpr std::size_t ticket_bytes = 206;     // counted on CPython 3.11.2, with a path of 36 bytes
constexpr std::size_t queue_capacity = 1024;  // Queue(maxsize); CPython's default is SEM_VALUE_MAX

/// Stands for the pickle of (_rebuild_socket, (DupFd(path, key), family, type, proto)).
struct Ticket {
  static constexpr std::uint32_t expected_magic = 0x71337063;  // "cp3q"
  std::uint32_t magic = expected_magic;
  std::int32_t family = AF_INET;
  std::int32_t type = SOCK_STREAM;
  std::int32_t protocol = 0;
  std::uint64_t key = 0;
  ConnectionTag tag;
};
static_assert(sizeof(Ticket) == 48 && std::is_trivially_copyable_v<Ticket>);

using TicketMessage = Padded<Ticket, ticket_bytes>;

// ---- the acceptor's side ------------------------------------------------------------------------

/// The semaphores of one Queue, between processes as CPython's SemLock.
struct QueueLocks {
  sem_t free_slots;  // _sem: a BoundedSemaphore(maxsize)
  sem_t read_lock;   // _rlock
  sem_t write_lock;  // _wlock
};

/// Queue.put with its feeder thread.
class QueueSink : public ConnectionSink {
 public:
  QueueSink(std::shared_ptr<ResourceSharer> sharer, std::shared_ptr<SharedArray<QueueLocks>> locks,
            OwnedFd writer)
      : sharer_(std::move(sharer)),
        locks_(std::move(locks)),
        writer_(std::move(writer)),
        stop_(checked([] { return ::eventfd(0, EFD_CLOEXEC); }, "eventfd")) {}

  ~QueueSink() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    not_empty_.notify_one();
    ::eventfd_write(stop_.get(), 1);
    if (feeder_.joinable()) feeder_.join();
    sharer_->drop_all_of(this);
  }

  SendResult send(std::span<const Handover> batch) override {
    SendResult result;
    for (const Handover& handover : batch) {
      const std::lock_guard lock(mutex_);
      if (broken_) {
        result.state = Channel::closed;
        break;
      }
      if (::sem_trywait(&(*locks_)[0].free_slots) != 0) {
        result.state = Channel::would_block;
        break;
      }
      if (!feeder_.joinable()) feeder_ = std::thread([this] { feed(); });
      buffer_.push_back(handover);
      not_empty_.notify_one();
      ++result.taken;
    }
    return result;
  }
  [[nodiscard]] int writable_fd() const override { return -1; }

 private:
  /// Queue._feed: duplicate, make the ticket, write it.
  void feed() {
    block_signals();
    while (true) {
      Handover next;
      {
        std::unique_lock lock(mutex_);
        not_empty_.wait(lock, [&] { return stopping_ || !buffer_.empty(); });
        if (stopping_) return;
        next = buffer_.front();
        buffer_.pop_front();
      }
      OwnedFd copy;
      while (true) {
        copy = OwnedFd(::fcntl(next.fd, F_DUPFD_CLOEXEC, 0));
        if (copy) break;
        // CPython loses the object here. The acceptor will close others; wait for that or the end.
        if (wait_for_stop(10)) return;
      }
      Ticket ticket;
      ticket.key = sharer_->add(std::move(copy), next.tag.id, this);
      ticket.tag = next.tag;
      (void)retry_eintr([&] { return ::sem_wait(&(*locks_)[0].write_lock); });
      const bool written = write_ticket(ticket);
      ::sem_post(&(*locks_)[0].write_lock);
      if (!written) {
        const std::lock_guard lock(mutex_);
        broken_ = true;
        return;
      }
    }
  }

  bool wait_for_stop(int timeout_ms) {
    pollfd stop{stop_.get(), POLLIN, 0};
    return ::poll(&stop, 1, timeout_ms) > 0;
  }

  /// False when the worker is gone or the sink is being closed.
  bool write_ticket(const Ticket& ticket) {
    std::array<char, 4 + ticket_bytes> frame;
    const std::uint32_t length = htonl(ticket_bytes);
    std::memcpy(frame.data(), &length, 4);
    std::memcpy(frame.data() + 4, TicketMessage(ticket).bytes.data(), ticket_bytes);
    while (true) {
      // Below PIPE_BUF a write is whole or not at all (pipe(7)).
      if (::write(writer_.get(), frame.data(), frame.size()) >= 0) return true;
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return false;
      // CPython blocks in the write; so does this, but it can be told to stop.
      std::array<pollfd, 2> wait{{{writer_.get(), POLLOUT, 0}, {stop_.get(), POLLIN, 0}}};
      (void)retry_eintr([&] { return ::poll(wait.data(), wait.size(), -1); });
      if (wait[1].revents != 0) return false;
    }
  }

  std::shared_ptr<ResourceSharer> sharer_;
  std::shared_ptr<SharedArray<QueueLocks>> locks_;
  OwnedFd writer_;
  OwnedFd stop_;
  std::mutex mutex_;
  std::condition_variable not_empty_;
  std::deque<Handover> buffer_;
  bool stopping_ = false;
  bool broken_ = false;
  std::thread feeder_;
};

// ---- the worker's side --------------------------------------------------------------------------

class QueueSource : public ConnectionSource {
 public:
  QueueSource(const Key& key, OwnedFd path, std::shared_ptr<SharedArray<QueueLocks>> locks,
              OwnedFd reader)
      : key_(key),
        path_(std::move(path)),
        locks_(std::move(locks)),
        reader_(std::move(reader)),
        address_(listener_address(path_.get())) {}

  [[nodiscard]] int fd() const override { return reader_.get(); }

  /// Queue.get: one connection. Blocks for as long as the acceptor's sharer takes, as the original.
  ReceiveResult receive(std::span<Received> batch) override {
    Ticket ticket;
    if (const Channel state = read_ticket(ticket); state != Channel::more) return {.state = state};
    try {
      OwnedFd fd = fetch(ticket.key);
      if (!fd) {
        batch[0].tag = ticket.tag;
        return {.refused = 1, .error = EMFILE};
      }
      look_up_family(fd.get());
      batch[0] = {std::move(fd), ticket.tag};
      return {.received = 1};
    } catch (const PeerGone&) {
      return {.state = Channel::closed};
    }
  }

 private:
  Channel read_ticket(Ticket& ticket) {
    QueueLocks& locks = (*locks_)[0];
    (void)retry_eintr([&] { return ::sem_wait(&locks.read_lock); });
    std::uint32_t length = 0;
    const ssize_t got = retry_eintr([&] { return ::read(reader_.get(), &length, sizeof length); });
    const bool empty = got < 0 && errno == EAGAIN;
    bool whole = false;
    if (got == sizeof length && ntohl(length) == ticket_bytes) {
      TicketMessage message;
      whole = retry_eintr([&] {
                return ::read(reader_.get(), message.bytes.data(), ticket_bytes);
              }) == static_cast<ssize_t>(ticket_bytes);
      ticket = message.frame();
    }
    ::sem_post(&locks.read_lock);
    if (empty) return Channel::would_block;
    if (got == 0) return Channel::closed;
    if (!whole || ticket.magic != Ticket::expected_magic)
      throw std::runtime_error("the queue's pipe brought no ticket");
    ::sem_post(&locks.free_slots);
    return Channel::more;
  }

  /// DupFd.detach: the whole rendezvous, 20 system calls. Empty when this process has no descriptor
  /// free.
  OwnedFd fetch(std::uint64_t key) {
    OwnedFd connection(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!connection) return {};
    set_blocking(connection.get());
    if (retry_eintr([&] {
          return ::connect(connection.get(), reinterpret_cast<const sockaddr*>(&address_),
                           sizeof address_);
        }) != 0) {
      throw PeerGone("connect: the sharer is gone");
    }
    answer_challenge(connection.get(), key_);
    deliver_challenge(connection.get(), key_);
    const RequestMessage request({.key = key, .pid = static_cast<std::int32_t>(::getpid())});
    send_message(connection.get(), request.bytes.data(), request.bytes.size());
    return receive_handle(connection.get());
  }

  Key key_;
  OwnedFd path_;
  std::shared_ptr<SharedArray<QueueLocks>> locks_;
  OwnedFd reader_;
  sockaddr_un address_;
};

// ---- the method ---------------------------------------------------------------------------------

class QueueLink : public Link {
 public:
  explicit QueueLink(std::shared_ptr<ResourceSharer> sharer)
      : sharer_(std::move(sharer)), locks_(std::make_shared<SharedArray<QueueLocks>>(1)) {
    QueueLocks& locks = (*locks_)[0];
    checked([&] { return ::sem_init(&locks.free_slots, 1, queue_capacity); }, "sem_init {}",
            queue_capacity);
    checked([&] { return ::sem_init(&locks.read_lock, 1, 1); }, "sem_init 1");
    checked([&] { return ::sem_init(&locks.write_lock, 1, 1); }, "sem_init 1");
    int ends[2];
    checked([&] { return ::pipe2(ends, O_CLOEXEC | O_NONBLOCK); }, "pipe2");
    reader_.reset(ends[0]);
    writer_.reset(ends[1]);
    path_ = duplicate(sharer_->path_descriptor());
  }

  std::unique_ptr<ConnectionSink> acceptor_end(int /*worker_pidfd*/) override {
    reader_.reset();
    path_.reset();
    return std::make_unique<QueueSink>(sharer_, locks_, std::move(writer_));
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    writer_.reset();
    return std::make_unique<QueueSource>(sharer_->key(), std::move(path_), locks_,
                                         std::move(reader_));
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    return {reader_.get(), path_.get()};
  }

 private:
  std::shared_ptr<ResourceSharer> sharer_;
  std::shared_ptr<SharedArray<QueueLocks>> locks_;
  OwnedFd reader_;
  OwnedFd writer_;
  OwnedFd path_;
};

class QueuePython3 : public HandoffMethod {
 public:
  [[nodiscard]] Support probe() override {
    try {
      const QueueLink link(std::make_shared<ResourceSharer>());
      return {};
    } catch (const std::exception& error) {
      return {false, error.what()};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest&) override {
    // CPython has one sharer a process, whatever the number of queues.
    if (!sharer_) sharer_ = std::make_shared<ResourceSharer>();
    return std::make_unique<QueueLink>(sharer_);
  }

 private:
  std::shared_ptr<ResourceSharer> sharer_;
};

}  // namespace

MethodEntry queue_python3() {
  return {{.name = "queue-python3",
           .summary = "CPython 3.11's multiprocessing.Queue of sockets, step by step",
           .options = "",
           .kernel = "any",
           .privilege = "none",
           .syscalls = "acceptor 23 (feeder 2, sharer 21), worker 23, futexes aside",
           .isolation = "full, but one stuck worker stops the one sharer thread for all",
           .after_death = "nothing (in CPython: unfetched duplicates, and a lock held for ever)",
           .descriptors_in_flight = 1},
          [](MethodOptions&) -> std::unique_ptr<HandoffMethod> {
            return std::make_unique<QueuePython3>();
          }};
}

}  // namespace c10k
