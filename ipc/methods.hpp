// One line a method: its entry for the registry, defined in the file of that name.
#pragma once

#include "ipc/handoff.hpp"

namespace c10k {

MethodEntry scm_stream();
MethodEntry scm_seqpacket();
MethodEntry scm_dgram();
MethodEntry scm_shared();
MethodEntry queue_python2();
MethodEntry queue_python3();
MethodEntry pidfd_ring();
MethodEntry pidfd_mq();
MethodEntry shared_table();
MethodEntry relay();
MethodEntry tcp_repair();
MethodEntry seccomp_addfd();
MethodEntry uring_msg();
MethodEntry reuseport();
MethodEntry inherited_listener();

}  // namespace c10k
