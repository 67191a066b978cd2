"""The faults that a workload can have, in words and with what must be known to read their figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    event: str  # one of them
    events: str
    title: str  # of what is found
    what: str  # what happens, in a sentence
    until: str  # what is so when the event is over: the next one may come
    ends_worker: bool = False  # each event is the end of one: such ends are no faults of the server
    of_worker: bool = True  # each event meets the connections of one worker, and not all of them
    # Who is killed writes no report, and has the clients: of the books of its successor nothing can be said.
    has_books: bool = True
    each_reports: bool = False  # every server that another one replaces has written a report
    # Clients that keep their connections stay with what is left of a server that has died. Another event would meet
    # a server without clients: with such clients there is one for each cell.
    leaves_clients: bool = False
    # So long before the client's end the last event comes: its clients have had the time to see it.
    settle_s: float = 0.3


KINDS = {
    "kill": Kind("kill", "kills", "When a worker is killed",
                 "A worker is killed with SIGKILL, and replaced.", "replaced", ends_worker=True),
    "stop": Kind("stop", "stops", "When a worker is stopped",
                 "A worker is stopped with SIGSTOP for good: the server's own --worker-deadline ends and replaces it.",
                 "replaced", ends_worker=True, settle_s=1.2),
    "pause": Kind("pause", "pauses", "When a worker is stopped and goes on",
                  "A worker is stopped with SIGSTOP and goes on before the server's --worker-deadline.", "going on",
                  settle_s=0.5),
    "acceptor": Kind("acceptor kill", "acceptor kills", "When the acceptor is killed",
                     "The acceptor is killed with SIGKILL, and a new server is started on its port. Until that one "
                     "listens connects are refused, but where orphaned workers hold a listener: they accept what waits "
                     "in it. The workers of the dead one go on with whom they serve for --drain-timeout (5 s) and then "
                     "close, which is after the end of the cell. With clients that keep their connections there is one "
                     "kill for each cell.", "listening", of_worker=False, has_books=False, leaves_clients=True,
                     settle_s=0.8),
    "upgrade": Kind("upgrade", "upgrades", "When the server is upgraded",
                    "SIGHUP: a new server takes the listener over, and the old one drains and ends.", "taken over",
                    of_worker=False, each_reports=True, settle_s=0.5),
}
