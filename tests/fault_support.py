"""What the fault tests share: a process is killed at a chosen system call, or told that one has failed, by strace."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import unittest
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import process_support as support

HELLO = b"hello"
# After a fault, whoever has waited for so long hangs. The promise is 1 s, on a machine that does not stand still: see
# test_the_default_deadline_is_below_a_second, and `run_matrix faults` for every method.
HANG_S = 5

# For a program that ends by itself while it is traced: LeakSanitizer cannot work then, and says so.
UNDER_TRACE = {"ASAN_OPTIONS": "detect_leaks=0"}

needs_strace = unittest.skipUnless(shutil.which("strace"), "strace is not installed")


def has_ended(pid: int) -> bool:
    return support.state_of(pid) in ("", "Z", "X")


def _is_dying(pid: int) -> bool:
    """It has been sent a SIGKILL, or is on its way out (PF_EXITING)."""
    try:
        pending = re.findall(r"^(?:SigPnd|ShdPnd):\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = support.stat_of(pid)
    exiting = not fields or int(fields[6]) & 0x4
    return bool(exiting) or any(int(mask, 16) & 1 << (signal.SIGKILL - 1) for mask in pending)


class Tracer:
    """strace on a running process; it is there when this returns, and goes when it is closed or its process does."""

    def __init__(self, pid: int, folder: Path, *options: str) -> None:
        self.pid = pid
        self._text = ""
        self.log = folder / f"trace-{pid}"
        self._err = folder / f"strace-{pid}"
        command = ["strace", "-o", str(self.log), *options, "-p", str(pid)]
        with self._err.open("wb") as err:
            self._popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=err, stderr=err)

    def wait_attached(self) -> Tracer:
        def attached() -> bool:
            ended = self._popen.poll() is not None
            said = self._err.read_text()
            assert "attached" in said or not ended, f"strace has ended: {said}"
            return "attached" in said

        support.wait_until(attached, f"strace is attached to {self.pid}")
        return self

    def close(self) -> None:
        """Lets the process go on. It has ended then or goes on: a SIGKILL that it was sent has had its effect."""
        self._popen.terminate()
        self._popen.wait()
        with contextlib.suppress(FileNotFoundError):
            self._text = self.log.read_text(errors="replace")
        support.wait_until(lambda: has_ended(self.pid) or not _is_dying(self.pid), f"process {self.pid} ends")

    def text(self) -> str:
        """What it has written, once it is closed."""
        return self._text

    def count(self, call: str) -> int:
        """How many HELLOs the process has moved by a call, to its end."""
        text = re.escape(f'"{HELLO.decode()}"')
        return len(re.findall(rf"^{call}\(\d+, {text}, .*\) += {len(HELLO)}$", self.text(), re.M))


@contextlib.contextmanager
def traced(pid: int, folder: Path, *options: str) -> Iterator[Tracer]:
    tracer = Tracer(pid, folder, *options)
    try:
        yield tracer.wait_attached()
    finally:
        tracer.close()


@contextlib.contextmanager
def traced_each(what: Iterable[tuple[int, tuple[str, ...]]], folder: Path) -> Iterator[list[Tracer]]:
    """traced() for several (pid, options), which begin together."""
    tracers = [Tracer(pid, folder, *options) for pid, options in what]
    try:
        yield [tracer.wait_attached() for tracer in tracers]
    finally:
        for tracer in tracers:
            tracer.close()


def outcomes(socks: Iterable[socket.socket], seconds: float = HANG_S) -> tuple[list[socket.socket], int]:
    """Waits for the echo of HELLO, or the end, on all: those that have echoed, and how many have ended. Fails when
    one has neither in time."""
    deadline = time.monotonic() + seconds
    echoed: list[socket.socket] = []
    closed = hanging = 0
    for sock in socks:
        if not support.readable(sock, max(0.0, deadline - time.monotonic())):
            hanging += 1
            continue
        with contextlib.suppress(ConnectionResetError):
            if got := support.receive_exactly(sock, len(HELLO)):
                assert got == HELLO, got
                echoed.append(sock)
                continue
        closed += 1
    assert hanging == 0, f"{hanging} have neither an echo nor an end after {seconds} s; {len(echoed)} have echoed"
    return echoed, closed


def greet(socks: Iterable[socket.socket]) -> None:
    for sock in socks:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(HELLO)


def _connections(state: str, end: str, server: support.Address) -> list[list[str]]:
    """The TCP connections of this network namespace in a state of ss(8)'s, by one end's address: rows of
    Recv-Q, Send-Q, local and peer address. (/proc/net/tcp has all, and those in TIME_WAIT are many.)"""
    command = ["ss", "-Htn", "state", state, end, "{}:{}".format(*server)]
    rows = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [row.split() for row in rows]


def client_ends(server: support.Address) -> list[str]:
    """The ends that clients of a server have not closed yet."""
    return [row[2] for state in ("established", "close-wait") for row in _connections(state, "dst", server)]


def unread_at(server: support.Address) -> int:
    """How many of a server's connections have bytes that it has not read."""
    return sum(row[0] != "0" for row in _connections("established", "src", server))


def wait_for_open_files(pid: int, before: list[str], what: str) -> None:
    """The process has open what it had before; fails with the difference."""
    with contextlib.suppress(AssertionError):
        support.wait_until(lambda: support.open_files(pid) == before, what, 5)
    now = support.open_files(pid)
    more, fewer = Counter(now) - Counter(before), Counter(before) - Counter(now)
    assert not more and not fewer, f"{what}: {dict(more)} more, {dict(fewer)} fewer than before"


def wait_for_new_workers(server: support.Server, old: dict[int, int]) -> None:
    """The successors of some slots, and they serve; by one report for all of them."""

    def replaced() -> bool:
        report = server.report()
        now = {row["slot"]: row["pid"] for row in support.workers_of(report)}
        return not report["degraded"] and all(now[slot] not in (0, pid) for slot, pid in old.items())

    support.wait_until(replaced, f"workers {sorted(old)} are replaced")


def echo_those_that_wait_at_sigterm(server: support.Server, count: int) -> None:
    """Connected while the server is stopped, and SIGTERM is there before it can accept."""
    server.stop_group()
    with support.connections(server.address, count) as socks:
        server.signal(signal.SIGTERM)
        server.signal_group(signal.SIGCONT)
        for sock in socks:
            support.echo(sock)


def row_of(server: support.Server, slot: int) -> dict[str, Any]:
    return support.workers_of(server.report())[slot]


def kill(pid: int) -> None:
    os.kill(pid, 9)
    support.wait_until(lambda: has_ended(pid), f"process {pid} has ended")
