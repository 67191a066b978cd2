// The one owner of a file descriptor.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <span>
#include <utility>

namespace c10k {

/// Who owns each number of a descriptor table that several processes share (CLONE_FILES). Such a
/// process's death closes nothing, so somebody must know what it had. Empty in every other process.
struct DescriptorLedger {
  /// On a mark: its owner has asked for the close, and has not seen it done.
  static constexpr std::uint32_t closing = 1U << 30;

  std::span<std::atomic<std::uint32_t>> owners;  ///< by descriptor; 0: nobody
  std::uint32_t self = 0;

  void mark(int fd, std::uint32_t owner) const noexcept {
    if (static_cast<std::size_t>(fd) < owners.size())
      owners[static_cast<std::size_t>(fd)].store(owner, std::memory_order_release);
  }
  /// After the close: when somebody else has got the number and marked it, the mark is theirs.
  void unmark(int fd) const noexcept { change(fd, self, 0); }
  /// Where the close is under way while this process goes on, and may get the same number again.
  void begin_close(int fd) const noexcept { change(fd, self, self | closing); }
  void end_close(int fd) const noexcept { change(fd, self | closing, 0); }

 private:
  void change(int fd, std::uint32_t from, std::uint32_t to) const noexcept {
    if (static_cast<std::size_t>(fd) < owners.size())
      owners[static_cast<std::size_t>(fd)].compare_exchange_strong(from, to);
  }
};
inline DescriptorLedger descriptor_ledger;

/// Owns one descriptor and closes it; move-only. Whoever takes a plain `int fd` only borrows it for
/// the time of the call, unless its comment says otherwise.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) noexcept { take(fd); }
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.release()) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = other.release();
    }
    return *this;
  }
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd() { close(); }

  /// The descriptor, still owned here; -1 when empty.
  [[nodiscard]] int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }

  /// Gives the descriptor up without closing it: the caller owns it now.
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

  /// Closes what is owned and takes over `fd`.
  void reset(int fd = -1) noexcept {
    close();
    take(fd);
  }

 private:
  void take(int fd) noexcept {
    fd_ = fd;
    if (descriptor_ledger.self != 0 && fd >= 0) descriptor_ledger.mark(fd, descriptor_ledger.self);
  }
  /// close() is not retried on EINTR: Linux has freed the number by then, and a retry could close
  /// somebody else's (close(2), NOTES).
  void close() noexcept {
    if (fd_ < 0) return;
    ::close(fd_);
    if (descriptor_ledger.self != 0) descriptor_ledger.unmark(fd_);
    fd_ = -1;
  }

  int fd_ = -1;
};

}  // namespace c10k
