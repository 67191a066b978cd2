"""What the tests of upgrades share: generations of a server, clients that go on meanwhile, and a successor that
speaks the protocol (acceptor/upgrade_words.hpp) and is as wrong as a test wants it to be."""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import process_support as support
from process_support import CLIENT, Program, Server, wait_until

LONG = ("--drain-timeout", "600")


class Place:
    """A folder for a control socket and reports."""

    def __init__(self, name: str) -> None:
        self.path = Path(name)
        self.control = str(self.path / "control")
        self.here = ("--control", self.control)
        self.take = ("--take-over", self.control)

    def generations(self) -> dict[str, Any]:
        """What a server is started with whose successors, by SIGHUP, are of its group."""
        return {"report": str(self.path / "%p.json"), "guarded": True}

    def report_of(self, pid: int) -> dict[str, Any]:
        return json.loads((self.path / f"{pid}.json").read_text())


@contextlib.contextmanager
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="c10k-test-") as name:
        yield Place(name)


def begin_load(server: Server) -> Program:
    """Clients that connect, have one echo and close, over and over; they have begun. Some come in every
    moment of a take-over, and leave it a processor; at most four at once, as not every way keeps up with the rate."""
    how_often = ("--connections", "4", "--rate", "400", "--duration", "600")
    load = Program([CLIENT, "--target", server.target, *how_often, "--json", "-"])
    wait_until(lambda: server.report()["books"]["accepted"] > 10 or load.has_ended(), "clients come")
    return load


def end_load(load: Program) -> None:
    """None of them has failed."""
    load.signal(signal.SIGINT)
    _, out, err = load.wait()
    outcomes = json.loads(out)["outcomes"]
    assert not any(count for name, count in outcomes.items() if name != "echoed"), (outcomes, err)
    assert outcomes["echoed"] > 10, outcomes


def sighup(server: Server, pid: int) -> None:
    """Upgrades the generation `pid`; returns when the next one is ready."""
    os.kill(pid, signal.SIGHUP)
    line = server.read_line()
    assert line == f"listening {server.target}\n", (line, server.err_text())


def successor_of(server: Server, pid: int) -> int:
    """The acceptor of the generation that has taken `pid` over, which ends: then the only process of the group whose
    parent is no member."""
    wait_until(lambda: support.state_of(pid) in ("", "Z"), f"the old one (process {pid}) ends")

    def orphans() -> list[int]:
        members = server.group()
        return [pid for pid in members if (fields := support.stat_of(pid)) and int(fields[1]) not in members]

    return wait_until(lambda: found[0] if len(found := orphans()) == 1 else 0, "one generation is left")


def end(server: Server, where: Place, pid: int) -> dict[str, Any]:
    """Ends the last generation; its books balance."""
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not server.group(), "all generations have ended")
    err = server.err_text()
    assert "Sanitizer" not in err and "runtime error" not in err, err
    report = where.report_of(pid)
    books = report["books"]
    assert books["balanced"] and books["active"] == books["in_hand_off"] == books["lost"] == 0, books
    return report


MESSAGE = struct.Struct("=IHHQQ232s")  # Message
MAGIC, VERSION = 0x72653163, 1
HELLO, OFFER, REFUSAL, READY, RETIRING, LEFT, ADOPTED = range(7)


class Predecessor:
    """A running server, as its successor sees it."""

    def __init__(self, control: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(support.BOUND_S)
        self.socket.connect(control)
        self.how = b""
        self.descriptors: list[int] = []

    def say(self, word: int, first: int = 0, second: int = 0, text: bytes = b"") -> None:
        self.socket.send(MESSAGE.pack(MAGIC, VERSION, word, first, second, text))

    def hear(self) -> tuple[int, int, bytes]:
        data = self.socket.recv(4096)
        if not data:
            return -1, 0, b""
        _, _, word, first, _, text = MESSAGE.unpack(data)
        return word, first, text.rstrip(b"\0")

    def receive_descriptors(self) -> int:
        """How many came with the next frame."""
        data, control, _, _ = self.socket.recvmsg(16384, socket.CMSG_SPACE(256 * 4))
        fds = array.array("i")
        for _, _, content in control:
            fds.frombytes(content)
        self.descriptors += fds
        return len(fds) if data else -1

    def hello(self) -> int:
        """How many descriptors were offered, which are here now."""
        self.say(HELLO)
        word, count, self.how = self.hear()
        assert word == OFFER, (word, self.how)
        assert self.receive_descriptors() == count
        return count

    def close(self) -> None:
        self.socket.close()
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = []

    def __enter__(self) -> Predecessor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


FRAME = struct.Struct("=II")  # ScmFrame, and a ConnectionTag for each descriptor
FRAME_MAGIC, TAG_BYTES = 0x6B303163, 24


def heard(peer: socket.socket) -> tuple[int, bytes]:
    """A successor's next word, and its text."""
    peer.settimeout(support.BOUND_S)
    _, _, word, _, _, text = MESSAGE.unpack(peer.recv(4096))
    return word, text.rstrip(b"\0")


def offer(peer: socket.socket, listeners: list[socket.socket]) -> None:
    """What a running server answers to a successor's first word: it has what that one would have."""
    word, how = heard(peer)
    assert word == HELLO, word
    peer.send(MESSAGE.pack(MAGIC, VERSION, OFFER, len(listeners), 0, how))
    frame = FRAME.pack(FRAME_MAGIC, len(listeners)) + bytes(TAG_BYTES * len(listeners))
    socket.send_fds(peer, [frame], [listener.fileno() for listener in listeners])


def said(server: Server, words: str, times: int = 1) -> None:
    wait_until(lambda: server.err_text().count(words) >= times, f"it says {words!r}: {server.err_text()}")
