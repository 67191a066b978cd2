// queue-python3: what CPython 3.11 does when a socket is put into a multiprocessing.Queue, step by
// step, with the interpreter left out (Lib/multiprocessing/{queues,resource_sharer,connection,
// reduction}.py). The study takes it apart; nobody should build a server on it.
//
// Mechanism    the queue carries no descriptor, only a ticket: the path of a listener and a key. The
//              worker connects to the listener, both prove that they know the authentication key
//              (HMAC-MD5, both directions), the worker names the ticket, and only then does one
//              SCM_RIGHTS message bring the descriptor; then the connection is closed
// Kernel       any Linux
// Privilege    none
// System calls 46: feeder 2, sharer thread 21, worker 23 (counted with strace on CPython 3.11.2; the
//              futexes of the threads come on top)
// Ownership    acceptor's copy; the feeder's duplicate under a key, until the sharer has sent it
// Death        unlike CPython, where an unfetched duplicate stays in the parent for ever and its
//              client never sees an end, the duplicates of a dead worker's queue are closed
// Man pages    unix(7), pipe(7), sem_init(3)
#include "ipc/methods.hpp"
#include "ipc/multiprocessing_queue.hpp"

namespace c10k {
namespace {

constexpr multiprocessing::Dialect cpython_3_11{
    .ticket_bytes = 206,  // counted on 3.11.2, with a path of 36 bytes
    .request_bytes = 19,  // the same; other numbers make it differ by some bytes
    .backlog = 1,         // Listener(authkey=...), as strace shows; 128 since gh-101225 of 2024
    .refused_patience_ms = 0,
    .ticket_before_put = false,
    .number_is_ticket = false,
    .set_blocking = multiprocessing::set_blocking_by_ioctl,
    .looks_up_family = true,
    .duplicates_connection = false,  // Connection(s.detach())
    .duplicates_to_pass = true,
    .duplicates_result = false,  // socket(fileno=fd)
};

}  // namespace

MethodEntry queue_python3() {
  return {
      queue_facts("queue-python3", "CPython 3.11's multiprocessing.Queue of sockets, step by step",
                  "auth=on|no-hmac|off (on), connection=per-descriptor|persistent "
                  "(per-descriptor), backlog=1|128 (1), dups, feeder, lock=on|off (on)",
                  "acceptor 23 (feeder 2, sharer 21), worker 23, futexes aside"),
      [](MethodOptions& options) { return make_queue_method(options, cpython_3_11); }};
}

}  // namespace c10k
