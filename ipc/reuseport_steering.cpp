#include "ipc/reuseport_steering.hpp"

#include <linux/filter.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <new>

#include "ipc/bpf.hpp"
#include "ipc/syscall.hpp"
#include "ipc/usage.hpp"

namespace c10k {
namespace {

using Code = std::vector<bpf_insn>;

enum Register : int { r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, frame };

constexpr std::size_t map_bytes = most_steered * sizeof(WorkerLoad);

/// Place of the last resort among the listeners; workers have those below.
constexpr std::uint32_t last_resort = 1024;

void append(Code& code, const Code& more) {
  code.insert(code.end(), more.begin(), more.end());
}

/// r0 = 0 if the listener at the place in r9 could be selected for the connection that r6 (the context)
/// is about. The kernel empties a listener's place as it closes; then it is ENOENT.
Code select_r9(int listeners) {
  return {
      bpf::store32(frame, r9, -4),
      bpf::alu_reg(BPF_MOV, r1, r6),
      bpf::wide_first(r2, BPF_PSEUDO_MAP_FD, listeners),
      bpf::wide_second(0),
      bpf::alu_reg(BPF_MOV, r3, frame),
      bpf::alu_imm(BPF_ADD, r3, -4),
      bpf::alu_imm(BPF_MOV, r4, 0),
      bpf::call(BPF_FUNC_sk_select_reuseport),
  };
}

/// Selects worker r9 (below `workers`), or the next one that has a listener, or the last resort. Where
/// it is a worker, runs `when_worker`. Ends the program: SK_PASS is to who has been selected, and if
/// nobody is, to whom the hash picks. A loop over a counter (5.3), not unrolled.
void select_and_pass(Code& code, int listeners, std::size_t workers, const Code& when_worker = {}) {
  const Code select = select_r9(listeners);
  const auto length = [](const Code& part) { return static_cast<std::int16_t>(part.size()); };
  code.push_back(bpf::alu_imm(BPF_MOV, r7, static_cast<std::int32_t>(workers)));
  append(code, select);
  append(code, {
                   bpf::skip_if_imm(BPF_JEQ, r0, 0, static_cast<std::int16_t>(6 + length(select))),
                   bpf::alu_imm(BPF_ADD, r9, 1),
                   bpf::alu_imm(BPF_MOD, r9, static_cast<std::int32_t>(workers)),
                   bpf::alu_imm(BPF_SUB, r7, 1),
                   bpf::skip_if_imm(BPF_JNE, r7, 0, static_cast<std::int16_t>(-5 - length(select))),
                   bpf::alu_imm(BPF_MOV, r9, last_resort),
               });
  append(code, select);
  code.push_back(bpf::skip(length(when_worker)));
  append(code, when_worker);
  append(code, {bpf::alu_imm(BPF_MOV, r0, SK_PASS), bpf::exit()});
}

Code by_hash(int listeners, std::size_t workers) {
  Code code = {
      bpf::alu_reg(BPF_MOV, r6, r1),
      bpf::load32(r9, r1, offsetof(sk_reuseport_md, hash)),
      bpf::alu_imm(BPF_MOD, r9, static_cast<std::int32_t>(workers)),
  };
  select_and_pass(code, listeners, workers);
  return code;
}

Code by_cpu(int listeners, std::size_t workers) {
  Code code = {
      bpf::alu_reg(BPF_MOV, r6, r1),
      bpf::call(BPF_FUNC_get_smp_processor_id),
      bpf::alu_reg(BPF_MOV, r9, r0),
      bpf::alu_imm(BPF_MOD, r9, static_cast<std::int32_t>(workers)),
  };
  select_and_pass(code, listeners, workers);
  return code;
}

/// Finds the smallest of load << 24 | random << 8 | number over all workers: the random part spreads
/// ties. Unrolled, and without a branch for the comparison: a branch a worker would let the verifier
/// follow 2^workers paths.
Code by_load(int listeners, int loads, std::size_t workers) {
  Code code = {
      bpf::alu_reg(BPF_MOV, r6, r1), bpf::call(BPF_FUNC_get_prandom_u32),
      bpf::alu_reg(BPF_MOV, r7, r0), bpf::wide_first(r8, BPF_PSEUDO_MAP_VALUE, loads),
      bpf::wide_second(0),           bpf::wide_first(r9, 0, INT64_MAX),
      bpf::wide_second(INT64_MAX),
  };
  for (std::size_t i = 0; i < workers; ++i) {
    const auto at = static_cast<std::int16_t>(i * sizeof(WorkerLoad));
    // Odd multiples of one random number: each worker's bits 8 to 23 differ, and the least of them
    // can be anybody's.
    const std::uint32_t factor = (static_cast<std::uint32_t>(i) * 0x9e3779b1U) >> 1 | 1;
    append(code, {
                     bpf::load64(r2, r8, at + offsetof(WorkerLoad, steered)),
                     bpf::load64(r3, r8, at + offsetof(WorkerLoad, own)),
                     bpf::alu_reg(BPF_ADD, r2, r3),
                     bpf::alu_imm(BPF_LSH, r2, 24),
                     bpf::alu_reg(BPF_MOV, r3, r7),
                     bpf::alu_imm(BPF_MUL, r3, static_cast<std::int32_t>(factor)),
                     bpf::alu_imm(BPF_AND, r3, 0xffff00),
                     bpf::alu_reg(BPF_OR, r2, r3),
                     bpf::alu_imm(BPF_OR, r2, static_cast<std::int32_t>(i)),
                     // r9 = min(r9, r2), signed: r9 += (r2 - r9) & (r2 < r9 ? -1 : 0)
                     bpf::alu_reg(BPF_SUB, r2, r9),
                     bpf::alu_reg(BPF_MOV, r3, r2),
                     bpf::alu_imm(BPF_ARSH, r3, 63),
                     bpf::alu_reg(BPF_AND, r2, r3),
                     bpf::alu_reg(BPF_ADD, r9, r2),
                 });
  }
  code.push_back(bpf::alu_imm(BPF_AND, r9, most_steered - 1));
  select_and_pass(
      code, listeners, workers,
      {
          bpf::alu_imm(BPF_AND, r9, most_steered - 1),  // what it is; the verifier forgot
          bpf::alu_imm(BPF_MUL, r9, sizeof(WorkerLoad)),
          bpf::alu_reg(BPF_ADD, r8, r9),
          bpf::alu_imm(BPF_MOV, r1, 1),
          bpf::atomic_add64(r8, r1, offsetof(WorkerLoad, steered)),
      });
  return code;
}

/// The classic program returns a place in the group; listeners are in it in the order in which they
/// began to listen.
void attach_by_cpu(int listener, std::size_t workers) {
  std::array<sock_filter, 3> code{{
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, static_cast<std::uint32_t>(SKF_AD_OFF + SKF_AD_CPU)},
      {BPF_ALU | BPF_MOD | BPF_K, 0, 0, static_cast<std::uint32_t>(workers)},
      {BPF_RET | BPF_A, 0, 0, 0},
  }};
  const sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
  checked(
      [&] {
        return ::setsockopt(listener, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program,
                            sizeof program);
      },
      "setsockopt SO_ATTACH_REUSEPORT_CBPF");
}

}  // namespace

WorkerLoads::WorkerLoads()
    : map_(bpf::create_map(BPF_MAP_TYPE_ARRAY, sizeof(std::uint32_t), map_bytes, 1,
                           BPF_F_MMAPABLE)) {
  void* memory = ::mmap(nullptr, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, map_.get(), 0);
  if (memory == MAP_FAILED) throw_system_error(errno, "mmap of an eBPF array");
  loads_ = static_cast<WorkerLoad*>(memory);
  for (std::size_t i = 0; i < most_steered; ++i) (new (loads_ + i) WorkerLoad)->set_absent();
}

WorkerLoads::~WorkerLoads() {
  ::munmap(loads_, map_bytes);
}

ReuseportSteering::ReuseportSteering(Steer steer, bool migrate, std::size_t workers,
                                     OwnedFd adopted)
    : steer_(steer), migrate_(migrate), workers_(workers), listeners_(std::move(adopted)) {
  if (!extended()) return;
  if (steer == Steer::least_loaded) {
    if (workers > most_steered) {
      throw UsageError(fmt::format("reuseport: steer=least-loaded chooses among at most {} workers",
                                   most_steered));
    }
    loads_ = std::make_shared<WorkerLoads>();
  }
  if (!listeners_) {
    listeners_ = bpf::create_map(BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, sizeof(std::uint32_t),
                                 sizeof(std::uint64_t), last_resort + 1);
  }
  program_ = load_program();
}

OwnedFd ReuseportSteering::load_program() const {
  const Code code = steer_ == Steer::hash  ? by_hash(listeners_.get(), workers_)
                    : steer_ == Steer::cpu ? by_cpu(listeners_.get(), workers_)
                                           : by_load(listeners_.get(), loads_->map(), workers_);
  return bpf::load_program(BPF_PROG_TYPE_SK_REUSEPORT,
                           migrate_ ? BPF_SK_REUSEPORT_SELECT_OR_MIGRATE : BPF_SK_REUSEPORT_SELECT,
                           code);
}

bool ReuseportSteering::are_listeners(int map) {
  return bpf::is_map(map, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, sizeof(std::uint64_t), last_resort + 1);
}

void ReuseportSteering::add(std::size_t worker, int listener) {
  // A group ends with its last listener, and its program with it: so attach it every time.
  attach(listener);
  place(worker, listener);
}

void ReuseportSteering::place(std::size_t worker, int listener) {
  if (extended()) bpf::put_fd(listeners_.get(), static_cast<std::uint32_t>(worker), listener);
}

void ReuseportSteering::attach(int listener) const {
  if (steer_ == Steer::hash && !migrate_) return;
  if (!extended()) return attach_by_cpu(listener, workers_);
  checked(
      [&] {
        const int program = program_.get();
        return ::setsockopt(listener, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &program,
                            sizeof program);
      },
      "setsockopt SO_ATTACH_REUSEPORT_EBPF");
}

void ReuseportSteering::set_last_resort(int listener) {
  bpf::put_fd(listeners_.get(), last_resort, listener);
}

}  // namespace c10k
