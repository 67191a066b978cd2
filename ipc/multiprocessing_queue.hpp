// What queue-python2 and queue-python3 share: a multiprocessing.Queue, the options that take it apart,
// and the method around it. Where CPython's versions differ a Dialect says so.
//
// Both differ from CPython in four ways, for the sake of safety. Messages are fixed binary frames of
// the size of the pickles. The listener's path is gone from /tmp before the first worker runs (it is
// reached through an O_PATH descriptor), so that nothing stays behind whoever is killed. And where
// CPython blocks, sleeps or forgets at a limit, this can be told to stop, and the acceptor learns of it.
// The fourth is about a worker that stops in the middle of an exchange. CPython's one sharer thread then
// waits for it, and all other workers for the thread, with no end to it. Here the exchange is ended after
// 0.1 s; the ticket stays, and the worker, if it goes on, asks for it anew. What CPython does for an
// exchange, call by call and in one thread, is the same (see resource_sharer.hpp).
#pragma once

#include "ipc/handoff.hpp"
#include "ipc/multiprocessing.hpp"

namespace c10k {

/// The facts that both methods share.
[[nodiscard]] MethodFacts queue_facts(std::string_view name, std::string_view summary,
                                      std::string_view options, std::string_view syscalls);

/// A method that speaks the dialect, less what its options take away:
///   auth        on | no-hmac (its messages without the digest) | off
///   connection  per-descriptor | persistent: authenticated once, when the worker starts
///   backlog     1 | 128
///   dups        on | off: no duplicate of the connection to pass, of what passes it, of what arrives
///   feeder      on | off: the acceptor's loop writes the ticket itself
///   lock        on | off: no semaphores; the queue has one reader and one writer
[[nodiscard]] std::unique_ptr<HandoffMethod> make_queue_method(
    MethodOptions& options, const multiprocessing::Dialect& dialect);

}  // namespace c10k
