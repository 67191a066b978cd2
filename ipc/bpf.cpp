#include "ipc/bpf.hpp"

#include <sys/syscall.h>

#include <string>

#include "ipc/syscall.hpp"

namespace c10k::bpf {
namespace {

/// The kernel refuses bytes that it does not know unless they are 0, so the whole of `attr` is zeroed
/// by whoever made it.
int bpf_syscall(bpf_cmd command, bpf_attr& attr) {
  return static_cast<int>(::syscall(SYS_bpf, command, &attr, sizeof attr));
}

std::uint64_t pointer(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

}  // namespace

OwnedFd create_map(bpf_map_type type, std::uint32_t key_size, std::uint32_t value_size,
                   std::uint32_t entries, std::uint32_t flags) {
  bpf_attr attr{};
  attr.map_type = type;
  attr.key_size = key_size;
  attr.value_size = value_size;
  attr.max_entries = entries;
  attr.map_flags = flags;
  return OwnedFd(checked([&] { return bpf_syscall(BPF_MAP_CREATE, attr); },
                         "bpf BPF_MAP_CREATE type {}", static_cast<int>(type)));
}

bool on_entry(bpf_cmd command, int map, const void* key, const void* value) {
  bpf_attr attr{};
  attr.map_fd = static_cast<std::uint32_t>(map);
  attr.key = pointer(key);
  attr.value = pointer(value);
  return retry_eintr([&] { return bpf_syscall(command, attr); }) == 0;
}

void put_fd(int map, std::uint32_t key, int fd) {
  const std::uint64_t value = static_cast<std::uint64_t>(fd);
  if (!on_entry(BPF_MAP_UPDATE_ELEM, map, &key, &value))
    throw_system_error(errno, "bpf BPF_MAP_UPDATE_ELEM {} = {}", key, fd);
}

bool is_map(int fd, bpf_map_type type, std::uint32_t value_size, std::uint32_t entries) {
  bpf_map_info info{};
  bpf_attr attr{};
  attr.info.bpf_fd = static_cast<std::uint32_t>(fd);
  attr.info.info_len = sizeof info;
  attr.info.info = pointer(&info);
  return bpf_syscall(BPF_OBJ_GET_INFO_BY_FD, attr) == 0 && info.type == type &&
         info.value_size == value_size && info.max_entries == entries;
}

OwnedFd load_program(bpf_prog_type type, bpf_attach_type attach, std::span<const bpf_insn> code) {
  bpf_attr attr{};
  attr.prog_type = type;
  attr.expected_attach_type = attach;
  attr.insns = pointer(code.data());
  attr.insn_cnt = static_cast<std::uint32_t>(code.size());
  attr.license = pointer("GPL");
  OwnedFd program;
  // The verifier gives up with EAGAIN when a signal is pending (kernel/bpf/verifier.c), which is gone
  // at the next attempt. As often as libbpf does.
  for (int attempt = 0; attempt < 5; ++attempt) {
    program = OwnedFd(retry_eintr([&] { return bpf_syscall(BPF_PROG_LOAD, attr); }));
    if (program) return program;
    if (errno != EAGAIN) break;
  }
  const int error = errno;
  std::string log(65'536, '\0');
  if (error == EACCES || error == EINVAL) {
    // Once more, for the log: it is not written when the attempt is well.
    attr.log_level = 1;
    attr.log_size = static_cast<std::uint32_t>(log.size());
    attr.log_buf = pointer(log.data());
    program = OwnedFd(bpf_syscall(BPF_PROG_LOAD, attr));
    if (program) return program;
  }
  log.resize(log.find('\0'));
  constexpr std::size_t most = 200;
  if (log.size() > most) log.erase(0, log.size() - most);
  for (char& c : log) c = c == '\n' ? ' ' : c;
  throw_system_error(error, "bpf BPF_PROG_LOAD of {} instructions{}{}", code.size(),
                     log.empty() ? "" : ", verifier: ", log);
}

}  // namespace c10k::bpf
