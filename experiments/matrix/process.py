"""Child processes that cannot outlive this program, and the one place where it waits."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)
# The parent may have died before the request was in place; then no signal would come.
_IF_PARENT_LIVES = 'test "$PPID" = "$1" || exit 1; shift; exec "$@"'


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived. Raised only where this program waits, never between two statements."""


class Waiter:
    """Waits for descriptors until a deadline, keeps the progress line moving meanwhile, and turns
    SIGINT and SIGTERM into Interrupted."""

    def __init__(self, tick: Callable[[], None] | None = None) -> None:
        self._tick = tick
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        # The handlers do nothing: the number of the signal arrives in the pipe.
        self._handlers = {
            number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def until(self, descriptors: Iterable[int], deadline: float) -> set[int]:
        """The descriptors that are ready; none when time.monotonic() has reached the deadline."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            step = min(left, 0.25) if self._tick else left
            ready = {descriptor for descriptor, _ in poll.poll(max(step, 0) * 1000)}
            if self._read in ready:
                raise Interrupted
            if ready or left <= 0:
                return ready
            if self._tick:
                self._tick()

    def check(self) -> None:
        """Raises Interrupted if a signal has arrived."""
        self.until((), time.monotonic())


class Child:
    """One program in a session of its own, so that Ctrl-C on the terminal reaches only us, and so that
    whatever it forked ends with it. The kernel kills it when this process dies, however that happens."""

    def __init__(self, argv: list[str], folder: Path, name: str, pipe_stdout: bool = False,
                 pipe_stderr: bool = False, stdout: Path = Path(os.devnull), cores: Iterable[int] = (),
                 guarded: bool = False) -> None:
        """`guarded`: what it leaves when it ends also dies with us, though that is nobody's child then."""
        self.name = name
        self._errors = folder / f"{name}.stderr"
        _require_program(argv[0])
        pinned = ["/usr/bin/taskset", "-c", ",".join(map(str, cores))] if (cores := sorted(cores)) else []
        self._guarding, theirs = socket.socketpair() if guarded else (None, None)
        with self._errors.open("wb") as errors, stdout.open("wb") as output:
            self._process = subprocess.Popen(
                # By programs, as Python's own way is a copy of this interpreter, which costs more than theirs.
                ["/usr/bin/setpriv", "--pdeathsig", "KILL", "--", "/bin/sh", "-c", _IF_PARENT_LIVES, "sh",
                 str(os.getpid()), *pinned, *argv],
                cwd=folder,
                # A peer that is killed leaves its temporary files in a folder that goes.
                env={**os.environ, "TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipe_stdout else output,
                stderr=subprocess.PIPE if pipe_stderr else errors,
                start_new_session=True,
                preexec_fn=(lambda: start_guard(theirs)) if theirs else None,
            )
        self._guard = 0
        if self._guarding and theirs:
            theirs.close()
            self._guard = int(self._guarding.recv(20))
        # Not reaped yet, so the number cannot have been reused.
        self.pidfd = os.pidfd_open(self._process.pid)
        self.main = self._process.pid  # until adopt() names another
        self._ended = False
        self._code = 0
        self._lines = b""  # of a piped stderr, not yet given out by line()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.end()

    @property
    def group(self) -> int:
        return self._process.pid

    def first_line(self, waiter: Waiter, deadline: float) -> str | None:
        """The first line on stdout; None when the child ended or the deadline passed before it."""
        assert self._process.stdout is not None
        stdout, line = self._process.stdout.fileno(), b""
        while b"\n" not in line:
            if stdout not in waiter.until((stdout,), deadline):
                return None
            chunk = os.read(stdout, 4096)
            if not chunk:
                return None
            line += chunk
        return line.split(b"\n", 1)[0].decode(errors="replace")

    def ended(self, waiter: Waiter, deadline: float, *others: Child) -> bool:
        """Waits until this child ends (true), or one of the others does, or the deadline passes."""
        watched = {child.pidfd: child for child in (self, *others)}
        pipes = {pipe: child for child in watched.values() for pipe in child._pipes()}
        while True:
            ready = waiter.until((*watched, *pipes), deadline)
            if self.pidfd in ready or not ready:
                return self.pidfd in ready
            if ready & watched.keys():
                return False
            for descriptor in ready:
                # What a child prints later is of no interest, but a full pipe would stop it.
                if not pipes[descriptor]._read(descriptor):
                    del pipes[descriptor]

    def children(self) -> list[int]:
        """The processes that it forked and has not reaped, in that order."""
        return children_of(self.main)

    def members(self) -> dict[int, int]:
        """The parent of each process of its group that has not ended."""
        found = {}
        for pid in self._listed():
            try:
                # The name, in parentheses, may hold anything; the fields are counted behind it (proc(5)).
                state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it has ended meanwhile
            if state not in "ZX":
                found[pid] = int(parent)
        return found

    def _listed(self) -> list[int]:
        found = []
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            try:
                if os.getpgid(pid) == self.group and pid != self._guard:
                    found.append(pid)
            except OSError:
                continue
        return found

    def descriptors(self) -> int:
        """Open ones of all processes of its group together."""
        count = 0
        for pid in self.members():
            try:
                count += len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
        return count

    def adopt(self, pid: int) -> None:
        """From now on it is this process of its group, which has taken the place of the one that has ended.
        Its end is seen as the first one's is, if this program adopts orphans."""
        pidfd = os.pidfd_open(pid)
        os.close(self.pidfd)
        self.pidfd, self.main = pidfd, pid

    def has_ended(self) -> bool:
        """Whether it has ended by now."""
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def exit_code(self) -> int:
        """Of one that has ended and is not reaped, as subprocess gives it."""
        ended = os.waitid(os.P_PID, self.main, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def cpu_us(self) -> dict[int, int]:
        """CPU time by process of the group, all its threads. Of a process that ends between its listing
        and its reading there is none, and nothing of children that have been reaped."""
        found = {}
        for pid in self._listed():
            try:
                # The number of a process's CPU clock, as clock_getcpuclockid(3) makes it.
                found[pid] = time.clock_gettime_ns(~pid << 3 | 2) // 1000
            except OSError:
                continue
        return found

    def line(self, waiter: Waiter, deadline: float, *others: Child) -> str | None:
        """The next line on a piped stderr; None when it ended, the deadline passed, or the child or one of
        the others ended first."""
        assert self._process.stderr is not None
        stderr = self._process.stderr.fileno()
        pidfds = (self.pidfd, *(other.pidfd for other in others))
        while b"\n" not in self._lines:
            ready = waiter.until((stderr, *pidfds), deadline)
            if stderr not in ready or not self._read(stderr):
                return None
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode(errors="replace")

    def _pipes(self) -> list[int]:
        return [pipe.fileno() for pipe in (self._process.stdout, self._process.stderr) if pipe]

    def _read(self, pipe: int) -> bytes:
        chunk = os.read(pipe, 65536)
        if self._process.stderr and pipe == self._process.stderr.fileno():
            self._lines += chunk
            with self._errors.open("ab") as errors:
                errors.write(chunk)
        return chunk

    def terminate(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def end(self) -> int:
        """Kills what is left of the group, reaps the child, and gives its exit code as subprocess does: of the one
        that was adopted last."""
        if not self._ended:
            # Before the child is reaped: until then the group's number belongs to nobody else.
            try:
                os.killpg(self.group, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._code = self.exit_code()  # waits for it
            self._process.wait()
            _reap_group(self.group)
            if self._guarding:
                self._guarding.close()
            os.close(self.pidfd)
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe:
                    pipe.close()
            self._ended = True
        return self._code

    def last_words(self) -> str:
        """The last line on stderr that is not empty, or nothing."""
        if self._process.stderr and not self._process.stderr.closed:
            pipe = self._process.stderr.fileno()
            while select.select([pipe], [], [], 0)[0] and self._read(pipe):
                pass
        with self._errors.open("rb") as file:
            file.seek(max(0, self._errors.stat().st_size - 4096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")


def _require_program(program: str) -> None:
    """Raises what exec would, and a shell says in other words; and a text without #! it would take for a script."""
    found, code = shutil.which(program), 0
    if not found:
        code = errno.EACCES if os.path.exists(program) else errno.ENOENT
    elif os.access(found, os.R_OK):
        with open(found, "rb") as file:
            code = 0 if file.read(4).startswith((b"\x7fELF", b"#!")) else errno.ENOEXEC
    if code:
        raise OSError(code, os.strerror(code), program)


def children_of(pid: int) -> list[int]:
    """The processes that it forked and has not reaped, in that order."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            continue  # the thread has ended meanwhile
    return found


def adopt_orphans() -> None:
    """Whoever loses its parent, and is a descendant of this process, becomes its child: it can be seen to end,
    and is reaped when the child of whose group it is ends."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_CHILD_SUBREAPER")


def start_guard(connection: socket.socket) -> None:
    """Called in a child before its exec: leaves an orphan in the child's process group that kills the group when
    the other end of the connection closes, so when the process that holds it has died."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    if os.fork() == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # those for its group are not for it
        connection.send(str(os.getpid()).encode())
        kept = connection.fileno()
        os.closerange(0, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        try:
            connection.recv(1)
        finally:
            os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _reap_group(group: int) -> None:
    """The orphans of a group that has been killed, as far as they are children of this process."""
    while True:
        try:
            os.waitid(os.P_PGID, group, os.WEXITED)
        except ChildProcessError:
            return


def describe_exit(code: int) -> str:
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"
