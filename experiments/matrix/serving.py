"""The server of a cell: how it starts and ends, and that another one may take its place on the same port."""

from __future__ import annotations

import time
from pathlib import Path

from matrix.process import Child, Waiter, describe_exit

START_S = 10.0


class CellFailed(Exception):
    """The cell has no figures, and why."""


class Serving:
    """Owns every server that it has started: what is left of them ends with it."""

    def __init__(self, argv: list[str], folder: Path, waiter: Waiter, guarded: bool = False) -> None:
        """`guarded`: see Child."""
        self._argv, self._folder, self._waiter, self._guarded = argv, folder, waiter, guarded
        self._started = 0
        self.retired: list[Child] = []  # those that others have replaced
        self.child = self._start(argv)
        self.target = ""

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        for child in (*self.retired, self.child):
            child.end()

    def listen(self) -> str:
        """Waits until it listens, and gives where."""
        line = self.child.first_line(self._waiter, time.monotonic() + START_S)
        if line is None:
            # Its stdout has ended or nothing came in time; an exit may be a moment behind the end of stdout.
            if self.child.ended(self._waiter, time.monotonic() + 1):
                exit_text = describe_exit(self.child.end())
                raise CellFailed(problem("server", exit_text, self.child.last_words(), "no message"))
            raise CellFailed(f"server did not say 'listening' within {START_S:g} s: killed")
        word, _, self.target = line.partition(" ")
        if word != "listening" or ":" not in self.target:
            raise CellFailed(f"server: its first line is {line[:60]!r}, not 'listening HOST:PORT'")
        return self.target

    def replace(self, deadline: float) -> bool:
        """Once the server has ended: starts another one where it listened. False while the port is not free, which
        orphaned workers may hold for a moment; raises CellFailed for that after the deadline."""
        place = self._argv.index("--listen") + 1
        another = self._start([*self._argv[:place], self.target, *self._argv[place + 1:]])
        try:
            line = another.first_line(self._waiter, time.monotonic() + START_S)
        except BaseException:  # interrupted, and nobody else knows of it yet
            another.end()
            raise
        if line is None:
            exit_text, words = describe_exit(another.end()), another.last_words()
            if time.monotonic() >= deadline:
                raise CellFailed(problem("the server's successor", exit_text, words, "no message"))
            return False
        self.retired.append(self.child)
        self.child = another
        return True

    def processes(self) -> int:
        """Those of all its servers that have not ended."""
        return sum(len(child.members()) for child in (*self.retired, self.child))

    def _start(self, argv: list[str]) -> Child:
        self._started += 1
        name = f"server-{self._started}" if self._started > 1 else "server"
        return Child(argv, self._folder, name, pipe_stdout=True, guarded=self._guarded)


def stop(server: Child, waiter: Waiter, limit_s: float) -> str:
    """Ends the server in the orderly way; gives what went wrong with that, or nothing."""
    server.terminate()
    if not server.ended(waiter, time.monotonic() + limit_s):
        return f"server did not end within {limit_s:g} s of SIGTERM: killed"
    code = server.exit_code()
    return problem("server", describe_exit(code), server.last_words(), "no message") if code else ""


def problem(who: str, exit_text: str, last_words: str, otherwise: str) -> str:
    return f"{who} {exit_text}: {last_words or otherwise}"
