// receive_frame(), which reads the message of all SCM_RIGHTS methods, against a peer that sends anything:
// bytes, numbers and kinds of descriptors, foreign control messages (credentials, and what a socket option
// adds), over each type of socket, with a full or an almost full descriptor table. Whatever comes, either
// every descriptor is handed out once, close-on-exec, or none is kept.
#include <optional>

#include "ipc/scm.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace c10k;
using fuzz::expect;

#ifndef SO_PASSPIDFD
constexpr int SO_PASSPIDFD = 76;  // Linux 6.5
#endif

enum Flag : std::uint8_t {
  pass_credentials = 1,
  pass_pidfd = 2,
  send_credentials = 4,
  whole_frame = 8,  // the data begins with a frame that fits the descriptors
  low_limit = 16,
  hang_up = 32,
};

void send_one(fuzz::Input& input, int socket) {
  const std::uint8_t flags = input.byte();
  std::vector<int> descriptors(input.byte() % (scm_max_descriptors + 1));
  const std::uint8_t kind = input.byte();
  for (std::size_t i = 0; i < descriptors.size(); ++i)
    descriptors[i] = fuzz::some_descriptor(kind < 128 ? kind : kind + i);
  std::vector<std::uint8_t> data;
  if ((flags & whole_frame) != 0) {
    ScmFrame frame;
    frame.count = static_cast<std::uint32_t>(descriptors.size()) + (input.byte() % 3U) - 1;
    data.resize(ScmFrame::bytes(descriptors.size()));
    std::memcpy(data.data(), &frame, ScmFrame::bytes(0));
  }
  const auto more = input.bytes(input.byte() * std::size_t{32});
  data.insert(data.end(), more.begin(), more.end());
  (void)fuzz::send_raw(socket, data, descriptors, (flags & send_credentials) != 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  (void)fuzz::some_descriptor(0);
  const fuzz::NothingLeftOpen check(512);
  fuzz::Input input(data, size);
  const std::uint8_t flags = input.byte();
  const int type = std::array{SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM}[input.byte() % 3];
  auto [sender, receiver] = unix_pair(type);
  const int on = 1;
  if ((flags & pass_credentials) != 0)
    ::setsockopt(receiver.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  if ((flags & pass_pidfd) != 0)
    ::setsockopt(receiver.get(), SOL_SOCKET, SO_PASSPIDFD, &on, sizeof on);
  const std::size_t more_numbers = input.byte();
  do {
    send_one(input, sender.get());
  } while (!input.empty());
  if ((flags & hang_up) != 0) sender.reset();
  std::optional<fuzz::FewDescriptors> limit;
  if ((flags & low_limit) != 0) limit.emplace(fuzz::OpenDescriptors(), more_numbers % 16);

  std::array<Received, receive_room> batch;
  const auto filled = [&] {
    return static_cast<std::size_t>(std::count_if(
        batch.begin(), batch.end(), [](const Received& one) { return one.fd.get() >= 0; }));
  };
  for (int i = 0; i < 64; ++i) {
    ReceiveResult result;
    try {
      result = receive_frame(receiver.get(), batch, type == SOCK_DGRAM);
    } catch (const std::runtime_error&) {
      expect(filled() == 0, "a frame that is refused leaves no descriptor");
      continue;
    }
    expect(filled() == result.received, "as many descriptors as the result says");
    expect(result.received == 0 || result.refused == 0, "a frame is received or refused");
    for (std::size_t j = 0; j < result.received; ++j) {
      expect((::fcntl(batch[j].fd.get(), F_GETFD) & FD_CLOEXEC) != 0, "received close-on-exec");
      batch[j].fd.reset();
    }
    if (result.state != Channel::more) break;
  }
  return 0;
}
