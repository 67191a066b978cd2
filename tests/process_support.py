"""What the process tests share: programs that are owned to their end, raw clients, and the list of shapes.

Nothing here sleeps to wait for something: a wait is on a byte, an end of stream or a pidfd, or wait_until(), each with
a bound."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from matrix.process import start_guard  # noqa: E402
from proc_support import cpu_ticks, descriptors_of, open_files, rss_bytes, stat_of, state_of  # noqa: E402, F401

BIN_DIR = Path(os.environ.get("C10K_BIN_DIR", ROOT / "build" / "release"))
SERVER = str(BIN_DIR / "c10k-server")
CLIENT = str(BIN_DIR / "c10k-client")
SANITIZED = bool(os.environ.get("C10K_SANITIZE"))

BOUND_S = 60 if SANITIZED else 30  # for whatever a test waits for; reached only when it fails

Address = tuple[str, int]
Result = TypeVar("Result")


def scaled(release: int, sanitized: int) -> int:
    """Sanitizers cost time and memory: a number for each."""
    return sanitized if SANITIZED else release


def wait_until(condition: Callable[[], Result], what: str, bound_s: float = BOUND_S) -> Result:
    """Returns the first true value of condition(). For what neither a descriptor nor a pidfd announces."""
    deadline = time.monotonic() + bound_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {bound_s} s")
        time.sleep(0.005)
    return value


def readable(descriptor: Any, seconds: float = BOUND_S) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


# ---- processes -----------------------------------------------------------------------------------

# What a program is started by: SIGKILL when the test itself is killed, as ctest does at its time limit.
_DIE_WITH_US = ["/usr/bin/setpriv", "--pdeathsig", "KILL", "--"]

NOBODY = 65534


def as_user(user: int) -> tuple[str, ...]:
    """What a program is started by as another user: that takes the request away, so it comes once more."""
    return ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *_DIE_WITH_US[1:])


# A test that is asked to end still cleans up.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def stop_process(pid: int) -> None:
    """SIGSTOP, and it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) in "TZ", f"process {pid} stops")


@dataclass
class Finished:
    """How a program ended."""

    code: int
    out: str
    err: str
    report: dict[str, Any]


class Program:
    """A program in a process group of its own, which is killed as a whole, at the latest at the end."""

    def __init__(
        self,
        command: list[str],
        environment: Callable[[str], dict[str, str]] = lambda folder: {},
        guarded: bool = False,
    ) -> None:
        """`environment` gets a folder that goes with the program, and gives what is set beside what is.
        `guarded`: what it leaves in its group when it ends also dies with us, though that is nobody's child then."""
        self._guarding, theirs = socket.socketpair() if guarded else (None, None)
        self._guard = 0

        self._folder = tempfile.TemporaryDirectory(prefix="c10k-test-")
        self.folder = Path(self._folder.name)
        self.err_path = self.folder / "stderr"
        with self.err_path.open("wb") as err:
            self._popen = subprocess.Popen(
                [*_DIE_WITH_US, *command],
                env={**os.environ, **environment(self._folder.name)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,
                # Without it the child is made by vfork: a copy of this interpreter costs more than most programs.
                preexec_fn=(lambda: start_guard(theirs)) if theirs else None,
            )
        if self._guarding and theirs:
            theirs.close()
            self._guard = int(self._guarding.recv(20))
        self.pid = self._popen.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.out = b""

    def read_line(self) -> str:
        """The next line on stdout; what there was of it when the program has ended before."""
        assert self._popen.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            if not readable(self._popen.stdout):
                raise AssertionError(f"no line on stdout within {BOUND_S} s; stderr: {self.err_text()}")
            byte = os.read(self._popen.stdout.fileno(), 1)
            if not byte:
                break
            line += byte
        self.out += line
        return line.decode()

    def err_text(self) -> str:
        return self.err_path.read_bytes().decode(errors="replace")  # "\r" as it is

    def has_ended(self, seconds: float = 0) -> bool:
        return readable(self.pidfd, seconds)

    def group(self) -> list[int]:
        """The living processes of its group, itself included. It is not reaped before the end of the
        test, so its group's number cannot come to belong to others."""
        members = []
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(pid) == self.pid and pid != self._guard and state_of(pid) not in ("", "Z", "X"):
                    members.append(pid)
        return sorted(members)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    def stop_group(self) -> None:
        """SIGSTOP to each of its processes, and all have stopped."""
        for pid in self.group():
            stop_process(pid)

    def wait(self, bound_s: float = BOUND_S) -> tuple[int, str, str]:
        """Its exit code (negative: the signal), stdout and stderr. Fails when it does not end by itself."""
        if not self.has_ended(bound_s):
            raise AssertionError(f"process {self.pid} does not end within {bound_s} s; stderr: {self.err_text()}")
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert info is not None and self._popen.stdout is not None
        code = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        # Whoever inherited stdout has ended too, or this would wait for them.
        wait_until(lambda: not self.group(), f"the processes that {self.pid} started end too")
        while chunk := os.read(self._popen.stdout.fileno(), 65536):
            self.out += chunk
        return code, self.out.decode(), self.err_text()

    def close(self) -> None:
        pidfds = []
        for pid in self.group():
            with contextlib.suppress(ProcessLookupError):
                pidfds.append(os.pidfd_open(pid))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for pidfd in pidfds:
            readable(pidfd)
            os.close(pidfd)
        self._popen.wait()
        if self._guarding:
            self._guarding.close()
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        os.close(self.pidfd)
        self._folder.cleanup()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(Program):
    """A c10k-server on a port of its own, ready to be connected to."""

    def __init__(self, *options: str, wrapper: Iterable[str] = (), report: str | None = None,
                 host: str = "127.0.0.1", **popen: Any) -> None:  # fmt: skip
        self._reports = tempfile.TemporaryDirectory(prefix="c10k-test-")
        os.chmod(self._reports.name, 0o777)  # the server may run as another user
        self.report_path = Path(self._reports.name) / "report.json"
        command = [*wrapper, SERVER, "--listen", f"{host}:0", "--report", report or str(self.report_path), *options]
        super().__init__(command, **popen)
        try:
            first = self.read_line()
            match = re.fullmatch(r"listening (\S+):(\d+)\n", first)
            if match is None:
                raise AssertionError(f"first line {first!r} of {command}; stderr: {self.err_text()}")
        except BaseException:
            self.close()
            raise
        self.address: Address = (match[1], int(match[2]))
        self.target = f"{match[1]}:{match[2]}"

    def __enter__(self) -> Server:
        return self

    def close(self) -> None:
        super().close()
        self._reports.cleanup()

    def children(self) -> list[int]:
        return [pid for pid in self.group() if pid != self.pid]

    def worker_pid(self, slot: int) -> int:
        """The process in a slot by now; 0 while there is none."""
        return next(row["pid"] for row in workers_of(self.report()) if row["slot"] == slot)

    def report(self) -> dict[str, Any]:
        """A report by SIGUSR1, as of now."""
        before = self._uptime()
        self.signal(signal.SIGUSR1)
        wait_until(lambda: self._uptime() > before or self.has_ended(), "a report after SIGUSR1")
        if self._uptime() <= before:
            raise AssertionError(f"the server has ended instead of reporting; stderr: {self.err_text()}")
        return json.loads(self.report_path.read_text())

    def _uptime(self) -> float:
        try:  # it may be half written
            return json.loads(self.report_path.read_text())["uptime_s"]
        except (FileNotFoundError, json.JSONDecodeError):
            return 0

    def finish(self, number: int = signal.SIGTERM, bound_s: float = BOUND_S) -> Finished:
        """Ends it with a signal (0: it ends by itself) and checks what is always so: exit code 0, nobody left behind,
        no word from a sanitizer, books that balance with nothing open."""
        if number:
            self.signal(number)
        code, out, err = self.wait(bound_s)
        assert code == 0, f"exit code {code}; stderr: {err}"
        assert not re.search("Sanitizer|runtime error", err), err
        report = json.loads(self.report_path.read_text()) if self.report_path.exists() else {}
        if report:
            books = report["books"]
            assert books["balanced"] and books["active"] == 0 and books["in_hand_off"] == 0, books
            assert books["accepted"] + books["adopted"] == sum(
                books[key] for key in ("served", "redelivered_and_served", "shed", "lost", "handed_on")
            ), books
        return Finished(code, out, err, report)


def workers_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in report["processes"] if row["role"] == "worker"]


def run_program(*command: str, bound_s: float = BOUND_S, **popen: Any) -> tuple[int, str, str]:
    """Runs a program to its end: exit code, stdout, stderr."""
    with Program(list(command), **popen) as program:
        return program.wait(bound_s)


def run_client(target: str, *options: str, bound_s: float = 2 * BOUND_S) -> tuple[int, dict[str, Any], str]:
    """c10k-client with --json -: exit code, the result, stderr."""
    code, out, err = run_program(CLIENT, "--target", target, "--json", "-", *options, bound_s=bound_s)
    return code, json.loads(out) if out else {}, err


# ---- raw clients ---------------------------------------------------------------------------------


def connect(address: Address) -> socket.socket:
    sock = socket.create_connection(address, timeout=BOUND_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def refuses(address: Address) -> bool:
    try:
        with connect(address) as sock:
            return ended(sock) if readable(sock, 0.02) else False
    except ConnectionError:
        return True


@contextlib.contextmanager
def connections(address: Address, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(address)) for _ in range(count)]


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer when the stream ends."""
    chunks = []
    while size > 0 and (chunk := sock.recv(min(size, 1 << 20))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def echo(sock: socket.socket, data: bytes = b"1234567890.123456789") -> None:
    """One echo of what fits into the buffers."""
    sock.sendall(data)
    got = receive_exactly(sock, len(data))
    assert got == data, f"sent {data[:40]!r}, got {got[:40]!r}"


def ended(sock: socket.socket) -> bool:
    """Waits for the next byte or the end, and says whether it was the end."""
    try:
        return sock.recv(1) == b""
    except (ConnectionResetError, BrokenPipeError):
        return True


def still_echoes(sock: socket.socket) -> bool:
    """Whether the connection is served; False when it has ended."""
    try:
        sock.sendall(b"still")
        return receive_exactly(sock, 5) == b"still"
    except (ConnectionResetError, BrokenPipeError):
        return False


def reset(sock: socket.socket) -> None:
    """Closes with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ---- shapes --------------------------------------------------------------------------------------


@functools.cache
def listing() -> dict[str, Any]:
    """c10k-server --list --json."""
    code, out, err = run_program(SERVER, "--list", "--json")
    assert code == 0, err
    return json.loads(out)


@dataclass(frozen=True)
class Shape:
    """A server, as options say it."""

    name: str
    options: tuple[str, ...]
    strategy: str
    unsupported: str = ""  # the reason
    method: str = ""
    kernel_dispatches: bool = False
    chosen_by: str = ""
    connections_stay: bool = False  # in the acceptor
    why_not_retained: str = ""
    pool = property(lambda self: self.strategy == "pool")

    def start(self, *options: str, workers: int = 2, **popen: Any) -> Server:
        how_many = ("--workers", str(workers)) if self.pool else ()
        return Server(*self.options, *how_many, *options, **popen)


def strategy_shapes() -> list[Shape]:
    return [
        Shape(row["name"], ("--strategy", row["name"]), row["name"], row["reason"])
        for row in listing()["strategies"]
        if row["name"] != "pool"
    ]


# The loop of a pool's workers where a test does not choose it; "" is the default one.
LOOP = os.environ.get("C10K_LOOP", "")


def method_shapes(loops: Iterable[str] = (LOOP,)) -> list[Shape]:
    """A pool for every method with every loop."""
    reasons = {row["name"]: row["reason"] for row in listing()["loops"]}
    return [
        Shape(
            f"pool/{row['name']}" + (f"/{loop}" if loop else ""),
            ("--strategy", "pool", "--ipc", row["name"], *(("--loop", loop) if loop else ())),
            "pool",
            row["reason"] or reasons.get(loop, ""),
            row["name"],
            row["kernel_dispatches"],
            row["chosen_by"],
            row["connections_stay"],
            row["why_not_retained"],
        )
        for row in listing()["methods"]
        for loop in loops
    ]


def completion_shapes() -> list[Shape]:
    """A worker that serves by completions is another one: a pool that hands over, and one that accepts."""
    loops = [row["name"] for row in listing()["loops"] if not row["readiness"] and row["name"] != LOOP]
    return [shape for shape in method_shapes(loops) if shape.method in ("scm-seqpacket", "reuseport")]


def all_shapes() -> list[Shape]:
    return strategy_shapes() + method_shapes() + completion_shapes()


def loop_shapes() -> list[Shape]:
    return method_shapes([row["name"] for row in listing()["loops"]])


def sink_shapes() -> list[Shape]:
    return [shape for shape in method_shapes() if not shape.kernel_dispatches]


def dispatched_shapes() -> list[Shape]:
    """Those whose acceptor chooses the worker."""
    return [shape for shape in method_shapes() if shape.chosen_by == "acceptor"]


def for_each(shapes: Callable[[], list[Shape]]) -> Callable[..., Callable[[unittest.TestCase], None]]:
    """Runs a test for each shape, as a subtest; what is unsupported here is skipped with its reason.
    C10K_ONLY in the environment picks the shapes whose name matches that expression."""

    def decorate(test: Callable[[Any, Shape], None]) -> Callable[[unittest.TestCase], None]:
        @functools.wraps(test)
        def run(self: unittest.TestCase) -> None:
            only = re.compile(os.environ.get("C10K_ONLY", ""))
            for shape in shapes():
                if not only.search(shape.name):
                    continue
                with self.subTest(shape=shape.name):
                    if shape.unsupported:
                        self.skipTest(shape.unsupported)
                    began = time.monotonic()
                    test(self, shape)
                    if "C10K_TIMES" in os.environ:
                        print(f"{time.monotonic() - began:7.2f} s {test.__name__} {shape.name}", flush=True)

        return run

    return decorate


def close_all(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def totals_of(server: Server) -> dict[str, Any]:
    return server.report()["totals"]
