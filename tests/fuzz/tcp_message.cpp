// receive_message() of tcp-repair: a connection's snapshot, or its descriptor, as a message. The input patches
// a message that send_snapshot() or send_descriptor() made, and adds descriptors of any kind and number. What
// is accepted is complete: the queues are as long as the state says, and no descriptor is left over.
#include "ipc/tcp_message.hpp"

#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace c10k;
using fuzz::expect;

/// What travels as data for a snapshot with so many bytes in its queues, or for a descriptor.
std::vector<std::uint8_t> data_of(std::size_t queue_bytes, bool as_descriptor) {
  const auto [sender, receiver] = unix_pair(SOCK_SEQPACKET);
  TcpSnapshot snapshot;
  snapshot.state.local = SocketAddress::loopback_source(1);
  snapshot.state.peer = SocketAddress::loopback_source(2);
  snapshot.state.unread_bytes = static_cast<std::uint32_t>(queue_bytes);
  snapshot.queues.resize(queue_bytes);
  const ConnectionTag tag{.id = 1};
  const Channel sent = as_descriptor ? send_descriptor(sender.get(), tag, sender.get())
                                     : send_snapshot(sender.get(), tag, snapshot);
  expect(sent == Channel::more, "a pair takes a message");
  std::vector<std::uint8_t> data(std::size_t{64} * 1024);
  // Without room for a descriptor the kernel drops it.
  data.resize(static_cast<std::size_t>(::recv(receiver.get(), data.data(), data.size(), 0)));
  return data;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const std::array templates{data_of(0, false), data_of(5, false), data_of(20'000, false),
                                    data_of(0, true)};
  (void)fuzz::some_descriptor(0);
  const fuzz::NothingLeftOpen check(64);
  fuzz::Input input(bytes, size);
  std::vector<std::uint8_t> data = templates[input.byte() % templates.size()];
  const std::uint8_t flags = input.byte();
  std::vector<int> descriptors;
  for (int count = input.byte() % 5; count > 0; --count)
    descriptors.push_back(fuzz::some_descriptor(input.byte()));
  OwnedFd queues;
  if ((flags & 1) != 0) {
    queues = OwnedFd(::memfd_create("queues", MFD_CLOEXEC));
    (void)!::ftruncate(queues.get(), input.integer<std::uint16_t>());
    descriptors.insert(descriptors.begin(), queues.get());
  }
  const std::size_t more_numbers = input.byte() % 4;
  const auto resize = input.integer<std::int8_t>();
  while (!input.empty()) {
    const std::size_t at = input.integer<std::uint16_t>();
    const auto patch = input.bytes(input.byte() % 16);
    if (at + patch.size() <= data.size())
      std::copy(patch.begin(), patch.end(), data.begin() + static_cast<std::ptrdiff_t>(at));
  }
  data.resize(resize < 0 ? data.size() - std::min<std::size_t>(data.size(), -resize)
                         : data.size() + static_cast<std::size_t>(resize));

  const auto [sender, receiver] = unix_pair(SOCK_SEQPACKET);
  const int on = 1;
  if ((flags & 2) != 0) ::setsockopt(receiver.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  (void)fuzz::send_raw(sender.get(), data, descriptors, (flags & 4) != 0);
  std::unique_ptr<fuzz::FewDescriptors> limit;
  if ((flags & 8) != 0)
    limit = std::make_unique<fuzz::FewDescriptors>(fuzz::OpenDescriptors(), more_numbers);
  TcpMessage message;
  try {
    if (receive_message(receiver.get(), message) != Channel::more) return 0;
  } catch (const std::runtime_error&) {
    expect(!message.descriptor, "what is no message brings no descriptor");
    return 0;
  }
  expect(!message.snapshot || !message.descriptor, "a snapshot or a descriptor");
  if (message.snapshot) {
    expect(message.snapshot->queues.size() == message.snapshot->state.queue_bytes(),
           "the queues are complete");
    (void)message.snapshot->state.tuple();
  }
  return 0;
}
