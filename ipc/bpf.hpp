// eBPF maps and programs (bpf(2)): owners, and macros to write a program down.
#pragma once

#include <linux/bpf.h>

#include <cstdint>
#include <span>

#include "ipc/owned_fd.hpp"

namespace c10k::bpf {

/// A map. Throws SystemError (EPERM: without CAP_BPF, where unprivileged eBPF is off).
[[nodiscard]] OwnedFd create_map(bpf_map_type type, std::uint32_t key_size,
                                 std::uint32_t value_size, std::uint32_t entries,
                                 std::uint32_t flags = 0);

/// A command on one entry of a map, which reads or writes `value`. False with errno set when it fails.
[[nodiscard]] bool on_entry(bpf_cmd command, int map, const void* key, const void* value);

/// Sets the entry `key` of a map to a descriptor: of a socket, for BPF_MAP_TYPE_REUSEPORT_SOCKARRAY.
void put_fd(int map, std::uint32_t key, int fd);

/// Whether a descriptor, of which nothing is known, is a map of this type and size.
[[nodiscard]] bool is_map(int fd, bpf_map_type type, std::uint32_t value_size,
                          std::uint32_t entries);

/// A program that has passed the verifier. Throws SystemError; when the verifier refuses it (EACCES,
/// EINVAL) what() ends with the last words of its log.
[[nodiscard]] OwnedFd load_program(bpf_prog_type type, bpf_attach_type attach,
                                   std::span<const bpf_insn> code);

// Instructions; 64 bits wide where not said otherwise (Documentation/bpf/standardization).
// `operation` is BPF_ADD, BPF_MOV, ...
constexpr bpf_insn instruction(int code, int to, int from, std::int16_t offset,
                               std::int64_t value) {
  bpf_insn made{};
  made.code = static_cast<std::uint8_t>(code);
  made.dst_reg = to & 15;
  made.src_reg = from & 15;
  made.off = offset;
  made.imm = static_cast<std::int32_t>(value);
  return made;
}
constexpr bpf_insn alu_reg(int operation, int to, int from) {
  return instruction(BPF_ALU64 | operation | BPF_X, to, from, 0, 0);
}
constexpr bpf_insn alu_imm(int operation, int to, std::int32_t value) {
  return instruction(BPF_ALU64 | operation | BPF_K, to, 0, 0, value);
}
/// to = *(u32*)(from + offset)
constexpr bpf_insn load32(int to, int from, std::int16_t offset) {
  return instruction(BPF_LDX | BPF_MEM | BPF_W, to, from, offset, 0);
}
/// to = *(u64*)(from + offset)
constexpr bpf_insn load64(int to, int from, std::int16_t offset) {
  return instruction(BPF_LDX | BPF_MEM | BPF_DW, to, from, offset, 0);
}
/// *(u32*)(to + offset) = from
constexpr bpf_insn store32(int to, int from, std::int16_t offset) {
  return instruction(BPF_STX | BPF_MEM | BPF_W, to, from, offset, 0);
}
/// *(u64*)(to + offset) += from, atomically
constexpr bpf_insn atomic_add64(int to, int from, std::int16_t offset) {
  return instruction(BPF_STX | BPF_ATOMIC | BPF_DW, to, from, offset, BPF_ADD);
}
/// Skips `count` instructions (or goes back) when the register and the value compare as `operation`
/// says: BPF_JEQ, BPF_JNE, ...
constexpr bpf_insn skip_if_imm(int operation, int reg, std::int32_t value, std::int16_t count) {
  return instruction(BPF_JMP | operation | BPF_K, reg, 0, count, value);
}
constexpr bpf_insn skip(std::int16_t count) {
  return instruction(BPF_JMP | BPF_JA, 0, 0, count, 0);
}
/// R0 = helper(R1, ...); R1 to R5 are gone afterwards.
constexpr bpf_insn call(bpf_func_id helper) {
  return instruction(BPF_JMP | BPF_CALL, 0, 0, 0, helper);
}
constexpr bpf_insn exit() {
  return instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}
/// A 64-bit constant takes two instructions; so do a map (source BPF_PSEUDO_MAP_FD) and the address of
/// a map's only value (BPF_PSEUDO_MAP_VALUE), both by the map's descriptor.
constexpr bpf_insn wide_first(int to, int source, std::int64_t value) {
  return instruction(BPF_LD | BPF_DW | BPF_IMM, to, source, 0, value);
}
constexpr bpf_insn wide_second(std::int64_t value) {
  return instruction(0, 0, 0, 0, value >> 32);
}

}  // namespace c10k::bpf
