"""Tests of the peers: the smallest server and client in C, CPython's queue, Node's cluster, and the matrix
that runs them. /usr/bin/python3 -m unittest tests/test_yardstick.py"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

from process_support import (
    BIN_DIR, BOUND_S, CLIENT, ROOT, SANITIZED, Program, Server, connect, connections, descriptors_of, echo, ended,
    receive_exactly, reset, run_client, run_program, stop_process,
    wait_until,
)

sys.path.insert(0, str(ROOT / "experiments"))

from matrix import peers, rows, run_cli, spec, store  # noqa: E402
from matrix_support import run_inside  # noqa: E402

MINIMAL_CLIENT = str(BIN_DIR / "minimal-client")


class Peer(Program):
    """A serving peer, ready to be connected to."""

    def __init__(self, name: str) -> None:
        # CPython leaves its listener's folder when it is killed.
        super().__init__(peers.SERVERS[name].command(BIN_DIR), environment=lambda folder: {"TMPDIR": folder})
        match = re.fullmatch(r"listening (127\.0\.0\.1):(\d+)\n", self.read_line())
        if match is None:
            self.close()
            raise AssertionError(f"{name}: {self.out!r}; stderr: {self.err_text()}")
        self.address = (match[1], int(match[2]))
        self.target = f"{match[1]}:{match[2]}"

    def __enter__(self) -> Peer:
        return self


def for_each_server(test: Callable[[Any, str], None]) -> Callable[[unittest.TestCase], None]:
    def run(self: unittest.TestCase) -> None:
        for name, server in peers.SERVERS.items():
            with self.subTest(server=name):
                if missing := server.missing(BIN_DIR):
                    self.skipTest(missing)
                test(self, name)

    return run


class Servers(unittest.TestCase):
    _peers: dict[str, Peer] = {}

    def peer(self, name: str) -> Peer:
        """One for the tests that leave it as it was: Node takes longer to start than they do."""
        if name not in self._peers:
            self._peers[name] = Peer(name)
            self.addClassCleanup(self._peers[name].close)
        return self._peers[name]

    @for_each_server
    def test_echoes_all_loads_and_ends_well(self, name: str) -> None:
        with Peer(name) as server:
            for options in (
                ("--workload", "crr", "--connections", "64", "--requests", "300"),
                ("--workload", "rr", "--connections", "8", "--payload", "300000", "--requests", "80"),
                ("--workload", "hold", "--connections", "300", "--requests", "300"),
            ):
                code, result, err = run_client(server.target, *options, "--timeout", "20", "--duration", "20")
                self.assertEqual(code, 0, err)
                self.assertEqual(result["outcomes"]["echoed"], result["attempts"])
                self.assertGreaterEqual(result["attempts"], 80)
            server.signal(signal.SIGTERM)
            code, _, err = server.wait()
            self.assertEqual((code, err), (0, ""))

    @for_each_server
    def test_who_does_not_read_stops_nobody_and_loses_nothing(self, name: str) -> None:
        # More than all socket buffers hold: of the server up to 4 and 6 MiB (tcp_wmem and tcp_rmem), of ours 1 MiB.
        data = bytes(range(256)) * (64 << 10)
        server = self.peer(name)
        with socket.socket() as lazy, connect(server.address) as other:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                lazy.setsockopt(socket.SOL_SOCKET, option, 256 << 10)  # and the kernel doubles it
            lazy.settimeout(BOUND_S)
            lazy.connect(server.address)
            sender = threading.Thread(target=lambda: (lazy.sendall(data), lazy.shutdown(socket.SHUT_WR)))
            sender.start()
            for _ in range(100):
                echo(other)
            self.assertTrue(sender.is_alive(), "the buffers took it all: this proves nothing")
            self.assertTrue(receive_exactly(lazy, len(data)) == data)
            self.assertTrue(ended(lazy))
            sender.join(BOUND_S)
            self.assertFalse(sender.is_alive())

    @for_each_server
    def test_an_end_of_file_behind_the_data_is_seen(self, name: str) -> None:
        # All of it is there before the server looks: one edge for the connection, the data and its end.
        server = self.peer(name)
        processes = server.group()
        for pid in processes:
            stop_process(pid)
        with connect(server.address) as sock:
            sock.sendall(b"all at once")
            sock.shutdown(socket.SHUT_WR)
            for pid in processes:
                os.kill(pid, signal.SIGCONT)
            self.assertEqual(receive_exactly(sock, 100), b"all at once")

    def test_the_smallest_server_keeps_no_descriptor(self) -> None:
        with Peer("minimal-server") as server:
            echo_once = connect(server.address)
            echo(echo_once)
            before = descriptors_of(server.pid) - 1
            with connections(server.address, 200) as socks:
                for sock in socks:
                    echo(sock)
                self.assertEqual(descriptors_of(server.pid), before + 201)
                for sock in socks[:100]:
                    reset(sock)
            echo_once.close()
            wait_until(lambda: descriptors_of(server.pid) == before, "all descriptors are closed")

    def test_bad_usage_is_one_line(self) -> None:
        for command in ([str(BIN_DIR / "minimal-server"), "what"], [MINIMAL_CLIENT],
                        [MINIMAL_CLIENT, "127.0.0.1:1", "0", "1"], [MINIMAL_CLIENT, "127.0.0.1:1", "x", "1"],
                        [MINIMAL_CLIENT, "10.0.0.1:1", "1", "1"], [MINIMAL_CLIENT, "127.0.0.1:1", "1", "nan"]):
            code, out, err = run_program(*command)
            self.assertEqual((code, out, err.count("\n")), (2, "", 1), command)


class FakeServer:
    """Takes one connection after the other and answers each with answer(request)."""

    def __init__(self, answer: Callable[[bytes], bytes], in_parts: bool = False) -> None:
        self._in_parts = in_parts
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._answer = answer
        self.requests: list[bytes] = []
        self.sources: set[str] = set()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                sock, source = self._listener.accept()
            except OSError:
                return
            with sock:
                self.sources.add(source[0])
                request = receive_exactly(sock, 20)
                self.requests.append(request)
                answer = self._answer(request)
                if answer:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for part in [bytes([byte]) for byte in answer] if self._in_parts else [answer]:
                        sock.sendall(part)
                    sock.recv(1)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # close alone would not wake accept
        self._thread.join(BOUND_S)
        self._listener.close()


class Client(unittest.TestCase):
    def run_minimal(self, target: str, connections: int, seconds: float) -> tuple[int, dict[str, Any], str]:
        code, out, err = run_program(MINIMAL_CLIENT, target, str(connections), str(seconds))
        return code, json.loads(out) if out else {}, err

    def test_its_count_is_the_servers(self) -> None:
        with Server("--strategy", "epoll") as server:
            code, result, err = self.run_minimal(server.target, 64, 0.5)
            done = server.finish()
        self.assertEqual((code, result["faults"], err), (0, 0, ""))
        self.assertGreater(result["connections"], 64)
        self.assertEqual(done.report["totals"]["accepted"], result["connections"])
        self.assertEqual(done.report["totals"]["echoes"], result["connections"])
        self.assertTrue(done.report["books"]["balanced"])
        self.assertGreaterEqual(result["elapsed_s"], 0.5)
        self.assertGreater(result["system_us"], 0)

    def test_every_stamp_is_fresh_and_sources_take_turns(self) -> None:
        with FakeServer(lambda request: request) as server:
            code, result, _ = self.run_minimal(server.target, 8, 2)
            self.assertEqual((code, result["faults"]), (0, 0))
        self.assertEqual(len(server.requests), result["connections"])
        self.assertEqual(len(set(server.requests)), len(server.requests))
        for request in server.requests:
            self.assertRegex(request, rb"^\d{20}$")
        self.assertEqual(server.sources, {f"127.0.0.{i}" for i in range(1, 17)})

    def test_each_byte_of_the_echo_counts(self) -> None:
        for wrong in (lambda request: b"x" + request[1:], lambda request: request[:19] + b"x",
                      lambda request: request + b"x", lambda request: b""):
            with FakeServer(wrong) as server:
                code, result, _ = self.run_minimal(server.target, 3, 5)
            # A slot that failed rests, so this ends long before its time.
            self.assertEqual((code, result["connections"], result["faults"]), (1, 0, 3))
            self.assertLess(result["elapsed_s"], 5)

    def test_an_echo_in_parts_is_right(self) -> None:
        with FakeServer(lambda request: request, in_parts=True) as server:
            code, result, _ = self.run_minimal(server.target, 1, 0.3)
        self.assertEqual((code, result["connections"], result["faults"]), (0, len(server.requests), 0))
        self.assertGreater(len(server.requests), 0)

    def test_silence_and_nobody_end_it(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            target = f"127.0.0.1:{silent.getsockname()[1]}"
            code, result, _ = self.run_minimal(target, 4, 1)
            self.assertEqual((code, result["connections"], result["faults"]), (1, 0, 4))
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))  # it does not listen, and nobody else gets the port
            code, result, err = self.run_minimal("{}:{}".format(*bound.getsockname()), 4, 1)
        self.assertEqual((code, result.get("connections", 0)), (1, 0), err)


class Calls(unittest.TestCase):
    """By itself, as who is busy with something else makes others ask twice."""

    @unittest.skipIf(SANITIZED, "leaks cannot be looked for under strace")
    @unittest.skipUnless(shutil.which("strace"), "strace is not installed")
    def test_it_makes_the_same_calls_as_c10k_client(self) -> None:
        calls = "socket,setsockopt,bind,connect,sendto,sendmsg,recvfrom,epoll_ctl,close,clock_gettime"

        def counted(target: str, *command: str) -> dict[str, float]:
            with tempfile.TemporaryDirectory(prefix="c10k-test-") as folder:
                path = Path(folder) / "calls"
                code, _, err = run_program("strace", "-f", "-c", "-o", str(path), "-e", f"trace={calls}", *command)
                self.assertEqual(code, 0, err)
                found = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+)(?: +\d+)? (\w+)$", path.read_text(), re.MULTILINE)
            counts = {name: int(count) for count, name in found if name != "total"}
            # What a program does once (start, signals, its report) is below a tenth per connection.
            self.assertGreater(counts["connect"], 100)
            return {name: round(count / counts["connect"], 1) for name, count in counts.items()
                    if count / counts["connect"] >= 0.1}

        with Peer("minimal-server") as server:
            # Of few connections few are under way at the end, which would count as calls that are missing.
            minimal = counted(server.target, MINIMAL_CLIENT, server.target, "4", "1")
            ours = counted(server.target, CLIENT, "--target", server.target, "--workload", "crr",
                           "--connections", "4", "--duration", "1", "--progress", "off")
        self.assertEqual(minimal, ours)
        self.assertEqual(set(minimal.values()), {1.0})


MATRIX = """
schema = "c10k-matrix/1"
summary = "for tests"
repetitions = 3
baseline = "minimal"
[server]
[[server.way]]
name = "minimal"
argv = ["--strategy", "epoll"]
client = "minimal-client"
[[server.way]]
name = "ours"
argv = ["--strategy", "epoll"]
[[server.way]]
name = "floor"
peer = "minimal-server"
[[workload]]
name = "crr"
kind = "crr"
figure = "client-cpu"
summary = "short"
client = ["--engine", "epoll", "--connections", "16", "--duration", "0.2"]
limit_s = 20
expected_s = 0.3
"""


class Matrix(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="c10k-test-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def command(self, text: str, programs: Path = BIN_DIR) -> list[str]:
        (self.folder / "test.toml").write_text(text)
        return [str(ROOT / "experiments" / "run_matrix"), str(self.folder / "test.toml"), "--bin-dir", str(programs),
                "--output", str(self.folder / "run")]

    def test_peers_are_rows_like_all_others(self) -> None:
        code, shown, err = run_program(*self.command(MATRIX), bound_s=2 * BOUND_S)
        self.assertEqual(code, 0, err)
        run = store.load(self.folder / "run")
        section = rows.sections(run)[0]
        found = {row.way: row for row in section.rows}
        for row in found.values():
            # The kernel counts overflows for the whole machine, and other tests run beside this one.
            own_faults = row.faults - row.queue_overflows
            self.assertEqual((row.status, row.repetitions, own_faults), ("ok", 3, 0), rows.faults_text(row))
            self.assertGreater(row.median, 1)
            self.assertGreater(row.worker_cpu_us, 1)
            # Within a factor that only a wrong unit or a wrong count exceeds.
            self.assertTrue(0.1 < row.ratio < 10, row)
            low, high = row.ratio_interval
            self.assertTrue(low <= row.ratio <= high, row)
        programs = {(cell["way"], cell["server_program"], cell["client_program"]) for cell in run.cells}
        self.assertEqual(programs, {("minimal", "c10k-server", "minimal-client"),
                                    ("ours", "c10k-server", "c10k-client"),
                                    ("floor", "minimal-server", "c10k-client")})
        self.assertRegex(shown, r"ours .* \d\.\d\d[~ ]±\d+%")

    def test_a_peer_that_is_missing_is_a_row_with_its_reason(self) -> None:
        for name in ("c10k-server", "c10k-client", "minimal-client"):
            (self.folder / name).symlink_to(BIN_DIR / name)
        run_program(*self.command(MATRIX.replace("repetitions = 3", "repetitions = 1"), self.folder))
        cell = next(cell for cell in store.load(self.folder / "run").cells if cell["way"] == "floor")
        self.assertEqual((cell["status"], cell["reason"]), ("unsupported", "minimal-server is not installed"))

    def test_wrong_peers_are_one_line(self) -> None:
        for wrong, says in (
            (MATRIX.replace('"minimal-server"', '"no-server"'), "no-server"),
            (MATRIX.replace('"minimal-client"', '"no-client"'), "no-client"),
            (MATRIX.replace('kind = "crr"', 'kind = "rr"'), "cannot do rr"),
        ):
            done = run_inside(run_cli.main, *self.command(wrong)[1:])
            self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1), done.stderr)
            self.assertIn(says, done.stderr)

    def test_the_matrices_that_come_with_the_project_load(self) -> None:
        for name in ("yardstick", "peers"):
            matrix = spec.load(name)
            self.assertIn(matrix.baseline, [way.name for way in matrix.ways])


if __name__ == "__main__":
    unittest.main()
