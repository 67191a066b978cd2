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
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>

#include "ipc/methods.hpp"
#include "ipc/shared_memory.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

// Sizes as counted on CPython 3.11.2. A pickle's size depends on the lengths of the temporary path
// and of the numbers in it, so other runs differ by some bytes.
constexpr std::size_t ticket_bytes = 206;
constexpr std::size_t request_bytes = 19;
constexpr std::size_t nonce_bytes = 20;
constexpr std::size_t digest_bytes = 16;
constexpr std::string_view challenge_prefix = "#CHALLENGE#";
constexpr std::string_view welcome = "#WELCOME#";
constexpr std::size_t queue_capacity = 1024;  // Queue(maxsize); CPython's default is SEM_VALUE_MAX
constexpr int listener_backlog = 128;

using Key = std::array<unsigned char, 32>;

/// The other side has closed, or speaks another protocol.
struct PeerGone : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- frames -------------------------------------------------------------------------------------

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

/// Stands for the pickle of (key, pid).
struct TicketRequest {
  std::uint64_t key = 0;
  std::int32_t pid = 0;
  std::int32_t reserved = 0;
};
static_assert(sizeof(TicketRequest) == 16 && std::is_trivially_copyable_v<TicketRequest>);

/// A frame in front of zeroes up to the size of the pickle it stands for.
template <typename Frame, std::size_t size>
struct Padded {
  std::array<char, size> bytes{};
  Padded() = default;
  explicit Padded(const Frame& frame) { std::memcpy(bytes.data(), &frame, sizeof frame); }
  [[nodiscard]] Frame frame() const {
    Frame result;
    std::memcpy(&result, bytes.data(), sizeof result);
    return result;
  }
};
using TicketMessage = Padded<Ticket, ticket_bytes>;
using RequestMessage = Padded<TicketRequest, request_bytes>;

/// Connection._send_bytes: length and bytes in one write.
void send_message(int fd, const void* bytes, std::size_t size) {
  std::array<char, 4 + 256> buffer;
  const std::uint32_t length = htonl(static_cast<std::uint32_t>(size));
  std::memcpy(buffer.data(), &length, 4);
  std::memcpy(buffer.data() + 4, bytes, size);
  const ssize_t written = retry_eintr([&] { return ::write(fd, buffer.data(), 4 + size); });
  if (written != static_cast<ssize_t>(4 + size)) throw PeerGone("write: the other side of the rendezvous is gone");
}

void read_exactly(int fd, void* bytes, std::size_t size) {
  const ssize_t got = retry_eintr([&] { return ::read(fd, bytes, size); });
  if (got != static_cast<ssize_t>(size)) throw PeerGone("read: the other side of the rendezvous is gone");
}

/// Connection._recv_bytes: the length, then the bytes. Another length than `size` is an error.
void receive_message(int fd, void* bytes, std::size_t size) {
  std::uint32_t length = 0;
  read_exactly(fd, &length, 4);
  if (ntohl(length) != size) throw PeerGone("read: a message of unexpected length");
  read_exactly(fd, bytes, size);
}

// ---- authentication -----------------------------------------------------------------------------

std::array<unsigned char, digest_bytes> digest_of(const Key& key, const unsigned char* nonce) {
  std::array<unsigned char, digest_bytes> digest{};
  unsigned size = 0;
  if (::HMAC(EVP_md5(), key.data(), static_cast<int>(key.size()), nonce, nonce_bytes, digest.data(), &size) == nullptr ||
      size != digest_bytes) {
    throw std::runtime_error("HMAC-MD5 is not available in this libcrypto");
  }
  return digest;
}

/// multiprocessing.connection.deliver_challenge
void deliver_challenge(int fd, const Key& key) {
  std::array<unsigned char, challenge_prefix.size() + nonce_bytes> message;
  std::memcpy(message.data(), challenge_prefix.data(), challenge_prefix.size());
  unsigned char* nonce = message.data() + challenge_prefix.size();
  checked([&] { return ::getrandom(nonce, nonce_bytes, 0); }, "getrandom {} bytes", nonce_bytes);
  send_message(fd, message.data(), message.size());
  const auto expected = digest_of(key, nonce);
  std::array<unsigned char, digest_bytes> answer;
  receive_message(fd, answer.data(), answer.size());
  if (answer != expected) throw PeerGone("the other side does not know the authentication key");
  send_message(fd, welcome.data(), welcome.size());
}

/// multiprocessing.connection.answer_challenge
void answer_challenge(int fd, const Key& key) {
  std::array<unsigned char, challenge_prefix.size() + nonce_bytes> message;
  receive_message(fd, message.data(), message.size());
  if (std::memcmp(message.data(), challenge_prefix.data(), challenge_prefix.size()) != 0) {
    throw PeerGone("no challenge where one was due");
  }
  const auto digest = digest_of(key, message.data() + challenge_prefix.size());
  send_message(fd, digest.data(), digest.size());
  std::array<char, welcome.size()> answer;
  receive_message(fd, answer.data(), answer.size());
  if (std::memcmp(answer.data(), welcome.data(), welcome.size()) != 0) throw PeerGone("refused by the other side");
}

/// Both sides make a Python socket object of a connection: accept() and Client() clear O_NONBLOCK, and
/// reduction.{send,recv}_handle make one more of a duplicate (socket.fromfd).
void set_blocking(int fd) {
  int off = 0;
  (void)retry_eintr([&] { return ::ioctl(fd, FIONBIO, &off); });
}
void look_up_family(int fd) {
  sockaddr_storage address;
  socklen_t size = sizeof address;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
}
OwnedFd socket_from_fd(int fd) {
  OwnedFd copy = duplicate(fd);
  look_up_family(copy.get());
  return copy;
}

/// For the threads of the acceptor: its signals belong to its loop, and a worker that is gone is an
/// EPIPE. (In a worker the program ignores SIGPIPE, as CPython does.)
void block_signals() {
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

/// One byte of data and at most one descriptor, as reduction.sendfds and recvfds.
union OneDescriptor {
  cmsghdr header;
  char bytes[CMSG_SPACE(sizeof(int))];
};

// ---- the acceptor's side ------------------------------------------------------------------------

/// multiprocessing.resource_sharer: duplicates wait under a key until a worker fetches them. One
/// thread serves one worker at a time.
class ResourceSharer {
 public:
  ResourceSharer() {
    checked([&] { return ::getrandom(key_.data(), key_.size(), 0); }, "getrandom {} bytes", key_.size());
    open_listener();
  }

  ~ResourceSharer() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      ::shutdown(listener_.get(), SHUT_RDWR);  // ends a waiting accept
      if (serving_ >= 0) ::shutdown(serving_, SHUT_RDWR);
    }
    if (thread_.joinable()) thread_.join();
    for (const auto& [_, entry] : cache_) ::close(entry.fd);
  }

  ResourceSharer(const ResourceSharer&) = delete;
  ResourceSharer& operator=(const ResourceSharer&) = delete;

  [[nodiscard]] const Key& key() const { return key_; }
  /// Lent: workers connect to the listener through it.
  [[nodiscard]] int path_descriptor() const { return path_.get(); }

  /// DupFd: takes over `fd` and returns its ticket. The thread starts with the first one. A connection
  /// that is handed over again replaces its earlier ticket.
  std::uint64_t add(int fd, std::uint64_t connection, const void* owner) {
    const std::lock_guard lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { serve(); });
    if (const auto earlier = tickets_.find(connection); earlier != tickets_.end()) drop(earlier->second);
    const std::uint64_t ticket = ++last_ticket_;
    cache_.emplace(ticket, Entry{fd, connection, owner});
    tickets_.emplace(connection, ticket);
    return ticket;
  }

  /// Closes what nobody fetched of one queue.
  void drop_all_of(const void* owner) {
    const std::lock_guard lock(mutex_);
    for (auto next = cache_.begin(); next != cache_.end();) {
      const auto here = next++;
      if (here->second.owner == owner) drop(here->first);
    }
  }

 private:
  struct Entry {
    int fd;
    std::uint64_t connection;
    const void* owner;
  };

  void open_listener() {
    const char* base = ::getenv("TMPDIR");
    std::string folder = fmt::format("{}/pymp-XXXXXX", base != nullptr && *base != 0 ? base : "/tmp");
    if (::mkdtemp(folder.data()) == nullptr) throw_system_error(errno, "mkdtemp {}", folder);
    const std::string path = folder + "/listener-00000000";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    int error = ENAMETOOLONG;
    if (path.size() < sizeof address.sun_path) {
      std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
      listener_ = OwnedFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const bool open = ::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
                        ::listen(listener_.get(), listener_backlog) == 0;
      if (open) path_ = OwnedFd(::open(path.c_str(), O_PATH | O_CLOEXEC));
      error = errno;
    }
    ::unlink(path.c_str());
    ::rmdir(folder.c_str());
    if (!path_) throw_system_error(error, "bind and listen on {}", path);
  }

  // With the mutex held.
  void drop(std::uint64_t ticket) {
    const auto found = cache_.find(ticket);
    ::close(found->second.fd);
    tickets_.erase(found->second.connection);
    cache_.erase(found);
  }

  OwnedFd take(std::uint64_t ticket) {
    const std::lock_guard lock(mutex_);
    const auto found = cache_.find(ticket);
    if (found == cache_.end()) throw PeerGone("a ticket that does not exist (any more)");
    OwnedFd fd(found->second.fd);
    tickets_.erase(found->second.connection);
    cache_.erase(found);
    return fd;
  }

  bool set_serving(int fd) {
    const std::lock_guard lock(mutex_);
    serving_ = fd;
    return !stopping_;
  }

  void serve() {
    block_signals();
    while (true) {
      OwnedFd connection(retry_eintr([&] { return ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC); }));
      if (!set_serving(connection.get())) return;
      if (!connection) {
        // At the descriptor limit the worker waits in the queue until the acceptor has closed some.
        ::poll(nullptr, 0, 1);
        continue;
      }
      try {
        serve_one(connection.get());
      } catch (const std::exception&) {
        // A worker that died in mid-way. Its queue's end closes what it left.
      }
      if (!set_serving(-1)) return;
    }
  }

  /// _ResourceSharer._serve, one turn: 21 system calls with the accept.
  void serve_one(int connection) {
    look_up_family(connection);
    set_blocking(connection);
    deliver_challenge(connection, key_);
    answer_challenge(connection, key_);
    RequestMessage request;
    receive_message(connection, request.bytes.data(), request.bytes.size());
    const OwnedFd fd = take(request.frame().key);

    const OwnedFd copy = socket_from_fd(connection);
    char byte = 1;
    iovec data{&byte, 1};
    OneDescriptor control{};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    const int number = fd.get();
    std::memcpy(CMSG_DATA(header), &number, sizeof number);
    (void)retry_eintr([&] { return ::sendmsg(copy.get(), &message, MSG_NOSIGNAL); });
  }

  Key key_{};
  OwnedFd listener_;
  OwnedFd path_;
  std::mutex mutex_;
  std::unordered_map<std::uint64_t, Entry> cache_;           // ticket -> what waits under it
  std::unordered_map<std::uint64_t, std::uint64_t> tickets_;  // connection id -> ticket
  std::uint64_t last_ticket_ = 0;
  int serving_ = -1;
  bool stopping_ = false;
  std::thread thread_;
};

/// The semaphores of one Queue, between processes as CPython's SemLock.
struct QueueLocks {
  sem_t free_slots;   // _sem: a BoundedSemaphore(maxsize)
  sem_t read_lock;    // _rlock
  sem_t write_lock;   // _wlock
};

/// Queue.put with its feeder thread.
class QueueSink : public ConnectionSink {
 public:
  QueueSink(std::shared_ptr<ResourceSharer> sharer, std::shared_ptr<SharedArray<QueueLocks>> locks, OwnedFd writer)
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
      ticket.key = sharer_->add(copy.release(), next.tag.id, this);
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
  QueueSource(const Key& key, OwnedFd path, std::shared_ptr<SharedArray<QueueLocks>> locks, OwnedFd reader)
      : key_(key), path_(std::move(path)), locks_(std::move(locks)), reader_(std::move(reader)) {
    address_.sun_family = AF_UNIX;
    fmt::format_to_n(address_.sun_path, sizeof address_.sun_path - 1, "/proc/self/fd/{}", path_.get());
  }

  [[nodiscard]] int fd() const override { return reader_.get(); }

  /// Queue.get: one connection. Blocks for as long as the acceptor's sharer takes, as the original.
  ReceiveResult receive(std::span<Received> batch) override {
    Ticket ticket;
    if (const Channel state = read_ticket(ticket); state != Channel::more) return {.state = state};
    try {
      OwnedFd fd = fetch(ticket.key);
      if (!fd) return {.refused = 1, .error = EMFILE};
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
      whole = retry_eintr([&] { return ::read(reader_.get(), message.bytes.data(), ticket_bytes); }) ==
              static_cast<ssize_t>(ticket_bytes);
      ticket = message.frame();
    }
    ::sem_post(&locks.read_lock);
    if (empty) return Channel::would_block;
    if (got == 0) return Channel::closed;
    if (!whole || ticket.magic != Ticket::expected_magic) throw std::runtime_error("the queue's pipe brought no ticket");
    ::sem_post(&locks.free_slots);
    return Channel::more;
  }

  /// DupFd.detach: the whole rendezvous, 20 system calls. Empty when this process has no descriptor free.
  OwnedFd fetch(std::uint64_t key) {
    OwnedFd connection(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!connection) return {};
    set_blocking(connection.get());
    if (retry_eintr([&] {
          return ::connect(connection.get(), reinterpret_cast<const sockaddr*>(&address_), sizeof address_);
        }) != 0) {
      throw PeerGone("connect: the sharer is gone");
    }
    answer_challenge(connection.get(), key_);
    deliver_challenge(connection.get(), key_);
    const RequestMessage request({.key = key, .pid = static_cast<std::int32_t>(::getpid())});
    send_message(connection.get(), request.bytes.data(), request.bytes.size());

    OwnedFd copy(::fcntl(connection.get(), F_DUPFD_CLOEXEC, 0));
    if (!copy) return {};
    look_up_family(copy.get());
    char byte = 0;
    iovec data{&byte, 1};
    OneDescriptor control{};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    const ssize_t size = retry_eintr([&] { return ::recvmsg(copy.get(), &message, MSG_CMSG_CLOEXEC); });
    if (size != 1) throw PeerGone("recvmsg: the sharer is gone");
    if ((message.msg_flags & MSG_CTRUNC) != 0) return {};
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (header == nullptr || header->cmsg_type != SCM_RIGHTS) throw PeerGone("recvmsg: no descriptor");
    int number = -1;
    std::memcpy(&number, CMSG_DATA(header), sizeof number);
    return OwnedFd(number);
  }

  Key key_;
  OwnedFd path_;
  std::shared_ptr<SharedArray<QueueLocks>> locks_;
  OwnedFd reader_;
  sockaddr_un address_{};
};

// ---- the method ---------------------------------------------------------------------------------

class QueueLink : public Link {
 public:
  explicit QueueLink(std::shared_ptr<ResourceSharer> sharer)
      : sharer_(std::move(sharer)), locks_(std::make_shared<SharedArray<QueueLocks>>(1)) {
    QueueLocks& locks = (*locks_)[0];
    checked([&] { return ::sem_init(&locks.free_slots, 1, queue_capacity); }, "sem_init {}", queue_capacity);
    checked([&] { return ::sem_init(&locks.read_lock, 1, 1); }, "sem_init 1");
    checked([&] { return ::sem_init(&locks.write_lock, 1, 1); }, "sem_init 1");
    int ends[2];
    checked([&] { return ::pipe2(ends, O_CLOEXEC | O_NONBLOCK); }, "pipe2");
    reader_.reset(ends[0]);
    writer_.reset(ends[1]);
    path_ = duplicate(sharer_->path_descriptor());
  }

  std::unique_ptr<ConnectionSink> acceptor_end() override {
    reader_.reset();
    path_.reset();
    return std::make_unique<QueueSink>(sharer_, locks_, std::move(writer_));
  }
  std::unique_ptr<ConnectionSource> worker_end() override {
    writer_.reset();
    return std::make_unique<QueueSource>(sharer_->key(), std::move(path_), locks_, std::move(reader_));
  }
  [[nodiscard]] std::vector<int> worker_descriptors() const override { return {reader_.get(), path_.get()}; }

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
      (void)digest_of(Key{}, std::array<unsigned char, nonce_bytes>{}.data());
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
           .after_death = "nothing (in CPython: unfetched duplicates, and a lock held for ever)"},
          [](MethodOptions&) -> std::unique_ptr<HandoffMethod> { return std::make_unique<QueuePython3>(); }};
}

}  // namespace c10k
