// queue-python2: what CPython 2.7 does when reduce_socket(socket) is put into a multiprocessing.Queue,
// step by step, with the interpreter left out (Lib/multiprocessing/{queues,reduction,connection}.py and
// Modules/_multiprocessing). It is how the original experiment passed its connections.
//
// Mechanism    as queue-python3, and earlier in each step: the program itself makes the ticket (the
//              feeder only writes it), which is the number of a duplicate; the listener has room for
//              one, and a refused connect is tried again for 20 s; each side duplicates the connection
//              when it has it, and the worker what it got
// Kernel       any Linux
// Privilege    none
// System calls 46: the acceptor's loop 1, feeder 1, sharer thread 20, worker 24 (from the source of
//              2.7.18, with os.urandom by getrandom as glibc 2.25 made it; the futexes come on top)
// Ownership    acceptor's copy; the duplicate under its own number, until the sharer has sent it
// Death        unlike CPython, where an unfetched duplicate stays in the parent for ever and its
//              client never sees an end, the duplicates of a dead worker's queue are closed
// Man pages    unix(7), pipe(7), sem_init(3)
#include "ipc/methods.hpp"
#include "ipc/multiprocessing_queue.hpp"

namespace c10k {
namespace {

constexpr multiprocessing::Dialect cpython_2_7{
    .ticket_bytes =
        124,  // pickle protocol 2 of (reduce_socket(socket), peer), with a path of 32 bytes
    .request_bytes = 11,  // the same of (number, pid)
    .backlog = 1,         // Listener(backlog=1)
    .refused_patience_ms = 20'000,
    .ticket_before_put = true,
    .number_is_ticket = true,
    .set_blocking = multiprocessing::set_blocking_by_fcntl,
    .looks_up_family = false,
    .duplicates_connection = true,  // Connection(duplicate(s.fileno())), s.close()
    .duplicates_to_pass = false,
    .duplicates_result = true,  // socket.fromfd
};

}  // namespace

MethodEntry queue_python2() {
  return {
      queue_facts("queue-python2", "CPython 2.7's multiprocessing.Queue of sockets, step by step",
                  "auth=on|no-hmac|off (on), connection=per-descriptor|persistent "
                  "(per-descriptor), backlog=1|128 (1), dups, feeder, lock=on|off (on)",
                  "acceptor 22 (loop 1, feeder 1, sharer 20), worker 24, futexes aside"),
      [](MethodOptions& options) { return make_queue_method(options, cpython_2_7); }};
}

}  // namespace c10k
