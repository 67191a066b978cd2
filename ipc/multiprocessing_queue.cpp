#include "ipc/multiprocessing_queue.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "ipc/resource_sharer.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

using namespace multiprocessing;

/// Queue(maxsize); CPython's default is SEM_VALUE_MAX. A pipe of 64 KiB holds fewer.
constexpr std::size_t queue_capacity = 1024;
constexpr std::size_t largest_ticket = 256;
/// How often a worker whose exchange is ended by the sharer, which waits for nobody, tries it anew.
constexpr int most_exchanges = 10;

/// Stands for the pickle of (rebuild function, (ticket, family, type, protocol)).
struct Ticket {
  static constexpr std::uint32_t expected_magic = 0x7170633d;  // "=cpq"
  std::uint32_t magic = expected_magic;
  std::int32_t family = AF_INET;
  std::int32_t type = SOCK_STREAM;
  std::int32_t protocol = 0;
  std::uint32_t number = 0;
  std::uint32_t reserved = 0;
  ConnectionTag tag;
};
static_assert(sizeof(Ticket) == 48 && std::is_trivially_copyable_v<Ticket>);

// ---- the acceptor's side ------------------------------------------------------------------------

/// The semaphores of one Queue that a worker uses, between processes as CPython's SemLock. It may write
/// anything into them, and what waits on such a semaphore or wakes somebody may then hang or abort (glibc,
/// futex_fatal_error). So this process only tries them: sem_trywait(3) never makes a system call.
struct QueueLocks {
  sem_t free_slots;  // _sem: a BoundedSemaphore(maxsize)
  sem_t read_lock;   // _rlock
};

/// Queue.put with its feeder thread.
class QueueSink : public ConnectionSink {
 public:
  QueueSink(const Settings& settings, std::shared_ptr<ResourceSharer> sharer,
            std::shared_ptr<SharedArray<QueueLocks>> locks, OwnedFd writer)
      : settings_(settings),
        sharer_(std::move(sharer)),
        locks_(std::move(locks)),
        writer_(std::move(writer)),
        stop_(checked([] { return ::eventfd(0, EFD_CLOEXEC); }, "eventfd")) {
    checked([&] { return ::sem_init(&write_lock_, 1, 1); }, "sem_init 1");
  }

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
    while (result.taken < batch.size()) {
      result.state = put(batch[result.taken]);
      if (result.state != Channel::more) break;
      ++result.taken;
    }
    if (result.state == Channel::starved) result.error = errno;
    return result;
  }
  [[nodiscard]] int writable_fd() const override { return settings_.feeder ? -1 : writer_.get(); }

  /// A worker that had not fetched it loses it: another thread would duplicate or send the number when it
  /// may be another file's. (Without duplicates it may still be under way just then: that variant is there to
  /// be measured, not to hold against a hostile worker.)
  void released(const Handover& handover) override {
    const std::lock_guard lock(mutex_);
    std::erase_if(buffer_, [&](const Put& put) { return put.handover.tag.id == handover.tag.id; });
    sharer_->drop_connection(handover.tag.id);
  }

  /// A worker that had no descriptor free for the rendezvous has left the ticket where it was.
  /// And one that has died may have left it in the buffer: the feeder would make a ticket of it that takes
  /// the place of its next worker's.
  bool take_back(const Handover& handover) override {
    released(handover);
    return true;
  }

 private:
  struct Put {
    Handover handover;
    std::uint32_t ticket = 0;  // 0: the feeder makes it
  };

  /// When starved, errno says why.
  Channel put(const Handover& handover) {
    const std::lock_guard lock(mutex_);
    if (broken_) return Channel::closed;
    if (!take_slot()) return Channel::would_block;
    Put next{handover};
    if (settings_.dialect.ticket_before_put || !settings_.feeder) {
      next.ticket = sharer_->add(handover.fd, handover.tag.id, this);
      if (next.ticket == 0) {
        give_slot();
        return Channel::starved;
      }
    }
    if (settings_.feeder) {
      if (!feeder_.joinable()) feeder_ = std::thread([this] { feed(); });
      buffer_.push_back(next);
      not_empty_.notify_one();
      return Channel::more;
    }
    const Channel state = write_ticket(next);
    if (state != Channel::more) {
      sharer_->drop_connection(handover.tag.id);
      give_slot();
    }
    return state;
  }

  /// Queue._feed: duplicate, make the ticket, write it.
  void feed() {
    block_signals();
    while (true) {
      Put next;
      {
        std::unique_lock lock(mutex_);
        not_empty_.wait(lock, [&] { return stopping_ || !buffer_.empty(); });
        if (stopping_) return;
        // Before it leaves the buffer, where released() looks for it.
        next = buffer_.front();
        if (next.ticket == 0)
          next.ticket = sharer_->add(next.handover.fd, next.handover.tag.id, this);
        if (next.ticket != 0) buffer_.pop_front();
      }
      if (next.ticket == 0) {
        // CPython loses the object here. The acceptor will close others; wait for that or the end.
        if (wait_for_stop(10)) return;
        continue;
      }
      Channel state = Channel::more;
      while ((state = write_ticket(next)) == Channel::would_block) {
        // CPython blocks in the write; so does this, but it can be told to stop.
        std::array<pollfd, 2> wait{{{writer_.get(), POLLOUT, 0}, {stop_.get(), POLLIN, 0}}};
        (void)retry_eintr([&] { return ::poll(wait.data(), wait.size(), -1); });
        if (wait[1].revents != 0) return;
      }
      if (state == Channel::closed) {
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

  [[nodiscard]] bool take_slot() {
    if (spare_slots_ > 0) return --spare_slots_, true;
    if (settings_.locks) return ::sem_trywait(&(*locks_)[0].free_slots) == 0;
    return buffer_.size() < queue_capacity;
  }
  void give_slot() {
    if (settings_.locks) ++spare_slots_;
  }

  /// Whole or not at all: a frame is below PIPE_BUF (pipe(7)). Closed when the worker is gone.
  Channel write_ticket(const Put& put) {
    const std::size_t size = settings_.dialect.ticket_bytes;
    Ticket ticket;
    ticket.number = put.ticket;
    ticket.tag = put.handover.tag;
    std::array<char, 4 + largest_ticket> frame{};
    const std::uint32_t length = htonl(static_cast<std::uint32_t>(size));
    std::memcpy(frame.data(), &length, 4);
    std::memcpy(frame.data() + 4, &ticket, sizeof ticket);
    sem_t& lock = write_lock_;
    if (settings_.locks) (void)retry_eintr([&] { return ::sem_wait(&lock); });
    const ssize_t written =
        retry_eintr([&] { return ::write(writer_.get(), frame.data(), 4 + size); });
    const int error = errno;
    if (settings_.locks) ::sem_post(&lock);
    if (written >= 0) return Channel::more;
    return error == EAGAIN ? Channel::would_block : Channel::closed;
  }

  Settings settings_;
  std::shared_ptr<ResourceSharer> sharer_;
  std::shared_ptr<SharedArray<QueueLocks>> locks_;
  OwnedFd writer_;
  OwnedFd stop_;
  sem_t write_lock_;  // _wlock: only writers use it, and they are all in this process
  std::mutex mutex_;
  std::condition_variable not_empty_;
  std::size_t spare_slots_ = 0;  // taken, and then not needed
  std::deque<Put> buffer_;
  bool stopping_ = false;
  bool broken_ = false;
  std::thread feeder_;
};

// ---- the worker's side --------------------------------------------------------------------------

class QueueSource : public ConnectionSource {
 public:
  QueueSource(const Settings& settings, const Key& key, OwnedFd path,
              std::shared_ptr<SharedArray<QueueLocks>> locks, OwnedFd reader)
      : settings_(settings),
        key_(key),
        path_(std::move(path)),
        locks_(std::move(locks)),
        reader_(std::move(reader)),
        address_(listener_address(path_.get())) {
    // At once: the sharer waits for whoever is late, and everybody else for the sharer.
    if (settings_.keep_connection) (void)complete([this] { kept_ = connect(); });
  }

  [[nodiscard]] int fd() const override { return reader_.get(); }

  /// Queue.get: one connection. Blocks for as long as the acceptor's sharer takes, as the original.
  ReceiveResult receive(std::span<Received> batch) override {
    Ticket ticket;
    if (const Channel state = read_ticket(ticket); state != Channel::more) return {.state = state};
    try {
      int error = EMFILE;
      OwnedFd fd;
      if (!complete([&] { fd = fetch(ticket.number, error); })) error = ETIMEDOUT;
      if (!fd) {
        batch[0].tag = ticket.tag;
        return {.refused = 1, .error = error};
      }
      batch[0] = {rebuilt(std::move(fd), settings_.dialect), ticket.tag};
      return {.received = 1};
    } catch (const ListenerGone&) {
      return {.state = Channel::closed};
    }
  }

 private:
  /// Runs `exchange`, anew when the sharer has ended it in its middle, as a worker that was stopped for a while
  /// finds it: its ticket is where it was. False when it has always been ended. Throws ListenerGone.
  template <typename Exchange>
  bool complete(Exchange&& exchange) {
    for (int left = most_exchanges; left > 0; --left) {
      try {
        exchange();
        return true;
      } catch (const ListenerGone&) {
        throw;
      } catch (const PeerGone&) {
        kept_.reset();
      }
    }
    return false;
  }

  Channel read_ticket(Ticket& ticket) {
    QueueLocks& locks = (*locks_)[0];
    if (settings_.locks) (void)retry_eintr([&] { return ::sem_wait(&locks.read_lock); });
    std::uint32_t length = 0;
    const ssize_t got = retry_eintr([&] { return ::read(reader_.get(), &length, sizeof length); });
    const bool empty = got < 0 && errno == EAGAIN;
    bool whole = false;
    const std::size_t size = settings_.dialect.ticket_bytes;
    if (got == sizeof length && ntohl(length) == size) {
      std::array<char, largest_ticket> bytes;
      whole = retry_eintr([&] { return ::read(reader_.get(), bytes.data(), size); }) ==
              static_cast<ssize_t>(size);
      if (whole) std::memcpy(&ticket, bytes.data(), sizeof ticket);
    }
    if (settings_.locks) ::sem_post(&locks.read_lock);
    if (empty) return Channel::would_block;
    if (got == 0) return Channel::closed;
    if (!whole || ticket.magic != Ticket::expected_magic)
      throw std::runtime_error("the queue's pipe brought no ticket");
    if (settings_.locks) ::sem_post(&locks.free_slots);
    return Channel::more;
  }

  /// Client(): empty when this process has no descriptor free.
  OwnedFd connect() {
    OwnedFd connection = connect_to_listener(address_, settings_.dialect, reader_.get());
    if (connection) authenticate_to_listener(connection.get(), settings_.auth, key_);
    return connection;
  }

  /// DupFd.detach, and rebuild_handle: the whole rendezvous. Empty when this process has no descriptor
  /// free, or the sharer could send none: see receive_handle().
  OwnedFd fetch(std::uint32_t ticket, int& error) {
    OwnedFd fresh;
    OwnedFd& connection = settings_.keep_connection ? kept_ : fresh;
    if (!connection) connection = connect();
    if (!connection) return {};
    send_padded(connection.get(),
                TicketRequest{.ticket = ticket, .pid = static_cast<std::int32_t>(::getpid())},
                settings_.dialect.request_bytes);
    return receive_handle(connection.get(), settings_.dialect, error);
  }

  Settings settings_;
  Key key_;
  OwnedFd path_;
  std::shared_ptr<SharedArray<QueueLocks>> locks_;
  OwnedFd reader_;
  sockaddr_un address_;
  OwnedFd kept_;
};

// ---- the method ---------------------------------------------------------------------------------

class QueueLink : public Link {
 public:
  QueueLink(const Settings& settings, std::shared_ptr<ResourceSharer> sharer)
      : settings_(settings),
        sharer_(std::move(sharer)),
        locks_(std::make_shared<SharedArray<QueueLocks>>(1, SharedWith::one_child)) {
    QueueLocks& locks = (*locks_)[0];
    checked([&] { return ::sem_init(&locks.free_slots, 1, queue_capacity); }, "sem_init {}",
            queue_capacity);
    checked([&] { return ::sem_init(&locks.read_lock, 1, 1); }, "sem_init 1");
    int ends[2];
    checked([&] { return ::pipe2(ends, O_CLOEXEC | O_NONBLOCK); }, "pipe2");
    reader_.reset(ends[0]);
    writer_.reset(ends[1]);
    path_ = duplicate(sharer_->path_descriptor());
  }

  std::unique_ptr<ConnectionSink> acceptor_end(int /*worker_pidfd*/) override {
    reader_.reset();
    path_.reset();
    // Its worker is not ready before it has been let in.
    if (settings_.keep_connection) sharer_->start();
    return std::make_unique<QueueSink>(settings_, sharer_, locks_, std::move(writer_));
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    writer_.reset();
    return std::make_unique<QueueSource>(settings_, sharer_->key(), std::move(path_), locks_,
                                         std::move(reader_));
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override {
    return {reader_.get(), path_.get()};
  }

 private:
  Settings settings_;
  std::shared_ptr<ResourceSharer> sharer_;
  std::shared_ptr<SharedArray<QueueLocks>> locks_;
  OwnedFd reader_;
  OwnedFd writer_;
  OwnedFd path_;
};

class QueueMethod : public HandoffMethod {
 public:
  explicit QueueMethod(const Settings& settings) : settings_(settings) {}

  [[nodiscard]] Support probe() override {
    try {
      const QueueLink link(settings_, std::make_shared<ResourceSharer>(settings_));
      return {};
    } catch (const std::exception& error) {
      return {false, error.what()};
    }
  }

  std::unique_ptr<Link> open(const LinkRequest&) override {
    // A write to a pipe cannot ask for EPIPE alone; CPython ignores the signal from its start.
    ::signal(SIGPIPE, SIG_IGN);
    // CPython has one sharer a process, whatever the number of queues.
    if (!sharer_) sharer_ = std::make_shared<ResourceSharer>(settings_);
    return std::make_unique<QueueLink>(settings_, sharer_);
  }

 private:
  Settings settings_;
  std::shared_ptr<ResourceSharer> sharer_;
};

}  // namespace

MethodFacts queue_facts(std::string_view name, std::string_view summary, std::string_view options,
                        std::string_view syscalls) {
  return {
      .name = name,
      .summary = summary,
      .options = options,
      .kernel = "any",
      .privilege = "none",
      .syscalls = syscalls,
      .isolation = "full, but a stuck worker holds the one sharer thread up, 0.1 s a connection",
      .after_death = "nothing (in CPython: unfetched duplicates, and a lock held for ever)",
      .descriptors_in_flight = 1,
      .worker_calls = {CallGroup::rendezvous},
      // What a person would choose, each and together; then what the anatomy removes, each alone
      // and on top of those before it.
      .variants = {"auth=off", "connection=persistent", "backlog=128",
                   "auth=off,connection=persistent", "auth=off,backlog=128",
                   "backlog=128,connection=persistent",
                   "auth=off,backlog=128,connection=persistent", "auth=no-hmac", "dups=off",
                   "feeder=off", "lock=off", "auth=off,connection=persistent,dups=off",
                   "auth=off,connection=persistent,dups=off,feeder=off",
                   "auth=off,connection=persistent,dups=off,feeder=off,lock=off"}};
}

std::unique_ptr<HandoffMethod> make_queue_method(MethodOptions& options, const Dialect& dialect) {
  Settings settings{.dialect = dialect};
  const std::string auth = options.choice("auth", "on", {"on", "no-hmac", "off"});
  settings.auth = auth == "on" ? Auth::on : auth == "off" ? Auth::off : Auth::no_hmac;
  settings.keep_connection = options.choice("connection", "per-descriptor",
                                            {"per-descriptor", "persistent"}) == "persistent";
  const std::string backlog =
      options.choice("backlog", std::to_string(dialect.backlog), {"1", "128"});
  settings.dialect.backlog = std::stoi(backlog);
  settings.duplicates = options.flag("dups", true);
  settings.feeder = options.flag("feeder", true);
  settings.locks = options.flag("lock", true);
  if (!settings.duplicates) {
    settings.dialect.duplicates_connection = false;
    settings.dialect.duplicates_to_pass = false;
    settings.dialect.duplicates_result = false;
  }
  return std::make_unique<QueueMethod>(settings);
}

}  // namespace c10k
