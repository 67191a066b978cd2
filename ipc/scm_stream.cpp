// scm-stream: SCM_RIGHTS over an unnamed AF_UNIX SOCK_STREAM pair per worker.
// The kernel keeps message borders here too, since no read merges two buffers with descriptors.
//
// Mechanism    one sendmsg carries up to 253 descriptors and their tags; one recvmsg takes them out
// Kernel       2.2 (MSG_CMSG_CLOEXEC: 2.6.23)
// Privilege    none; without CAP_SYS_RESOURCE no more in flight than RLIMIT_NOFILE (ETOOMANYREFS)
// System calls 2 / batch: sendmsg in the acceptor, recvmsg in the worker
// Ownership    acceptor's copy; the message in flight holds the open file; the worker's copy
// Death        the kernel drops what is in flight; the acceptor's copies survive and go elsewhere
// Man pages    unix(7), cmsg(3), sendmsg(2), recvmsg(2)
#include <sys/socket.h>

#include "ipc/methods.hpp"
#include "ipc/scm.hpp"

namespace c10k {

MethodEntry scm_stream() {
  return {scm_facts("scm-stream", "SCM_RIGHTS over an unnamed SOCK_STREAM pair per worker"),
          [](MethodOptions& options) { return make_scm_method(SOCK_STREAM, options); }};
}

}  // namespace c10k
