"""Tests of c10k-client as a whole: what it counts against servers that misbehave, and what it prints.

  C10K_BIN_DIR=build/release /usr/bin/python3 -m unittest -v tests/test_client.py"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fault_support import client_ends  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    CLIENT,
    Address,
    Program,
    Server,
    readable,
    run_client,
    run_program,
    scaled,
    totals_of,
    wait_until,
)

OUTCOMES = ("echoed", "mismatched", "refused", "reset", "eof", "timeout", "local_error")

Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(do: Callable[[Item], Result], items: Iterable[Item], many: int = 6) -> list[tuple[Item, Future[Result]]]:
    """What do() makes of each, so many at a time: for what mostly waits. A program dies with the thread that started
    it, so do() ends those that it starts."""
    with ThreadPoolExecutor(many) as pool:
        return [(item, pool.submit(do, item)) for item in items]


@functools.cache
def allowed(option: str) -> list[str]:
    """The names that an option takes, as its error tells them."""
    _, _, err = run_program(CLIENT, f"--{option}", "no-such-name")
    match = re.search(r"allowed: ([\w, -]+) \(", err)
    assert match is not None, err
    return match[1].split(", ")


Behaviour = Callable[[socket.socket, bytes], bool]
"""Gets a connection and what came on it; returns whether to keep the connection."""


class BadServer:
    """A server that treats every connection as it is told, on one thread."""

    def __init__(self, behave: Behaviour) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address: Address = self._listener.getsockname()
        self.target = "{}:{}".format(*self.address)
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            kept: set[socket.socket] = set()
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        for sock in kept:
                            sock.close()
                        return
                    if key.fileobj is self._listener:
                        sock, _ = self._listener.accept()
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        kept.add(sock)
                        selector.register(sock, selectors.EVENT_READ)
                        continue
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    with contextlib.suppress(ConnectionError):
                        data = sock.recv(65_536)
                        if data and self._behave(sock, data):
                            continue
                    selector.unregister(sock)
                    kept.discard(sock)
                    sock.close()

    def __enter__(self) -> BadServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for sock in (self._listener, self._wake, self._woken):
            sock.close()


def good(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(data)
    return True


def wrong_byte(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(data[:-1] + bytes([data[-1] ^ 1]))
    return True


def too_much(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(data + b"!")
    return True


def yesterdays(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(b"0" * len(data))
    return True


def close_early(sock: socket.socket, data: bytes) -> bool:
    return False


def close_in_the_middle(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(data[: len(data) // 2])
    return False


def reset_it(sock: socket.socket, data: bytes) -> bool:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def silent(sock: socket.socket, data: bytes) -> bool:
    return True


def half_and_silent(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(data[: len(data) // 2])
    return True


def in_pieces(sock: socket.socket, data: bytes) -> bool:
    for value in data:
        sock.sendall(bytes([value]))
    return True


class Books(unittest.TestCase):
    def check_sums(self, result: dict[str, Any]) -> None:
        self.assertEqual(set(result["outcomes"]), set(OUTCOMES))
        self.assertEqual(sum(result["outcomes"].values()), result["attempts"])
        self.assertTrue(result["totals_add_up"])
        self.assertEqual(result["latency"]["count"], result["outcomes"]["echoed"])

    def against(self, behave: Behaviour, engine: str, *options: str) -> tuple[int, dict[str, Any], str]:
        with BadServer(behave) as server:
            code, result, err = run_client(server.target, "--engine", engine, "--duration", str(BOUND_S), *options)
        self.check_sums(result)
        return code, result, err

    def test_each_failure_is_counted_as_what_it_is(self) -> None:
        for engine in allowed("engine"):
            for behave, outcome in [
                (wrong_byte, "mismatched"),
                (too_much, "mismatched"),
                (yesterdays, "mismatched"),
                (close_early, "eof"),
                (close_in_the_middle, "eof"),
                (reset_it, "reset"),
            ]:
                with self.subTest(engine=engine, behave=behave.__name__):
                    code, result, err = self.against(behave, engine, "--connections", "2", "--requests", "10")
                    self.assertEqual((code, err.count("\n")), (1, 1), err)
                    self.assertIn(outcome, err)
                    self.assertEqual(result["outcomes"][outcome], 10, result["outcomes"])
                    self.assertEqual(result["attempts"], 10)

    def test_silence_is_a_timeout_after_its_time(self) -> None:
        def run(what: tuple[str, Behaviour]) -> tuple[int, dict[str, Any], str, float]:
            began = time.monotonic()
            options = ("--connections", "2", "--requests", "4", "--timeout", "0.3")
            return *self.against(what[1], what[0], *options), time.monotonic() - began

        runs = [(engine, behave) for engine in allowed("engine") for behave in (silent, half_and_silent)]
        for (engine, behave), ran in at_once(run, runs):
            with self.subTest(engine=engine, behave=behave.__name__):
                code, result, err, took = ran.result()
                self.assertEqual((code, err.count("\n")), (1, 1), err)
                self.assertEqual(result["outcomes"]["timeout"], result["attempts"])
                self.assertEqual(result["attempts"], 4)
                self.assertGreaterEqual(took, 0.6)
                self.assertLess(took, 10)

    def test_a_held_run_against_silence_ends(self) -> None:
        # One timeout after the other would take longer than it may. (Of the engine `processes`, as many processes.)
        count = str(scaled(80, 50))
        for engine in allowed("engine"):
            with self.subTest(engine=engine):
                began = time.monotonic()
                code, result, _ = self.against(
                    silent, engine, "--workload", "hold", "--connections", count, "--timeout", "0.3"
                )
                self.assertEqual(code, 1)
                self.assertGreater(result["outcomes"]["timeout"], 0)
                self.assertLess(time.monotonic() - began, scaled(20, BOUND_S))

    def test_a_connection_lost_while_held_is_told(self) -> None:
        for engine in allowed("engine"):
            with self.subTest(engine=engine):
                count = 0

                def drops_every_tenth(sock: socket.socket, data: bytes) -> bool:
                    nonlocal count
                    count += 1
                    sock.sendall(data)
                    return count > 20 or count % 10 != 0

                code, result, err = self.against(
                    drops_every_tenth,
                    *(engine, "--workload", "hold", "--connections", "20", "--active", "1"),
                    *("--requests", "20", "--timeout", "5"),
                )
                self.assertEqual(code, 1, err)
                self.assertEqual(result["outcomes"]["eof"] + result["outcomes"]["reset"], 2, result["outcomes"])
                self.assertEqual(result["outcomes"]["echoed"], result["attempts"] - 2)

    def test_an_echo_in_pieces_is_an_echo(self) -> None:
        for engine in allowed("engine"):
            for workload in allowed("workload"):
                with self.subTest(engine=engine, workload=workload):
                    code, result, err = self.against(
                        in_pieces, engine, "--workload", workload, "--connections", "2", "--requests", "6"
                    )
                    self.assertEqual(code, 0, err)
                    self.assertEqual(result["outcomes"]["echoed"], result["attempts"])

    def test_close_by_server_wants_the_end(self) -> None:
        def closes(sock: socket.socket, data: bytes) -> bool:
            sock.sendall(data)
            return False

        for engine in allowed("engine"):
            with self.subTest(engine=engine):
                options = (engine, "--close-by", "server", "--connections", "2", "--requests", "4")
                code, result, err = self.against(closes, *options)
                self.assertEqual((code, result["outcomes"]["echoed"]), (0, 4), err)
                code, result, err = self.against(good, *options, "--timeout", "0.3")
                self.assertEqual((code, result["outcomes"]["timeout"]), (1, 4), err)
                code, result, err = self.against(too_much, *options)
                self.assertEqual((code, result["outcomes"]["mismatched"]), (1, 4), err)

    def test_a_refusing_port_ends_it_quickly(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))  # it does not listen, and nobody else gets the port
            target = "{}:{}".format(*bound.getsockname())
            for engine in allowed("engine"):
                for workload in allowed("workload"):
                    with self.subTest(engine=engine, workload=workload):
                        command = (CLIENT, "--target", target, "--engine", engine, "--workload", workload)
                        code, out, err = run_program(*command, "--connections", "8", "--duration", str(4 * BOUND_S))
                        self.assertEqual((code, out), (1, ""))
                        self.assertRegex(err, r"\Ac10k-client: [^\n]*refused[^\n]*\n\Z")

    def test_every_engine_and_workload_against_the_server(self) -> None:
        with Server("--strategy", "epoll") as server:
            for engine in allowed("engine"):
                for workload in allowed("workload"):
                    for payload in ("20", "100000"):
                        with self.subTest(engine=engine, workload=workload, payload=payload):
                            code, result, err = run_client(
                                server.target,
                                *("--engine", engine, "--workload", workload, "--payload", payload),
                                *("--connections", "10", "--requests", "40", "--duration", str(BOUND_S)),
                            )
                            self.assertEqual((code, err), (0, ""))
                            self.check_sums(result)
                            self.assertEqual(result["outcomes"]["echoed"], result["attempts"])
                            attempts = {"crr": 40, "rr": 40, "hold": 60, "storm": 10}[workload]
                            self.assertEqual(result["attempts"], attempts)
                            self.assertEqual(result["errors"], {})
                            opened = result["connections_opened"]
                            if workload == "rr":  # the requests may be used up before all have begun
                                self.assertLessEqual(opened, 10)
                            else:
                                self.assertEqual(opened, 40 if workload == "crr" else 10)  # storm, hold: one each
                            if workload == "hold":
                                self.assertEqual(result["peak_connections"], 10)
            server.finish()

    def test_the_server_counts_the_same(self) -> None:
        with Server("--strategy", "epoll") as server:
            code, result, err = run_client(
                server.target, "--workload", "crr", "--connections", "16", "--duration", "0.3"
            )
            self.assertEqual(code, 0, err)
            totals = server.finish().report["totals"]
        self.assertEqual(totals["accepted"], result["connections_opened"])
        self.assertEqual(totals["echoes"], result["attempts"])
        self.assertEqual(totals["bytes"], 20 * result["attempts"])

    def test_the_end_of_the_server_is_told(self) -> None:
        options = ("--strategy", "epoll", "--drain-timeout", "0")
        for engine in allowed("engine"):
            # At an address of its own: of the ports of 127.0.0.1, a server of another test may get this one next, and
            # the client connects again.
            with self.subTest(engine=engine), Server(*options, host="127.7.7.7") as server:
                command = [CLIENT, "--target", server.target, "--engine", engine, "--workload", "rr", "--json", "-"]
                with Program([*command, "--connections", "8", "--duration", "60", "--timeout", "1"]) as client:
                    wait_until(lambda: totals_of(server)["echoes"] > 100, "it runs")
                    wait_until(lambda: totals_of(server)["active"] == 8, "all are connected")
                    address = server.address
                    server.finish()
                    # It would try to connect again to its end, so it is told to end; but not before it has seen
                    # what happened to the connections it had.
                    wait_until(lambda: not client_ends(address), "it has closed what the server closed")
                    client.signal(signal.SIGINT)
                    code, out, err = client.wait(10)
                result = json.loads(out)
                self.assertEqual(code, 1, err)
                self.check_sums(result)
                outcomes = result["outcomes"]
                self.assertEqual(outcomes["reset"] + outcomes["eof"], 8, (result, err))
                self.assertEqual(sum(outcomes.values()), outcomes["echoed"] + 8 + outcomes["refused"], outcomes)

    def test_sigint_ends_it_with_its_results(self) -> None:
        with Server("--strategy", "epoll") as server:
            for engine in allowed("engine"):
                for number in (signal.SIGINT, signal.SIGTERM):
                    with self.subTest(engine=engine, number=number):
                        before = totals_of(server)["echoes"]
                        command = [CLIENT, "--target", server.target, "--engine", engine, "--workload", "rr"]
                        command += ["--connections", "4", "--json", "-", "--duration", "600"]
                        with Program(command) as client:
                            wait_until(lambda: totals_of(server)["echoes"] > before + 100, "it runs")
                            client.signal(number)
                            code, out, err = client.wait(10)
                        self.assertEqual((code, err), (0, ""))
                        result = json.loads(out)
                        self.assertEqual(result["ended"], "interrupted")
                        self.check_sums(result)
            server.finish()


class Output(unittest.TestCase):
    def command(self, server: Server, *options: str) -> list[str]:
        return [CLIENT, "--target", server.target, "--connections", "4", "--requests", "20", *options]

    def test_json_to_stdout_is_all_there(self) -> None:
        with Server("--strategy", "epoll") as server:
            code, out, err = run_program(*self.command(server, "--json", "-"))
            self.assertEqual((code, err), (0, ""))
            result = json.loads(out)
            self.assertRegex(result["schema"], r"^c10k-client[\w-]*/\d+$")
            code, out, err = run_program(*self.command(server))
            self.assertEqual((code, err), (0, ""))
            self.assertRegex(out, r"(?m)^attempts +20: 20 echoed, 0 failed$")

    def test_json_to_a_file_leaves_the_text(self) -> None:
        with Server("--strategy", "epoll") as server, tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            path.write_text("x" * 100_000)  # what was there must be gone
            code, out, _ = run_program(*self.command(server, "--json", str(path)))
            self.assertEqual(code, 0)
            self.assertIn("20 echoed", out)
            self.assertEqual(json.loads(path.read_text())["outcomes"]["echoed"], 20)

    def test_json_that_nobody_takes_is_a_failure(self) -> None:
        with Server("--strategy", "epoll") as server:
            code, out, err = run_program(*self.command(server, "--json", "/dev/full"))
            self.assertEqual((code, out), (1, ""))
            self.assertRegex(err, r"\Ac10k-client: [^\n]+\n\Z")

    def on_terminal(self, server: Server, *options: str) -> str:
        """What a run of over half a second writes to stderr when that is a terminal."""
        ours, theirs = pty.openpty()
        null = subprocess.DEVNULL
        try:
            with subprocess.Popen(
                [CLIENT, "--target", server.target, *options], stdin=null, stdout=null, stderr=theirs
            ) as client:
                try:
                    client.wait(BOUND_S)
                finally:
                    client.kill()
            text = b""
            while readable(ours, 0):
                text += os.read(ours, 65_536)
            return text.decode()
        finally:
            os.close(ours)
            os.close(theirs)

    # Progress needs time, not load.
    AT_EASE = ("--workload", "rr", "--connections", "4", "--rate", "100", "--duration")

    def test_progress_on_a_terminal_only(self) -> None:
        line = re.compile(r"\r\d\.\d s, rr: \d+ attempts, 0 failed, \d+ connections open")
        with Server("--strategy", "epoll") as server, ThreadPoolExecutor(6) as pool:
            shown = pool.submit(self.on_terminal, server, *self.AT_EASE, "2")
            off = pool.submit(self.on_terminal, server, *self.AT_EASE, "0.8", "--progress", "off")
            elsewhere = [
                (lines, pool.submit(run_client, server.target, *self.AT_EASE, "1.5", "--progress", progress))
                for progress, lines in (("auto", 0), ("off", 0), ("on", 1))
            ]
            self.assertGreaterEqual(len(line.findall(shown.result())), 2)
            self.assertEqual(off.result(), "")
            for lines, run in elsewhere:
                code, _, err = run.result()
                self.assertEqual(code, 0)
                self.assertGreaterEqual(len(line.findall(err)), lines)
                if not lines:
                    self.assertEqual(err, "")
            server.finish()

    def test_progress_of_every_engine_is_wiped_at_the_end(self) -> None:
        with Server("--strategy", "epoll") as server:
            runs = at_once(
                lambda engine: self.on_terminal(server, *self.AT_EASE, "0.8", "--engine", engine), allowed("engine")
            )
        for engine, run in runs:
            with self.subTest(engine=engine):
                text = run.result()
                self.assertIn("attempts", text)
                self.assertTrue(text.endswith("\r\x1b[K"), text[-60:])


class Usage(unittest.TestCase):
    def test_bad_usage(self) -> None:
        no_values = {
            "--connections": ("0", "-1", "many", "", "1.5", "99999999999999999999"),
            "--duration": ("0", "-1", "nan", "inf", "1m"),
            "--timeout": ("0", "3601"),
            "--requests": ("0", "-3"),
            "--payload": ("1048577", "1k"),
            "--sources": ("0", "255"),
            "--target": ("127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", ""),
        }
        for options, says in [
            *(((option, value), option) for option, values in no_values.items() for value in values),
            (("--no-such-option",), "no-such-option"),
            (("stray",), "argument"),
            (("--engine", "steam"), "steam.*epoll"),
            (("--engine",), "engine"),
            (("--workload", "heavy"), "heavy.*crr, rr, hold"),
            (("--connections", "1000000"), "--connections.*ulimit"),
            (("--active", "5"), "--active"),
            (("--workload", "hold", "--active", "65"), "--active.*64"),
            (("--workload", "hold", "--active", "0"), "--active"),
            (("--payload", "19"), "--payload.*20"),
            (("--target", "192.0.2.1:7", "--sources", "2"), "--sources"),
            (("--target", "no-such-host.invalid:7"), "no-such-host.invalid"),
            (("--close-by", "nobody"), "--close-by"),
            (("--close-by", "server", "--workload", "rr"), "--close-by"),
            (("--json", ""), "--json"),
            (("--json", "/no/such/folder/x.json"), "--json"),
            (("--progress", "maybe"), "--progress"),
        ]:
            with self.subTest(options=options):
                code, out, err = run_program(CLIENT, *options)
                self.assertEqual((code, out), (2, ""), err)
                self.assertRegex(err, r"\Ac10k-client: [^\n]+\n\Z")
                self.assertRegex(err, says)

    def test_limits_of_this_host(self) -> None:
        code, out, err = run_program("prlimit", "--nofile=64:64", CLIENT, "--connections", "100")
        self.assertEqual((code, out), (2, ""))
        self.assertRegex(err, r"up to 32\b.*ulimit -n 132")

    def test_help_and_version(self) -> None:
        for option, says in (("--help", "--workload"), ("--version", r"\Ac10k-client \d")):
            code, out, err = run_program(CLIENT, option)
            self.assertEqual((code, err), (0, ""))
            self.assertRegex(out, says)


if __name__ == "__main__":
    unittest.main()
