// select(2): the sets are bitmaps, copied in and out at every call and scanned from bit 0.
//
// FD_SET beyond 1024 writes past fd_set, but the system call takes bitmaps of any length (fs/select.c,
// core_sys_select allocates what nfds asks for). So: own bitmaps on the heap, no FD_SET, no limit.
#include <sys/select.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "ipc/syscall.hpp"
#include "strategies/poller.hpp"

namespace c10k {
namespace {

class SelectPoller : public Poller {
 public:
  std::span<const Event> wait(std::int64_t timeout_ns) override {
    events_.clear();
    ready_read_ = read_;
    ready_write_ = write_;
    // pselect is select with the timeout in nanoseconds; both write what is left of it.
    const int ready = ::pselect(limit_, set(ready_read_), set(ready_write_), nullptr,
                                WaitTime(timeout_ns).get(), nullptr);
    if (ready < 0 && errno != EINTR) throw_system_error(errno, "select of {} descriptors", limit_);
    if (ready <= 0) return {};
    for (std::size_t word = 0; word * bits < static_cast<std::size_t>(limit_); ++word) {
      for (Word any = ready_read_[word] | ready_write_[word]; any != 0; any &= any - 1) {
        const auto bit = static_cast<std::size_t>(std::countr_zero(any));
        const Word mask = Word{1} << bit;
        events_.push_back(
            {static_cast<int>(word * bits + bit),
             {.read = (ready_read_[word] & mask) != 0, .write = (ready_write_[word] & mask) != 0}});
      }
    }
    return events_;
  }

  void update(int fd, Interest interest) override {
    const auto [word, mask] = place(fd);
    if (word >= read_.size()) {
      read_.resize(word + 1);
      write_.resize(word + 1);
    }
    read_[word] = interest.read ? read_[word] | mask : read_[word] & ~mask;
    write_[word] = interest.write ? write_[word] | mask : write_[word] & ~mask;
    limit_ = std::max(limit_, fd + 1);
  }

  void remove(int fd, Removal) override {
    update(fd, {});
    if (fd + 1 == limit_) shrink();
  }

 private:
  using Word = unsigned long;  // as the kernel's fd_set
  static constexpr std::size_t bits = sizeof(Word) * 8;

  static std::pair<std::size_t, Word> place(int fd) {
    const auto number = static_cast<std::size_t>(fd);
    return {number / bits, Word{1} << (number % bits)};
  }
  static fd_set* set(std::vector<Word>& words) { return reinterpret_cast<fd_set*>(words.data()); }

  /// The scan costs the highest number, so let it fall when that one goes.
  void shrink() {
    auto word = static_cast<std::size_t>(limit_ + static_cast<int>(bits) - 1) / bits;
    while (word > 0 && (read_[word - 1] | write_[word - 1]) == 0) --word;
    limit_ = word == 0 ? 0
                       : static_cast<int>(word * bits) -
                             std::countl_zero(read_[word - 1] | write_[word - 1]);
  }

  std::vector<Word> read_;
  std::vector<Word> write_;
  std::vector<Word> ready_read_;
  std::vector<Word> ready_write_;
  int limit_ = 0;  // the highest descriptor waited for, plus one
  std::vector<Event> events_;
};

}  // namespace

PollerEntry select_poller() {
  return {.name = "select",
          .summary = "select(2) with bitmaps of any length: no limit of 1024",
          .calls = CallGroup::wait_select,
          .make = []() -> std::unique_ptr<Poller> { return std::make_unique<SelectPoller>(); }};
}

}  // namespace c10k
