// TakeOver, the side of a successor, against a running server that says anything: words in any order, with any
// numbers and text, whole or not, frames of descriptors of any kind, in any number. Whatever comes, it takes a
// listener that fits and adopts TCP connections, or ends with an error; every descriptor is handed out once, or
// closed.
#include "acceptor/take_over.hpp"

#include <fmt/format.h>

#include "acceptor/upgrade_words.hpp"
#include "ipc/scm.hpp"
#include "strategies/event_loop.hpp"
#include "strategies/poller.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace c10k;
using fuzz::expect;

constexpr std::string_view how = "one listener";
constexpr int most_turns = 32;

std::vector<std::uint8_t> bytes_of(const void* from, std::size_t size) {
  const auto* first = static_cast<const std::uint8_t*>(from);
  return {first, first + size};
}

/// One message; false when there is no room for more.
bool send_one(fuzz::Input& input, int socket) {
  enum Kind : std::uint8_t { word, frame, anything };
  const std::uint8_t kind = input.byte() % 4;
  if (kind == frame) {
    ScmFrame sent;
    std::vector<int> descriptors(1 + input.byte() % scm_max_descriptors);
    const std::uint8_t which = input.byte();
    for (std::size_t i = 0; i < descriptors.size(); ++i)
      descriptors[i] = fuzz::some_descriptor(which < 128 ? which : which + i);
    sent.count = static_cast<std::uint32_t>(descriptors.size());
    std::memset(sent.tags, 0, sizeof sent.tags);
    return fuzz::send_raw(socket, bytes_of(&sent, ScmFrame::bytes(sent.count)), descriptors);
  }
  if (kind == anything) {
    const auto data = input.bytes(input.byte() * std::size_t{2});
    const std::vector<int> descriptors(input.byte() % 4, fuzz::some_descriptor(input.byte()));
    return fuzz::send_raw(socket, data, descriptors);
  }
  Message message;
  message.word = static_cast<Word>(input.byte() % 8);
  message.first = input.byte();
  message.second = input.byte();
  const auto text = input.bytes(input.byte());
  if (text.empty()) {
    std::memcpy(message.text, how.data(), how.size());
  } else {
    std::memcpy(message.text, text.data(), std::min(text.size(), sizeof message.text));
  }
  return fuzz::send_raw(socket, bytes_of(&message, sizeof message), {});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const int listener = fuzz::some_descriptor(1);
  const fuzz::NothingLeftOpen check(512);
  fuzz::Input input(data, size);
  const bool adopts = input.byte() % 2 != 0;
  EventLoop loop(epoll_poller());
  auto [server, successor] = unix_pair(SOCK_SEQPACKET);
  while (!input.empty() && send_one(input, server.get())) {
  }
  server.reset();  // it has said all: nobody waits for more
  try {
    TakeOver take_over(fmt::format("fd:{}", successor.release()));
    const auto all = take_over.listeners(how, SocketAddress::local(listener));
    expect(!all.empty() && is_tcp_listener(all[0].get()), "the first one is a listener");
    TakeOver::Hooks hooks{.left = [] {}, .adopt = nullptr};
    if (adopts) {
      hooks.adopt = [](OwnedFd fd) { expect(is_tcp_socket(fd.get()), "what it adopts is TCP"); };
    }
    take_over.commit(loop, std::move(hooks));
    int turns = 0;
    std::function<void()> next = [&] {
      if (++turns == most_turns) return loop.stop();
      loop.after(0, next);
    };
    loop.after(0, next);
    loop.run();
  } catch (const std::exception&) {
  }
  return 0;
}
