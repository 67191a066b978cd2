#include "ipc/tcp_guard.hpp"

#include <arpa/inet.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>

#include "ipc/bpf.hpp"
#include "ipc/syscall.hpp"

namespace c10k {
namespace {

/// More than can be between two sockets at once: a channel of 200 kB holds about 280 a worker. And more
/// than are rebuilt in the time for which that counts.
constexpr std::uint32_t most_tuples = 16'384;

/// A segment is held up between its look-up and the filter for microseconds, or on a virtual machine for
/// as long as its processor is away. Less than the 200 ms after which what was dropped is sent again.
constexpr std::chrono::milliseconds stays_recent{100};

// ---- the filter; bpf-helpers(7) has the helpers ----

constexpr std::uint8_t r0 = BPF_REG_0, r1 = BPF_REG_1, r2 = BPF_REG_2, r3 = BPF_REG_3,
                       r4 = BPF_REG_4, r5 = BPF_REG_5, r6 = BPF_REG_6, r7 = BPF_REG_7,
                       r8 = BPF_REG_8, r9 = BPF_REG_9, fp = BPF_REG_10;

constexpr bpf_insn instruction(int code, std::uint8_t to, std::uint8_t from, int offset,
                               int value) {
  bpf_insn result{};
  result.code = static_cast<std::uint8_t>(code);
  result.dst_reg = to & 0xF;
  result.src_reg = from & 0xF;
  result.off = static_cast<std::int16_t>(offset);
  result.imm = value;
  return result;
}
constexpr bpf_insn move(std::uint8_t to, std::uint8_t from) {
  return instruction(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}
constexpr bpf_insn set(std::uint8_t to, int value) {
  return instruction(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}
constexpr bpf_insn add(std::uint8_t to, int value) {
  return instruction(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value);
}
constexpr bpf_insn store(int size, int at, int value) {
  return instruction(BPF_ST | BPF_MEM | size, fp, 0, at, value);
}
constexpr bpf_insn call(int helper) {
  return instruction(BPF_JMP | BPF_CALL, 0, 0, 0, helper);
}
/// Skips instructions when the comparison with a constant holds.
constexpr bpf_insn jump(int comparison, std::uint8_t reg, int value, int instructions) {
  return instruction(BPF_JMP | comparison, reg, 0, instructions, value);
}
constexpr bpf_insn jump_reg(int comparison, std::uint8_t left, std::uint8_t right,
                            int instructions) {
  return instruction(BPF_JMP | comparison | BPF_X, left, right, instructions, 0);
}
constexpr bpf_insn load(int size, std::uint8_t to, std::uint8_t from, int offset) {
  return instruction(BPF_LDX | BPF_MEM | size, to, from, offset, 0);
}
constexpr bpf_insn skip(int instructions) {
  return instruction(BPF_JMP | BPF_JA, 0, 0, instructions, 0);
}

/// The filter's answer: how much of the segment is to be kept.
constexpr int drop = 0;
constexpr int keep_all = 0x7FFF'FFFF;
constexpr std::array<bpf_insn, 2> leave_with(int answer) {
  return {set(r0, answer), instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)};
}

/// CHECKSUM_BREAK of linux/skbuff.h: the checksum of a segment up to this size is verified on arrival.
constexpr int largest_verified = 76;

/// Where the tuple is put together: on the stack, below the first byte of the IP header.
constexpr int first_byte = -8;
constexpr int tuple_at = -48;

/// Copies from the segment's IP header to the stack. Failure leaves zeros: a tuple that nobody inserts.
constexpr std::array<bpf_insn, 7> load_ip(int offset, int to, int size) {
  return {move(r1, r6),
          set(r2, offset),
          move(r3, fp),
          add(r3, to),
          set(r4, size),
          set(r5, BPF_HDR_START_NET),
          call(BPF_FUNC_skb_load_bytes_relative)};
}

/// Looks up the tuple; r0 is where its value is, or 0. The map's number takes two instructions.
constexpr std::array<bpf_insn, 5> look_up(int map) {
  return {instruction(BPF_LD | BPF_DW | BPF_IMM, r1, BPF_PSEUDO_MAP_FD, 0, map),
          instruction(0, 0, 0, 0, 0), move(r2, fp), add(r2, tuple_at),
          call(BPF_FUNC_map_lookup_elem)};
}

/// For what is not in the set; ends with an answer.
std::vector<bpf_insn> filter_recent(int recent) {
  std::vector<bpf_insn> code;
  const auto append = [&](const auto& group) {
    code.insert(code.end(), std::begin(group), std::end(group));
  };
  append(look_up(recent));
  append(std::array{jump(BPF_JNE | BPF_K, r0, 0, 2)});
  append(leave_with(keep_all));
  // A SYN makes the entry void: the third segment of the handshake and the data behind it go by the
  // listener's filter as well, and by that which the new socket inherits.
  append(std::array{move(r7, r0), move(r1, r6), set(r2, 13), move(r3, fp), add(r3, first_byte),
                    set(r4, 1), call(BPF_FUNC_skb_load_bytes), load(BPF_B, r8, fp, first_byte),
                    instruction(BPF_ALU64 | BPF_AND | BPF_K, r8, 0, 0, 0x02),
                    jump(BPF_JEQ | BPF_K, r8, 0, 3),
                    instruction(BPF_ST | BPF_MEM | BPF_DW, r7, 0, 0, 0)});
  append(leave_with(keep_all));
  append(std::array{call(BPF_FUNC_ktime_get_ns), load(BPF_DW, r1, r7, 0),
                    jump_reg(BPF_JLT, r0, r1, 2)});
  append(leave_with(keep_all));
  append(leave_with(drop));
  return code;
}

std::vector<bpf_insn> filter(int gap, int recent) {
  std::vector<bpf_insn> code;
  const auto append = [&](const auto& group) {
    code.insert(code.end(), std::begin(group), std::end(group));
  };
  const auto words = std::array{move(r6, r1),
                                store(BPF_DW, first_byte, 0),
                                store(BPF_DW, tuple_at, 0),
                                store(BPF_DW, tuple_at + 8, 0),
                                store(BPF_DW, tuple_at + 16, 0),
                                store(BPF_DW, tuple_at + 24, 0),
                                store(BPF_DW, tuple_at + 32, 0)};
  append(words);
  append(load_ip(0, first_byte, 1));
  // Version 6 skips what is for version 4, which ends with a skip over what is for 6.
  append(std::array{load(BPF_B, r0, fp, first_byte),
                    instruction(BPF_ALU64 | BPF_RSH | BPF_K, r0, 0, 0, 4),
                    jump(BPF_JEQ | BPF_K, r0, 6, 7 + 7 + 3)});
  append(load_ip(12, tuple_at + 12, 4));
  append(load_ip(16, tuple_at + 28, 4));
  append(std::array{store(BPF_H, tuple_at + 10, 0xFFFF), store(BPF_H, tuple_at + 26, 0xFFFF),
                    skip(7)});
  append(load_ip(8, tuple_at, 32));
  // Both ports, from where the filter's own view of a TCP segment begins.
  append(std::array{move(r1, r6), set(r2, 0), move(r3, fp), add(r3, tuple_at + 32), set(r4, 4),
                    call(BPF_FUNC_skb_load_bytes)});
  append(look_up(gap));
  const std::vector<bpf_insn> otherwise = filter_recent(recent);
  append(std::array{jump(BPF_JNE | BPF_K, r0, 0, static_cast<int>(otherwise.size()))});
  append(otherwise);
  // In the set. The first segment to be dropped is looked at further, by one processor only.
  append(std::array{move(r7, r0), set(r1, 1),
                    instruction(BPF_STX | BPF_ATOMIC | BPF_DW, r7, r1,
                                offsetof(DroppedSegments, count), BPF_ADD | BPF_FETCH),
                    jump(BPF_JEQ | BPF_K, r1, 0, 2)});
  append(leave_with(drop));
  append(std::array{load(BPF_W, r8, r6, offsetof(__sk_buff, len)),
                    jump(BPF_JLE | BPF_K, r8, largest_verified, 2)});
  append(leave_with(drop));
  append(std::array{move(r1, r6), set(r2, 0), move(r3, fp), add(r3, tuple_at), set(r4, 16),
                    call(BPF_FUNC_skb_load_bytes), jump(BPF_JEQ | BPF_K, r0, 0, 2)});
  append(leave_with(drop));
  // Of the flags, ACK and perhaps PSH.
  append(std::array{load(BPF_B, r9, fp, tuple_at + 13),
                    instruction(BPF_ALU64 | BPF_AND | BPF_K, r9, 0, 0, ~0x08),
                    jump(BPF_JEQ | BPF_K, r9, 0x10, 2)});
  append(leave_with(drop));
  // Behind the header, whose length is in words, there must be data.
  append(std::array{
      load(BPF_B, r9, fp, tuple_at + 12), instruction(BPF_ALU64 | BPF_RSH | BPF_K, r9, 0, 0, 4),
      instruction(BPF_ALU64 | BPF_LSH | BPF_K, r9, 0, 0, 2),
      instruction(BPF_ALU64 | BPF_SUB | BPF_X, r8, r9, 0, 0), jump(BPF_JSGE | BPF_K, r8, 1, 2)});
  append(leave_with(drop));
  append(std::array{jump(BPF_JLE | BPF_K, r8, sizeof DroppedSegments::bytes, 2)});
  append(leave_with(drop));
  append(std::array{move(r1, r6), move(r2, r9), move(r3, r7),
                    add(r3, offsetof(DroppedSegments, bytes)), move(r4, r8),
                    call(BPF_FUNC_skb_load_bytes), jump(BPF_JEQ | BPF_K, r0, 0, 2)});
  append(leave_with(drop));
  // The size last: who sees it finds the rest complete.
  append(std::array{
      load(BPF_W, r1, fp, tuple_at + 4),
      instruction(BPF_STX | BPF_MEM | BPF_W, r7, r1, offsetof(DroppedSegments, sequence), 0),
      instruction(BPF_STX | BPF_MEM | BPF_W, r7, r8, offsetof(DroppedSegments, size), 0)});
  append(leave_with(drop));
  return code;
}

void put(const SocketAddress& address, TcpTuple& tuple, std::size_t host_at, std::size_t port_at) {
  std::uint16_t port = 0;
  if (address.family() == AF_INET6) {
    const auto* in6 = reinterpret_cast<const sockaddr_in6*>(address.data());
    std::memcpy(&tuple[host_at], &in6->sin6_addr, 16);
    port = in6->sin6_port;
  } else {
    const auto* in = reinterpret_cast<const sockaddr_in*>(address.data());
    tuple[host_at + 10] = tuple[host_at + 11] = std::byte{0xFF};
    std::memcpy(&tuple[host_at + 12], &in->sin_addr, 4);
    port = in->sin_port;
  }
  std::memcpy(&tuple[port_at], &port, sizeof port);
}

}  // namespace

TcpTuple tcp_tuple(const SocketAddress& from, const SocketAddress& to) {
  TcpTuple tuple{};
  put(from, tuple, 0, 32);
  put(to, tuple, 16, 34);
  return tuple;
}

TcpGuard::TcpGuard()
    : gap_(bpf::create_map(BPF_MAP_TYPE_HASH, sizeof(TcpTuple), sizeof(DroppedSegments),
                           most_tuples)),
      recent_(bpf::create_map(BPF_MAP_TYPE_LRU_HASH, sizeof(TcpTuple), sizeof(std::uint64_t),
                              most_tuples)),
      program_(
          bpf::load_program(BPF_PROG_TYPE_SOCKET_FILTER, {}, filter(gap_.get(), recent_.get()))) {}

void TcpGuard::attach(int socket) const {
  const int program = program_.get();
  checked([&] { return ::setsockopt(socket, SOL_SOCKET, SO_ATTACH_BPF, &program, sizeof program); },
          "setsockopt {} SO_ATTACH_BPF", socket);
}

void TcpGuard::detach(int socket) {
  const int ignored = 0;
  const int done = ::setsockopt(socket, SOL_SOCKET, SO_DETACH_BPF, &ignored, sizeof ignored);
  if (done < 0 && errno != ENOENT) throw_system_error(errno, "setsockopt {} SO_DETACH_BPF", socket);
}

bool TcpGuard::insert(const TcpTuple& tuple) const {
  const DroppedSegments none;
  if (on_tuple(BPF_MAP_UPDATE_ELEM, tuple, &none)) return true;
  if (errno == E2BIG || errno == ENOMEM) return false;
  throw_system_error(errno, "bpf BPF_MAP_UPDATE_ELEM");
}

DroppedSegments TcpGuard::dropped(const TcpTuple& tuple) const {
  DroppedSegments segments;
  if (!on_tuple(BPF_MAP_LOOKUP_ELEM, tuple, &segments) && errno != ENOENT)
    throw_system_error(errno, "bpf BPF_MAP_LOOKUP_ELEM");
  return segments;
}

void TcpGuard::rebuilt(const TcpTuple& tuple) const {
  // The kernel's CLOCK_MONOTONIC, as bpf_ktime_get_ns() has it.
  const std::chrono::nanoseconds until =
      std::chrono::steady_clock::now().time_since_epoch() + stays_recent;
  const std::uint64_t value = static_cast<std::uint64_t>(until.count());
  if (!bpf::on_entry(BPF_MAP_UPDATE_ELEM, recent_.get(), tuple.data(), &value))
    throw_system_error(errno, "bpf BPF_MAP_UPDATE_ELEM");
}

std::uint64_t TcpGuard::remove(const TcpTuple& tuple) const {
  DroppedSegments segments;
  if (!on_tuple(BPF_MAP_LOOKUP_AND_DELETE_ELEM, tuple, &segments) && errno != ENOENT)
    throw_system_error(errno, "bpf BPF_MAP_LOOKUP_AND_DELETE_ELEM");
  return segments.count;
}

bool TcpGuard::on_tuple(int command, const TcpTuple& tuple, const DroppedSegments* value) const {
  return bpf::on_entry(static_cast<bpf_cmd>(command), gap_.get(), tuple.data(), value);
}

}  // namespace c10k
