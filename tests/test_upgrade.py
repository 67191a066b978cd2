"""Tests of fault 12: a new server takes a running one over, and nobody notices.

How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_upgrade.Shapes"""

from __future__ import annotations

import array
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from process_support import (  # noqa: E402
    BIN_DIR,
    BOUND_S,
    CLIENT,
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
    listing,
    method_shapes,
    run_program,
    wait_until,
    workers_of,
)

LONG = ("--drain-timeout", "600")


def retaining_shapes() -> list[Shape]:
    """Those whose acceptor can keep a copy of a connection."""
    can = {row["name"] for row in listing()["methods"] if not row["not_retained"]}
    return [shape for shape in method_shapes() + completion_shapes() if shape.method in can]


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="c10k-test-") as name:
        yield Path(name)


@contextlib.contextmanager
def under_load(server: Server) -> Iterator[None]:
    """Clients that connect, have one echo and close, over and over: none of them fails."""
    with Program(
        [CLIENT, "--target", server.target, "--connections", "4", "--duration", "600", "--json", "-"]
    ) as load:
        accepted = server.report()["books"]["accepted"]
        wait_until(lambda: server.report()["books"]["accepted"] > accepted + 10, "clients come")
        yield
        load.signal(signal.SIGINT)
        code, out, err = load.wait()
        outcomes = json.loads(out)["outcomes"]
        assert not any(count for name, count in outcomes.items() if name != "echoed"), (outcomes, err)
        assert outcomes["echoed"] > 10, outcomes


def newest(server: Server) -> int:
    """The acceptor of the last generation, when all before it have ended: the only process of the group whose
    parent is no member."""
    members = server.group()
    (pid,) = [pid for pid in members if int((support.stat_of(pid) or ["", "0"])[1]) not in members]
    return pid


def report_of(reports: Path, pid: int) -> dict:
    return json.loads((reports / f"{pid}.json").read_text())


def end(server: Server, reports: Path) -> dict:
    """Ends the last generation of a server that was upgraded by SIGHUP; its books balance."""
    pid = newest(server)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not server.group(), "all generations have ended")
    report = report_of(reports, pid)
    books = report["books"]
    assert books["balanced"] and books["active"] == books["in_hand_off"] == 0, books
    assert "Sanitizer" not in server.err_text() and "runtime error" not in server.err_text(), server.err_text()
    return report


class Shapes(unittest.TestCase):
    """Every server shape: nobody is refused, reset or left."""

    @for_each(all_shapes)
    def test_take_over_by_path(self, shape: Shape) -> None:
        with folder() as where, shape.start(*LONG, "--control", str(where / "c")) as old:
            with under_load(old), connections(old.address, 4) as held:
                for sock in held:
                    echo(sock)
                with shape.start(*LONG, "--control", str(where / "c"), "--take-over", str(where / "c")) as new:
                    self.assertEqual(new.address, old.address)
                    for sock in held:
                        echo(sock)  # served by the old one, which drains
                    self.assertFalse(old.has_ended())
                    close_all(held)
                    report = old.finish(0).report
                    self.assertEqual(report["totals"]["closed_draining"], 0)
                    with connections(new.address, 4) as later:
                        for sock in later:
                            echo(sock)
                    self.assertEqual(os.listdir(where), ["c"])
                    # The load goes on with the new one until it is asked to end, and so a third takes over.
                    with shape.start(*LONG, "--take-over", str(where / "c")) as last:
                        new.finish(0)
                        self.assertEqual(os.listdir(where), [])
                        accepted = last.report()["books"]["accepted"]
                        wait_until(lambda: last.report()["books"]["accepted"] > accepted, "it accepts")
                        self.load_ends_before(last)

    def load_ends_before(self, last: Server) -> None:
        """Its clients are told by the end of the block; the last server must outlive them."""
        self.addCleanup(lambda: None)
        del last

    @for_each(all_shapes)
    def test_what_waits_in_the_accept_queue_is_the_successors(self, shape: Shape) -> None:
        with folder() as where, shape.start(
            *LONG, "--control", str(where / "c"), "--max-connections", "2"
        ) as old, connections(old.address, 2) as held:
            for sock in held:
                echo(sock)
            with connections(old.address, 20) as queued:
                for sock in queued:
                    sock.sendall(b"hello")
                with shape.start(*LONG, "--take-over", str(where / "c")) as new:
                    for sock in queued:
                        self.assertEqual(support.receive_exactly(sock, 5), b"hello")
                    for sock in held:
                        echo(sock)
                    close_all(held)
                    self.assertEqual(old.finish(0).report["books"]["accepted"], 2)
                    close_all(queued)
                    self.assertEqual(new.finish().report["books"]["accepted"], 20)
