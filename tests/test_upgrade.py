"""Tests of fault 12: a new server takes a running one over, and nobody notices.

How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_upgrade.Shapes"""

from __future__ import annotations

import array
import contextlib
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from proc_support import left_by_one_that_is_killed  # noqa: E402
from process_support import (  # noqa: E402
    SERVER,
    Program,
    Server,
    Shape,
    all_shapes,
    close_all,
    completion_shapes,
    connections,
    echo,
    for_each,
    method_shapes,
    run_program,
    wait_until,
)
from upgrade_support import (  # noqa: E402
    ADOPTED,
    HELLO,
    LEFT,
    LONG,
    MAGIC,
    MESSAGE,
    READY,
    REFUSAL,
    RETIRING,
    VERSION,
    Place,
    Predecessor,
    begin_load,
    end,
    end_load,
    place,
    said,
    sighup,
    successor_of,
)


def retaining_shapes() -> list[Shape]:
    """Those whose acceptor can keep a copy of a connection."""
    return [shape for shape in method_shapes() + completion_shapes() if not shape.why_not_retained]


class Shapes(unittest.TestCase):
    """Every server shape: nobody is refused, reset or left."""

    @for_each(all_shapes)
    def test_under_load_by_path(self, shape: Shape) -> None:
        with place() as where, shape.start(*LONG, *where.here) as old, begin_load(old) as load:
            with connections(old.address, 4) as held:
                for sock in held:
                    echo(sock)
                with shape.start(*LONG, *where.here, *where.take) as new:
                    self.assertEqual(new.address, old.address)
                    old.signal(signal.SIGTERM)  # for the first time, and it drains already
                    for sock in held:
                        echo(sock)  # the old one still serves them
                    self.assertFalse(old.has_ended())
                    close_all(held)
                    report = old.finish(0).report
                    self.assertEqual(report["totals"]["closed_draining"], 0)
                    self.assertEqual(report["books"]["lost"], 0)
                    before = new.report()["books"]["accepted"]
                    wait_until(lambda: new.report()["books"]["accepted"] > before, "clients go on")
                    self.assertEqual(os.listdir(where.path), ["control"])
                    end_load(load)
                    new.finish()
                    self.assertEqual(os.listdir(where.path), [])

    @for_each(all_shapes)
    def test_by_sighup_twice(self, shape: Shape) -> None:
        with place() as where, shape.start(*LONG, **where.generations()) as server:
            pid = server.pid
            for _ in range(2):
                with connections(server.address, 4) as held:
                    for sock in held:
                        echo(sock)
                    sighup(server, pid)
                    for sock in held:
                        echo(sock)
                successor = successor_of(server, pid)
                books = where.report_of(pid)["books"]
                self.assertEqual((books["served"], books["balanced"], books["lost"]), (4, True, 0))
                pid = successor
            with connections(server.address, 4) as later:
                for sock in later:
                    echo(sock)
            self.assertEqual(end(server, where, pid)["books"]["served"], 4)
            self.assertEqual(server.err_text(), "")

    @for_each(all_shapes)
    def test_what_waits_in_the_accept_queue_is_the_successors(self, shape: Shape) -> None:
        with (
            place() as where,
            shape.start(*LONG, *where.here, "--max-connections", "2") as old,
            connections(old.address, 2) as held,
        ):
            for sock in held:
                echo(sock)
            with connections(old.address, 20) as queued, shape.start(*LONG, *where.take) as new:
                for sock in queued:
                    echo(sock)
                for sock in held:
                    echo(sock)
                close_all(held)
                self.assertEqual(old.finish(0).report["books"]["accepted"], 2)
                close_all(queued)
                self.assertEqual(new.finish().report["books"]["accepted"], 20)

    @for_each(all_shapes)
    def test_the_old_one_leaves_the_queue(self, shape: Shape) -> None:
        # All come while it is stopped, and so does the word that its successor is ready. It may take one for each
        # turn of a loop that it has begun before it reads that word.
        with (
            place() as where,
            shape.start(*LONG, *where.here, "--accept-drain", "one", workers=1) as old,
            Predecessor(where.control) as successor,
        ):
            successor.hello()
            for pid in old.group():
                support.stop_process(pid)
            with connections(old.address, 20) as queued:
                successor.say(READY)
                old.signal(signal.SIGCONT)
                self.assertEqual(successor.hear()[0], RETIRING)
                if shape.kernel_dispatches:
                    old.report()  # by then it has told its workers
                old.signal_group(signal.SIGCONT)
                self.assertEqual(successor.hear()[0], LEFT)
                listener = socket.socket(fileno=os.dup(successor.descriptors[0]))
                listener.setblocking(False)
                ours = []
                with listener, contextlib.suppress(BlockingIOError):
                    while True:
                        ours.append(listener.accept()[0])
                self.assertGreaterEqual(len(ours), 14)
                close_all(ours)
                close_all(queued)
                self.assertEqual(old.finish(0).report["books"]["accepted"], 20 - len(ours))


class Steered(unittest.TestCase):
    """reuseport with a program in the kernel: it is the successor's from the moment when that one is ready."""

    @for_each(lambda: [shape for shape in method_shapes() if shape.method == "reuseport"])
    def test_under_load(self, shape: Shape) -> None:
        # One that cannot be attached here is told apart by --list, for the defaults, and by its own start.
        for options in ("steer=cpu", "steer=least-loaded", "migrate=on", "steer=least-loaded,migrate=on"):
            ipc = ("--strategy", "pool", "--workers", "2", "--ipc", f"reuseport:{options}")
            with self.subTest(options=options), place() as where:
                with Program([SERVER, "--listen", "127.0.0.1:0", *ipc]) as attempt:
                    if not attempt.read_line():
                        self.skipTest(attempt.wait()[2])
                with Server(*ipc, *LONG, *where.here) as old, begin_load(old) as load:
                    # One that fails after it has the listeners; then one that does not.
                    with Predecessor(where.control) as failing:
                        failing.hello()
                    with Server(*ipc, *LONG, *where.take) as new:
                        old.finish(0)
                        wait_until(lambda: new.report()["books"]["accepted"] > 10, "clients go on")
                        end_load(load)
                        new.finish()


class Failing(unittest.TestCase):
    """A successor that does not start, or is none, leaves the running server as it was."""

    def one_shape(self, *options: str) -> Any:
        return Server("--strategy", "pool", "--ipc", "scm-seqpacket", "--workers", "2", *LONG, *options)

    @for_each(lambda: [shape for shape in all_shapes() if shape.method in ("", "scm-seqpacket", "inherited-listener")])
    def test_dies_with_the_listeners(self, shape: Shape) -> None:
        with place() as where, shape.start(*LONG, *where.here) as server:
            before = [support.descriptors_of(pid) for pid in server.group()]
            with connections(server.address, 2) as held:
                for round_number in range(2):
                    with Predecessor(where.control) as successor:
                        self.assertEqual(successor.hello(), 1)
                    said(server, "this server goes on", round_number + 1)
                    for sock in held:
                        echo(sock)
            wait_until(lambda: [support.descriptors_of(pid) for pid in server.group()] == before, "none leaks")
            server.finish()

    def test_garbage(self) -> None:
        frame = struct.pack("=II", 0x6B303163, 1) + bytes(24)
        with place() as where, self.one_shape(*where.here) as server:
            before = support.descriptors_of(server.pid)
            for number, data in enumerate(
                (
                    b"x",
                    bytes(256),
                    frame,
                    MESSAGE.pack(MAGIC, 9, HELLO, 0, 0, b""),
                    MESSAGE.pack(MAGIC, VERSION, HELLO, 0, 0, b"") + b"x",
                    MESSAGE.pack(MAGIC, VERSION, READY, 1, 0, b""),
                    MESSAGE.pack(MAGIC, VERSION, 77, 0, 0, b"a" * 232),
                )
            ):
                with Predecessor(where.control) as peer:
                    # A descriptor beside it is closed by the kernel, or by the server.
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [2, 2]))]
                    peer.socket.sendmsg([data], rights)
                    said(server, "this server goes on", number + 1)
                    self.assertEqual(peer.hear()[0], REFUSAL)
            with Predecessor(where.control) as silent:
                silent.say(HELLO)
                with Predecessor(where.control) as second:
                    self.assertEqual(second.hear()[::2], (REFUSAL, b"another server is taking over by now"))
            said(server, "this server goes on", 8)
            self.assertEqual(len(server.err_text().splitlines()), 8)
            wait_until(lambda: support.descriptors_of(server.pid) == before, "none leaks")
            with connections(server.address, 4) as socks:
                for sock in socks:
                    echo(sock)
            with self.one_shape(*where.take) as new:
                server.finish(0)
                new.finish()

    def refused(self, where: Place, expected: str, *options: str, code: int = 1) -> None:
        """A server with these options does not take over, and says why in one line."""
        got, out, err = run_program(SERVER, *where.take, *options)
        self.assertEqual((got, out), (code, ""), err)
        self.assertRegex(err, rf"\Ac10k-server: [^\n]*{expected}[^\n]*\n\Z")

    def test_what_does_not_fit_is_refused(self) -> None:
        pool = ("--listen", "127.0.0.1:0", "--strategy", "pool", "--ipc")
        with place() as where:
            with Server("--strategy", "pool", "--ipc", "reuseport", "--workers", "2", *LONG, *where.here) as server:
                self.refused(where, "with 2 workers.*with 3 workers.*--workers", *pool, "reuseport", "--workers", "3")
                self.refused(where, "reuseport.*one listener.*--ipc", *pool, "scm-seqpacket")
                self.refused(where, "one listener", "--listen", "127.0.0.1:0")
                same = (*pool[2:], "reuseport", "--workers", "2")
                self.refused(where, "--listen 127.0.0.1:1;", "--listen", "127.0.0.1:1", *same)
                self.refused(where, "--listen 127.0.0.2:0;", "--listen", "127.0.0.2:0", *same)
                self.refused(where, "not HOST:PORT", "--listen", "x", code=2)
                with connections(server.address, 8) as socks:
                    for sock in socks:
                        echo(sock)
                server.finish()
            self.refused(where, "No such file.*--control", "--listen", "127.0.0.1:0")
            got, _, err = run_program(SERVER, "--listen", "127.0.0.1:0", "--take-over", "fd:0")
            self.assertEqual(got, 2, err)

    def test_a_successor_ends_with_the_test_that_is_killed(self) -> None:
        script = """
import time, upgrade_support as upgrades, process_support as support
with upgrades.place() as where, support.Server(**where.generations()) as server:
    upgrades.sighup(server, server.pid)
    print(upgrades.successor_of(server, server.pid), flush=True)
    time.sleep(600)
"""
        with tempfile.TemporaryDirectory(prefix="c10k-test-") as folder:
            environment = {**os.environ, "TMPDIR": folder, "PYTHONPATH": str(Path(__file__).parent)}
            successor = left_by_one_that_is_killed(script, b"c10k-server", environment)
            wait_until(lambda: support.state_of(successor) in ("", "Z"), "the successor ends")

    def test_a_new_binary_at_the_same_path(self) -> None:
        with tempfile.TemporaryDirectory(prefix="c10k-test-") as name:
            binary = Path(name) / "server"
            shutil.copy(SERVER, binary)
            with Program([str(binary), "--listen", "127.0.0.1:0", *LONG], guarded=True) as server:
                host, port = server.read_line().split()[1].split(":")
                broken = Path(name) / "broken"
                broken.write_text("#!/bin/sh\nexit 3\n")
                broken.chmod(0o755)
                os.rename(broken, binary)
                server.signal(signal.SIGHUP)
                wait_until(lambda: "ended: exit code 3" in server.err_text(), "it has failed")
                with connections((host, int(port)), 1) as socks:
                    echo(socks[0])
                    shutil.copy(SERVER, broken)
                    os.rename(broken, binary)
                    server.signal(signal.SIGHUP)
                    self.assertEqual(server.read_line(), f"listening {host}:{port}\n")
                    echo(socks[0])
                self.assertTrue(server.has_ended(support.BOUND_S))
                with connections((host, int(port)), 1) as socks:
                    echo(socks[0])


class Names(unittest.TestCase):
    """The control socket's name, and who may use it."""

    def test_mode_owner_and_life(self) -> None:
        with place() as where, Server(*where.here) as server:
            self.assertEqual(os.stat(where.control).st_mode & 0o777, 0o600)
            # A running one is not pushed aside; one that has died is.
            code, _, err = run_program(SERVER, "--listen", "127.0.0.1:0", *where.here)
            self.assertEqual(code, 2)
            self.assertRegex(err, r"\Ac10k-server: --control: [^\n]*--take-over[^\n]*\n\Z")
            server.signal(signal.SIGKILL)
            server.wait()
            self.assertTrue(os.path.exists(where.control))
            with Server(*where.here) as again:
                with Predecessor(where.control) as peer:
                    peer.hello()
                again.finish()
            self.assertEqual(os.listdir(where.path), [])
            # What somebody else has put there is not removed, and not replaced.
            with Server(*where.here) as other:
                os.rename(where.control, where.control + ".old")
                Path(where.control).write_text("mine")
                other.finish()
            self.assertEqual(Path(where.control).read_text(), "mine")
            code, _, err = run_program(SERVER, "--listen", "127.0.0.1:0", *where.here)
            self.assertEqual(code, 2)
            self.assertIn("is no socket", err)

    def test_a_path_need_not_be_utf8(self) -> None:
        """And costs no report, which must be."""
        with place() as where:
            control = os.fsdecode(os.fsencode(where.control) + b"-\xff")
            with Server("--control", control) as server:
                self.assertEqual(os.listdir(os.fsencode(where.path)), [b"control-\xff"])
                report = server.finish().report
            self.assertEqual(report["options"]["control"], where.control + "-\ufffd")

    def test_a_folder_that_others_can_write_to(self) -> None:
        with place() as where:
            os.chmod(where.path, 0o777)
            code, _, err = run_program(SERVER, "--listen", "127.0.0.1:0", *where.here)
            self.assertEqual(code, 2)
            self.assertRegex(err, r"\Ac10k-server: --control: others can [^\n]*0777[^\n]*0700[^\n]*\n\Z")
            os.chmod(where.path, 0o1777)
            with Server(*where.here) as server:
                server.finish()

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("setpriv"), "needs root and setpriv")
    def test_another_user(self) -> None:
        drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        command = (*drop, SERVER, "--listen", "127.0.0.1:0")
        with place() as where, Server(*where.here) as server:
            os.chmod(where.path, 0o755)
            code, _, err = run_program(*command, *where.take)
            self.assertEqual(code, 1)
            self.assertRegex(err, r"\Ac10k-server: --take-over: [^\n]*Permission denied; be the user[^\n]*\n\Z")
            os.chmod(where.control, 0o666)
            code, _, err = run_program(*command, *where.take)
            self.assertEqual(code, 1)
            said(server, "runs as user 65534")
            with connections(server.address, 2) as socks:
                for sock in socks:
                    echo(sock)
            server.finish()


class Retained(unittest.TestCase):
    """--retain: live connections move as well."""

    @for_each(retaining_shapes)
    def test_connections_survive_two_generations(self, shape: Shape) -> None:
        data = os.urandom(1 << 20)
        with place() as where, shape.start(*LONG, "--retain", **where.generations()) as server:
            pid = server.pid
            with connections(server.address, 11) as held, socket.socket() as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                slow.connect(server.address)
                held.append(slow)
                for generation in range(2):
                    for number, sock in enumerate(held[: 8 + 2 * generation]):
                        echo(sock, f"{generation} {number}".encode())
                    # In the middle: the server has bytes to echo that the client does not take.
                    slow.settimeout(0.5)  # nothing announces that no more is taken: it stands still for so long
                    sent = 0
                    with contextlib.suppress(TimeoutError):
                        while generation == 0 and sent < 64 << 20:
                            sent += slow.send(data[sent % len(data) :])
                    slow.settimeout(support.BOUND_S)
                    sighup(server, pid)
                    for number, sock in enumerate(held[:11]):
                        echo(sock, f"{generation} {number} again".encode())
                    if sent:
                        self.assertNotIn(support.state_of(pid), ("", "Z", "X"), "the old one serves the slow one still")
                    for at in range(0, sent, len(data)):
                        size = min(len(data), sent - at)
                        self.assertTrue(support.receive_exactly(slow, size) == data[:size], f"{at} of {sent}")
                    successor = successor_of(server, pid)
                    books = where.report_of(pid)["books"]
                    self.assertTrue(books["balanced"], books)
                    self.assertEqual((books["handed_on"], books["served"], books["lost"]), (12, 0, 0))
                    self.assertEqual(books["adopted"], 12 if generation else 0)
                    pid = successor
                for sock in held:
                    echo(sock)
                close_all(held)
                books = end(server, where, pid)["books"]
                self.assertEqual((books["adopted"], books["served"], books["accepted"]), (12, 12, 0))
            self.assertEqual(server.err_text(), "")

    def test_one_that_has_spoken_is_not_silent_for_the_successor(self) -> None:
        with contextlib.ExitStack() as stack:
            begun = []

            @for_each(retaining_shapes)
            def begin(_: unittest.TestCase, shape: Shape) -> None:
                where = stack.enter_context(place())
                options = (*LONG, "--retain", *where.here)
                with shape.start(*options) as old:
                    held = stack.enter_context(connections(old.address, 4))
                    for sock in held:
                        echo(sock)
                    new = stack.enter_context(shape.start(*options, *where.take, "--first-byte-timeout", "0.3"))
                    self.assertEqual(old.finish(0).report["books"]["handed_on"], 4)
                begun.append((shape, new, held))

            begin(self)
            if begun:
                self.assertFalse(begun[-1][1].has_ended(0.5))  # not a wait for something: the deadline passes for all
            for shape, new, held in begun:
                with self.subTest(shape=shape.name):
                    for sock in held:
                        echo(sock)
                    close_all(held)
                    self.assertEqual(new.finish().report["totals"]["closed_silent"], 0)

    @for_each(retaining_shapes)
    def test_a_successor_that_dies_with_them_loses_none(self, shape: Shape) -> None:
        with (
            place() as where,
            shape.start("--retain", *LONG, *where.here) as server,
            connections(server.address, 100) as held,
        ):
            for sock in held:
                echo(sock)
            with Predecessor(where.control) as successor:
                successor.hello()
                successor.say(READY, 1)
                self.assertEqual(successor.hear()[0], RETIRING)
                self.assertEqual(successor.hear()[0], LEFT)
                arrived = successor.receive_descriptors()
                self.assertGreater(arrived, 0)
                if arrived < 100:
                    self.assertGreater(successor.receive_descriptors(), 0)
                # It had no descriptor for the first frame, and says nothing of the others.
                successor.say(ADOPTED, 0, arrived)
            said(server, "serves")
            for sock in held:
                echo(sock)
            close_all(held)
            books = server.finish(0).report["books"]
            self.assertEqual((books["accepted"], books["handed_on"], books["lost"]), (100, 0, 0))

    def test_descriptors_do_not_pile_up(self) -> None:
        pool = ("--strategy", "pool", "--workers", "2")
        with place() as where, Server(*pool, "--retain", *LONG, **where.generations()) as server:
            pid = server.pid
            with connections(server.address, 10) as held:
                for sock in held:
                    echo(sock)
                counts = []
                for _ in range(4):
                    sighup(server, pid)
                    pid = successor_of(server, pid)
                    for sock in held:
                        echo(sock)
                    # Its report comes after it has seen the old one's end, and closed what led there.
                    reported = where.path / f"{pid}.json"
                    os.kill(pid, signal.SIGUSR1)
                    wait_until(lambda reported=reported: reported.exists() and reported.stat().st_size, "it reports")
                    counts.append(sorted(map(support.descriptors_of, server.group())))
                self.assertEqual(counts, [counts[0]] * 4)
            end(server, where, pid)


if __name__ == "__main__":
    unittest.main()
