// What queue-python2 and queue-python3 read: the messages with their length in front, both sides of the mutual
// challenge, the message with the descriptor, and the worker's end of the queue's pipe. The peer's bytes are
// the input and are all there before the first read, so that nothing waits.
#include <signal.h>

#include "ipc/multiprocessing.hpp"
#include "ipc/registry.hpp"
#include "tests/fuzz/fuzz.hpp"

/// So that an input of the corpus can hold the right answer to a challenge.
extern "C" ssize_t getrandom(void* buffer, std::size_t size, unsigned /*flags*/) {
  std::memset(buffer, 0x5a, size);
  return static_cast<ssize_t>(size);
}

namespace {

using namespace c10k;
using fuzz::expect;
namespace mp = multiprocessing;

constexpr mp::Dialect dialect(std::uint8_t bits) {
  return {.ticket_bytes = 206,
          .request_bytes = 19,
          .backlog = 1,
          .refused_patience_ms = 0,
          .ticket_before_put = false,
          .number_is_ticket = false,
          .set_blocking = mp::set_blocking_by_ioctl,
          .looks_up_family = (bits & 1) != 0,
          .duplicates_connection = false,
          .duplicates_to_pass = (bits & 2) != 0,
          .duplicates_result = (bits & 4) != 0};
}

/// A worker's source whose acceptor has ended: nobody listens for its tickets. The pipe's other end can be
/// opened anew from its number.
class Worker {
 public:
  explicit Worker(std::string_view method) {
    const ConfiguredMethod configured = configure_handoff_method(method);
    const auto link = configured.method->open({});
    pipe_ = fmt::format("/proc/self/fd/{}", link->worker_descriptors().at(0));
    source_ = link->worker_end();
  }
  void read(std::span<const std::uint8_t> bytes) {
    {
      const OwnedFd writer(
          checked([&] { return ::open(pipe_.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC); },
                  "open {}", pipe_));
      (void)!::write(writer.get(), bytes.data(), bytes.size());
    }
    std::array<Received, receive_room> batch;
    // One that ends at a ticket leaves the rest of the input in the pipe.
    for (bool ended = false; !ended;) {
      try {
        const ReceiveResult result = source_->receive(batch);
        expect(result.received == 0 && result.refused == 0, "nobody has sent a descriptor");
        char left = 0;
        ended = result.state == Channel::closed && ::read(source_->fd(), &left, 1) == 0;
      } catch (const std::runtime_error&) {
        continue;
      }
    }
  }

 private:
  std::string pipe_;
  std::unique_ptr<ConnectionSource> source_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const bool prepared = [] {
    ::signal(SIGPIPE, SIG_IGN);
    mp::prepare_authentication();
    return true;
  }();
  static Worker python2("queue-python2:auth=off");
  static Worker python3("queue-python3:auth=off,lock=off");
  (void)prepared;
  (void)fuzz::some_descriptor(0);
  const fuzz::NothingLeftOpen check(48);
  fuzz::Input input(data, size);
  const unsigned what = input.byte() % 6;
  const std::uint8_t bits = input.byte();
  if (what >= 4) {
    (what == 4 ? python2 : python3).read(input.bytes(4096));
    return 0;
  }

  int ends[2];
  checked([&] { return ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends); }, "socketpair");
  const OwnedFd ours(ends[0]);
  const OwnedFd peer(ends[1]);
  std::vector<int> descriptors;
  if (what == 3) {
    for (int count = input.byte() % 5; count > 0; --count)
      descriptors.push_back(fuzz::some_descriptor(input.byte()));
  }
  // All but the descriptor's message is plain bytes, and one write is one buffer of the socket.
  const std::size_t message_bytes = what == 0 ? 1 + bits % 256 : 0;
  const std::span<const std::uint8_t> sent = input.bytes(4096);
  const bool there = fuzz::send_raw(peer.get(), sent, descriptors);
  ::shutdown(peer.get(), SHUT_WR);
  const mp::Auth auth = std::array{mp::Auth::on, mp::Auth::no_hmac, mp::Auth::off}[bits % 3];
  try {
    switch (what) {
      case 0: {
        std::array<std::uint8_t, 256> message{};
        mp::receive_message(ours.get(), message.data(), message_bytes);
        expect(there && sent.size() >= 4 + message_bytes &&
                   std::memcmp(message.data(), sent.data() + 4, message_bytes) == 0,
               "a message is what was sent");
        break;
      }
      case 1:
        mp::authenticate_client(ours.get(), auth, mp::Key{});
        break;
      case 2:
        mp::authenticate_to_listener(ours.get(), auth, mp::Key{});
        break;
      default: {
        int error = 0;
        const OwnedFd handle =
            mp::rebuilt(mp::receive_handle(ours.get(), dialect(bits), error), dialect(bits));
        if (handle) expect(there && descriptors.size() == 1, "a message has one descriptor");
      }
    }
  } catch (const mp::PeerGone&) {
    return 0;
  }
  return 0;
}
