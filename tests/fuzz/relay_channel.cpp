// RelayChannel, on the acceptor's and on the worker's side, against a peer that writes any bytes or any frames
// while streams open, end and stall. A peer that breaks the protocol is an exception; the channel then ends with
// every descriptor that it had.
#include "ipc/relay_channel.hpp"

#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace c10k;
using fuzz::expect;

/// As on the channel (RelayChannel::Header).
struct Frame {
  std::uint32_t stream;
  std::uint32_t kind;
  std::uint32_t size;
};

constexpr std::size_t most_streams = 24;  // few enough for OpenDescriptors

class Scene {
 public:
  Scene(OwnedFd socket, bool acceptor)
      : acceptor_(acceptor),
        channel_(std::move(socket),
                 acceptor ? RelayChannel::Side::acceptor : RelayChannel::Side::worker,
                 [this](const ConnectionTag& tag) { return open(tag); }) {}

  [[nodiscard]] RelayChannel& channel() { return channel_; }

  void open_stream() {
    if (!acceptor_ || channel_.ended() || others_.size() >= most_streams) return;
    channel_.open(pair(), {.id = others_.size()});
    channel_.flush();
  }
  void use_other(fuzz::Input& input) {
    const std::uint8_t how = input.byte();
    if (others_.empty()) return;
    OwnedFd& other = others_[input.byte() % others_.size()];
    std::array<char, 4096> bytes{};
    switch (how % 4) {
      case 0:
        (void)::send(other.get(), bytes.data(), std::min<std::size_t>(how * 64U, bytes.size()),
                     MSG_NOSIGNAL | MSG_DONTWAIT);
        break;
      case 1:
        (void)::recv(other.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
        break;
      case 2:
        ::shutdown(other.get(), SHUT_WR);
        break;
      default:
        other.reset();
    }
  }

 private:
  OwnedFd pair() {
    auto [ours, other] = unix_pair(SOCK_STREAM);
    others_.push_back(std::move(other));
    return std::move(ours);
  }
  OwnedFd open(const ConnectionTag& tag) {
    return others_.size() >= most_streams || tag.attempt == 1 ? OwnedFd() : pair();
  }

  bool acceptor_;
  std::vector<OwnedFd> others_;  // the clients', or the handler's ends
  RelayChannel channel_;
};

void write_frame(fuzz::Input& input, int peer) {
  Frame frame{input.byte() % 8U, input.byte() % 9U, input.byte()};
  if (frame.size >= 128) frame.size = (frame.size - 127) * 512;
  if (frame.kind == 1) frame.size = frame.size < 250 ? sizeof(ConnectionTag) : frame.size;
  std::vector<std::uint8_t> bytes(sizeof frame);
  std::memcpy(bytes.data(), &frame, sizeof frame);
  if (frame.kind == 1 || frame.kind == 4) bytes.resize(sizeof frame + frame.size);
  (void)::send(peer, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::NothingLeftOpen check(128);
  fuzz::Input input(data, size);
  auto [ours, peer] = unix_pair(SOCK_STREAM);
  Scene scene(std::move(ours), input.byte() % 2 == 0);
  RelayChannel& channel = scene.channel();
  try {
    for (int i = 0; i < 64 && !input.empty(); ++i) {
      switch (input.byte() % 9) {
        case 0: {
          const auto bytes = input.bytes(input.byte());
          (void)::send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
          break;
        }
        case 1:
        case 2:
          write_frame(input, peer.get());
          break;
        case 3:
        case 4:
          channel.step();
          break;
        case 5:
          scene.open_stream();
          break;
        case 6:
          scene.use_other(input);
          break;
        case 7:
          channel.confirm_opened();
          channel.flush();
          break;
        default: {
          std::array<char, 65536> heard;
          if (::recv(peer.get(), heard.data(), heard.size(), MSG_DONTWAIT) < 0 &&
              input.byte() == 255)
            peer.reset();
        }
      }
      expect(channel.unanswered() <= channel.in_use(), "what is unanswered is in use");
      expect(channel.in_use() <= 2 * most_streams, "no stream that nobody opened");
    }
    channel.step();
  } catch (const std::runtime_error&) {
    channel.end();
    expect(channel.in_use() == 0 && channel.unanswered() == 0,
           "a channel that ended has no stream");
  }
  return 0;
}
