"""The faults that a workload can have, in words and with what must be known to read their figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    event: str  # one of them
    events: str
    title: str  # of what is found
    what: str  # what happens, in a sentence
    ends_worker: bool = False  # each event is the end of one: such ends are no faults of the server
    # So long before the client's end the last event comes: its clients have had the time to see it.
    settle_s: float = 0.3


KINDS = {
    "kill": Kind("kill", "kills", "When a worker is killed",
                 "A worker is killed with SIGKILL, and replaced.", ends_worker=True),
    "stop": Kind("stop", "stops", "When a worker is stopped",
                 "A worker is stopped with SIGSTOP for good: the server's own --worker-deadline ends and replaces it.",
                 ends_worker=True, settle_s=1.2),
    "pause": Kind("pause", "pauses", "When a worker is stopped and goes on",
                  "A worker is stopped with SIGSTOP and goes on before the server's --worker-deadline.", settle_s=0.5),
    "acceptor": Kind("acceptor kill", "acceptor kills", "When the acceptor is killed",
                     "The acceptor is killed with SIGKILL, and a new server is started on its port: until it listens, "
                     "connects are refused. The workers of the dead one finish what they serve.", settle_s=0.8),
    "upgrade": Kind("upgrade", "upgrades", "When the server is upgraded",
                    "SIGHUP: a new server takes the listener over, and the old one drains and ends.", settle_s=0.5),
}
