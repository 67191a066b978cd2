// The methods whose two sides share memory, with a peer that writes anything into it at any time: both sides of
// pidfd-ring, pidfd-mq and uring-msg, and the acceptor's of shared-table and seccomp-addfd (whose workers' sides
// use what they read, by design, as their own descriptors). The input is a list of writes and calls. What a side
// reads there may end the call with an exception; it never takes more than there is room for, and never leaks.
//
// Left out: the memory of Boost's message_queue, which holds offsets that Boost follows unchecked.
#include <signal.h>
#include <sys/syscall.h>

#include <optional>

#include "ipc/process.hpp"
#include "ipc/registry.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace c10k;
using fuzz::expect;

std::vector<OwnedFd> memory_files;  // of the link that is being opened
bool remember_memory = false;

}  // namespace

/// In the place of the C library's: the shared memory of a link is found as it is made.
extern "C" int memfd_create(const char* name, unsigned flags) noexcept {
  const int file = static_cast<int>(::syscall(SYS_memfd_create, name, flags));
  if (remember_memory && file >= 0) memory_files.emplace_back(::fcntl(file, F_DUPFD_CLOEXEC, 0));
  return file;
}

namespace {

class Mapping {
 public:
  explicit Mapping(int file)
      : size_(static_cast<std::size_t>(::lseek(file, 0, SEEK_END))),
        bytes_(static_cast<std::uint8_t*>(
            ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0))) {
    if (bytes_ == MAP_FAILED) std::abort();
  }
  Mapping(Mapping&& other) noexcept
      : size_(other.size_), bytes_(std::exchange(other.bytes_, nullptr)) {}
  Mapping& operator=(Mapping&&) = delete;
  ~Mapping() {
    if (bytes_ != nullptr) ::munmap(bytes_, size_);
  }
  void write(std::size_t at, std::span<const std::uint8_t> bytes) {
    at %= size_;
    std::memcpy(bytes_ + at, bytes.data(), std::min(bytes.size(), size_ - at));
  }

 private:
  std::size_t size_;
  std::uint8_t* bytes_;
};

struct Shape {
  const char* name;
  bool acceptor;
  bool worker;
};
constexpr std::array shapes{Shape{"pidfd-ring", true, true}, Shape{"uring-msg", true, true},
                            Shape{"pidfd-mq", true, true}, Shape{"shared-table", true, false},
                            Shape{"seccomp-addfd", true, false}};

struct Method {
  Shape shape;
  ConfiguredMethod configured;
};

/// Those that work here.
std::vector<Method> methods() {
  std::vector<Method> found;
  for (const Shape& shape : shapes) {
    ConfiguredMethod configured = configure_handoff_method(shape.name);
    if (configured.method->probe().available) {
      found.push_back({shape, std::move(configured)});
      (void)found.back().configured.method->open({});  // makes what all links share
    }
  }
  return found;
}

void receive(ConnectionSource& source) {
  std::array<Received, receive_room> batch;
  const ReceiveResult result = source.receive(batch);
  expect(result.received + result.refused <= batch.size(), "no more than there is room for");
}

void send(ConnectionSink& sink, std::size_t count) {
  std::vector<Handover> batch(count);
  for (std::size_t i = 0; i < count; ++i) batch[i] = {fuzz::some_descriptor(i), {.id = i}};
  expect(sink.send(batch).taken <= count, "no more than there were");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static std::vector<Method> available = methods();
  // Of a process that has ended: then a sink of shared-table also closes what it gave to that worker.
  static const ChildProcess ended = [] {
    ChildProcess child = ChildProcess::fork([] { return 0; }, {}, SIGKILL);
    (void)child.wait();
    return child;
  }();
  (void)fuzz::some_descriptor(0);
  const fuzz::NothingLeftOpen check(512);
  fuzz::Input input(data, size);
  const Method& method = available[input.byte() % available.size()];

  remember_memory = true;
  const auto link = method.configured.method->open({});
  remember_memory = false;
  std::vector<Mapping> memory;
  for (const OwnedFd& file : memory_files) memory.emplace_back(file.get());
  memory_files.clear();
  // Both sides are this process: each needs the bell's descriptor, which the first would take.
  const bool as_worker = method.shape.worker && input.byte() % 2 == 1;
  std::unique_ptr<ConnectionSource> source;
  std::unique_ptr<ConnectionSink> sink;
  if (as_worker)
    source = link->worker_end();
  else
    sink = link->acceptor_end(ended.pidfd());
  try {
    for (int i = 0; i < 48 && !input.empty(); ++i) {
      const std::uint8_t what = input.byte();
      if (what >= 128) {
        Mapping& target = memory[what % memory.size()];
        // Mostly the counters, which come first.
        const std::size_t at = input.byte() * std::size_t{(what & 64) != 0 ? 8U : 1U};
        target.write(at, input.bytes(1 + (what & 15)));
      } else if (source) {
        receive(*source);
      } else if (what % 4 == 0) {
        sink->attend();
      } else {
        send(*sink, what);
      }
    }
  } catch (const std::runtime_error&) {
    return 0;
  }
  return 0;
}
