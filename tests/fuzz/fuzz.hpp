// What the fuzz targets share: an input read piece by piece, the check that no descriptor is left over, and
// descriptors of every kind to send. A target is a LLVMFuzzerTestOneInput: libFuzzer's main calls it in the
// preset `fuzz` (tests/fuzz/run), and replay.cpp in the others.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/owned_fd.hpp"
#include "ipc/socket.hpp"
#include "ipc/syscall.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace c10k::fuzz {

/// Ends the process, which libFuzzer and replay.cpp report with the input.
inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: does not hold: %s\n", what);
  std::abort();
}

/// The input. Behind its end there are zeros, so that every prefix of an input is an input.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(data, size) {}

  template <typename Integer>
  Integer integer() {
    Integer value{};
    const std::size_t size = std::min(sizeof value, rest_.size());
    if (size != 0) std::memcpy(&value, rest_.data(), size);
    rest_ = rest_.subspan(size);
    return value;
  }
  std::uint8_t byte() { return integer<std::uint8_t>(); }
  /// At most `most` bytes, and no more than there are.
  std::span<const std::uint8_t> bytes(std::size_t most) {
    const auto taken = rest_.first(std::min(most, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return taken;
  }
  std::span<const std::uint8_t> rest() { return bytes(rest_.size()); }
  std::string text() {
    const auto all = rest();
    return {all.begin(), all.end()};
  }
  [[nodiscard]] bool empty() const { return rest_.empty(); }

 private:
  std::span<const std::uint8_t> rest_;
};

/// Which of the first numbers of the table are open: poll(2) says it of all in one call.
class OpenDescriptors {
 public:
  explicit OpenDescriptors(std::size_t numbers = most) : numbers_(numbers) {
    for (std::size_t i = 0; i < numbers_; ++i) entries_[i] = {static_cast<int>(i), 0, 0};
    if (::poll(entries_.data(), numbers_, 0) < 0) std::abort();
  }
  [[nodiscard]] bool has(std::size_t number) const {
    return (entries_[number].revents & POLLNVAL) == 0;
  }
  [[nodiscard]] std::size_t count() const {
    std::size_t open = 0;
    for (std::size_t number = 0; number < numbers_; ++number) open += has(number) ? 1 : 0;
    return open;
  }
  /// One more than the highest.
  [[nodiscard]] std::size_t end() const {
    std::size_t number = numbers_;
    while (number > 0 && !has(number - 1)) --number;
    return number;
  }

 private:
  static constexpr std::size_t most = 640;
  std::size_t numbers_;
  std::array<pollfd, most> entries_;
};

/// After every input the same numbers are open as before.
class NothingLeftOpen {
 public:
  /// An input that opens few needs to look at few.
  explicit NothingLeftOpen(std::size_t numbers) : numbers_(numbers), before_(numbers) {}
  ~NothingLeftOpen() {
    const OpenDescriptors after(numbers_);
    for (std::size_t number = 0; number < numbers_; ++number) {
      expect(after.has(number) || !before_.has(number), "what was open stays open");
      if (after.has(number) && !before_.has(number))
        std::fprintf(stderr, "fuzz: left open: %zu\n", number);
    }
    expect(before_.count() == after.count(), "every descriptor is closed after an input");
  }

 private:
  std::size_t numbers_;
  OpenDescriptors before_;
};

/// A descriptor of some kind; lent, and open for as long as the process lives. The first two are what a
/// worker may expect.
inline int some_descriptor(std::size_t which) {
  static const auto all = [] {
    std::array<OwnedFd, 8> made;
    made[1] = listen_tcp(SocketAddress::loopback_source(1), {.backlog = 4});
    const SocketAddress address = SocketAddress::local(made[1].get());
    made[7] = OwnedFd(
        checked([] { return ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); }, "socket TCP"));
    checked([&] { return ::connect(made[7].get(), address.data(), address.size()); }, "connect");
    made[0] = OwnedFd(checked(
        [&] { return ::accept4(made[1].get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC); },
        "accept4"));
    int ends[2];
    checked([&] { return ::pipe2(ends, O_CLOEXEC | O_NONBLOCK); }, "pipe2");
    made[2] = OwnedFd(ends[0]);
    made[3] = OwnedFd(ends[1]);
    made[4] = OwnedFd(checked([] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }, "eventfd"));
    made[5] = OwnedFd(checked([] { return ::epoll_create1(EPOLL_CLOEXEC); }, "epoll_create1"));
    made[6] = OwnedFd(checked([] { return ::memfd_create("fuzz", MFD_CLOEXEC); }, "memfd_create"));
    return made;
  }();
  return all[which % all.size()].get();
}

/// Sends bytes and descriptors in one message, as a peer may that follows no rule. False when the kernel
/// refuses it.
inline bool send_raw(int socket, std::span<const std::uint8_t> bytes,
                     std::span<const int> descriptors, bool with_credentials = false) {
  iovec data{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(253 * sizeof(int)) + CMSG_SPACE(sizeof(ucred))>
      control{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  std::size_t size = 0;
  const auto add = [&](int type, const void* content, std::size_t length) {
    auto* header = reinterpret_cast<cmsghdr*>(control.data() + size);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = type;
    header->cmsg_len = CMSG_LEN(length);
    std::memcpy(CMSG_DATA(header), content, length);
    size += CMSG_SPACE(length);
  };
  if (with_credentials) {
    const ucred self{::getpid(), ::getuid(), ::getgid()};
    add(SCM_CREDENTIALS, &self, sizeof self);
  }
  if (!descriptors.empty()) add(SCM_RIGHTS, descriptors.data(), descriptors.size_bytes());
  if (size != 0) {
    message.msg_control = control.data();
    message.msg_controllen = size;
  }
  return retry_eintr([&] { return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT); }) >= 0;
}

/// While it lives this process can open only so many more descriptors.
class FewDescriptors {
 public:
  FewDescriptors(const OpenDescriptors& open, std::size_t more) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit few{open.end() + more, before_.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &few);
  }
  ~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;

 private:
  rlimit before_{};
};

}  // namespace c10k::fuzz
