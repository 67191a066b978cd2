"""Tests of c10k-server from outside: what it echoes, to whom, and how many at once.

What --list names is tested: a new strategy, loop or method needs no line here. How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_serving.Hold

C10K_ONLY=REGEX picks shapes by their name, C10K_LOOP=NAME the loop of all pools, C10K_TIMES=1 prints how long each
took."""

from __future__ import annotations

import contextlib
import random
import select
import signal
import socket
import sys
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    Server,
    Shape,
    all_shapes,
    connect,
    connections,
    echo,
    ended,
    for_each,
    loop_shapes,
    reset,
    run_client,
    scaled,
    wait_until,
    close_all,
    totals_of,
)

PATTERN = random.Random(1).randbytes(1 << 20)  # a seed, so that a failure can be repeated


class Hold(unittest.TestCase):
    """Ten thousand connections at once, which the project is named after; of a process for each, two hundred, as a
    machine may take 10 ms of CPU for its start and its end. (With ten thousand: experiments/run_matrix quick.)"""

    # What holds them is a loop, of a strategy or of the workers, or the acceptor. A method holds what is on its way:
    # the others need more than its 1024 places, and than the 1024 descriptors of an fd_set in each of two workers.
    PASSING = 2_500

    @for_each(all_shapes)
    def test_all_connections_are_held_and_echo(self, shape: Shape) -> None:
        fork = shape.strategy == "fork"
        passing = shape.pool and shape.method != "scm-seqpacket" and not shape.connections_stay
        count = scaled(200 if fork else self.PASSING if passing else 10_000, 200 if fork else 1000)
        with shape.start() as server:
            code, result, err = run_client(
                server.target,
                *("--workload", "hold", "--connections", str(count), "--duration", "1", "--requests", "1000"),
                *("--timeout", str(scaled(20, 60))),
            )
            self.assertEqual(code, 0, f"{err}; {server.report()['books']}" if code else err)
            self.assertEqual(result["peak_connections"], count)
            self.assertEqual(result["outcomes"]["echoed"], result["attempts"])
            self.assertEqual(result["errors"], {})
            report = server.finish().report
        books = report["books"]
        self.assertEqual(books["accepted"], count)
        self.assertEqual((books["lost"], books["shed"], books["active"]), (0, 0, 0))
        self.assertEqual(report["totals"]["echoes"], result["attempts"])
        self.assertEqual(report["totals"]["bytes"], 20 * result["attempts"])
        self.assertEqual(report["worker_deaths"], 0)


class Loops(unittest.TestCase):
    @for_each(loop_shapes)
    def test_every_loop_with_every_method(self, shape: Shape) -> None:
        with shape.start() as server:
            for _ in range(3):  # the numbers of those that have ended are used again
                with connections(server.address, 32) as socks:
                    for sock in socks:
                        sock.sendall(b"hello")
                    for sock in socks:
                        self.assertEqual(support.receive_exactly(sock, 5), b"hello")
                        echo(sock)
            report = server.finish().report
        self.assertEqual(report["options"]["loop"], shape.options[-1])
        self.assertEqual(report["totals"]["echoes"], 2 * 96)
        self.assertEqual(report["books"]["served"], 96)


class Bytes(unittest.TestCase):
    """What clients can do with a connection (fault 17), and that others do not notice."""

    def exchange(self, sock: socket.socket, data: bytes) -> bytes:
        """Sends and receives at the same time."""
        sock.setblocking(False)
        poller = select.poll()
        poller.register(sock, select.POLLIN | select.POLLOUT)
        sent, got = 0, bytearray()
        while len(got) < len(data):
            events = poller.poll(BOUND_S * 1000)
            self.assertTrue(events, f"silence after {sent} bytes out, {len(got)} in")
            if events[0][1] & select.POLLOUT and sent < len(data):
                sent += sock.send(memoryview(data)[sent : sent + 65_536])
                if sent == len(data):
                    poller.modify(sock, select.POLLIN)
            if events[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR):
                chunk = sock.recv(65_536)
                self.assertTrue(chunk, f"end of stream after {len(got)} bytes")
                got += chunk
        sock.settimeout(BOUND_S)
        return bytes(got)

    @for_each(all_shapes)
    def test_every_byte_until_the_end(self, shape: Shape) -> None:
        with shape.start() as server:
            for part in (self.byte_for_byte, self.half_closed, self.urgent_bytes, self.resets_harm_nobody_else):
                with self.subTest(part=part.__name__):
                    part(server)
            report = server.finish().report
        self.assertEqual(report["worker_deaths"], 0)
        self.assertEqual(report["books"]["lost"], 0)

    def byte_for_byte(self, server: Server) -> None:
        large = 2
        with connections(server.address, 4) as socks:
            for number, sock in enumerate(socks):
                echo(sock)
                for value in b"one at a time\0\xff":
                    echo(sock, bytes([value]))
                if number < large:
                    self.assertEqual(self.exchange(sock, PATTERN), PATTERN)
                echo(sock)
            with connect(server.address) as silent:  # says nothing, and is no hindrance
                echo(socks[0])
                self.assertFalse(support.readable(silent, 0))
        totals = wait_until(lambda: now if (now := totals_of(server))["finished"] == 5 else {}, "all have ended")
        self.assertEqual(totals["bytes"], 4 * (20 + 15 + 20) + (large << 20) + 20)
        self.assertEqual(totals["errors"], {})

    def half_closed(self, server: Server) -> None:
        """It gets everything, and then the end."""
        before = server.report()["books"]["served"]
        with connections(server.address, 3) as (small, large, empty):
            small.sendall(b"last words")
            small.shutdown(socket.SHUT_WR)
            self.assertEqual(support.receive_exactly(small, 11), b"last words")
            empty.shutdown(socket.SHUT_WR)
            self.assertTrue(ended(empty))
            large.sendall(PATTERN[:200_000])
            large.shutdown(socket.SHUT_WR)
            self.assertEqual(support.receive_exactly(large, 200_001), PATTERN[:200_000])
            wait_until(lambda: server.report()["books"]["served"] == before + 3, "all three are served")

    def urgent_bytes(self, server: Server) -> None:
        """They stay in the stream."""
        with connect(server.address) as sock:
            echo(sock)
            for _ in range(10):
                sock.sendall(b"before")
                sock.send(b"U", socket.MSG_OOB)
                sock.sendall(b"behind")
                self.assertEqual(support.receive_exactly(sock, 13), b"beforeUbehind")

    def resets_harm_nobody_else(self, server: Server) -> None:
        with connect(server.address) as other:
            echo(other)
            server.stop_group()
            for _ in range(10):  # gone before they are accepted
                reset(connect(server.address))
            server.signal_group(signal.SIGCONT)
            for _ in range(10):  # in the middle of an exchange
                sock = connect(server.address)
                echo(sock)
                sock.sendall(PATTERN[:100_000])
                reset(sock)
            for _ in range(10):  # with its echo on the way
                sock = connect(server.address)
                sock.sendall(PATTERN[:1000])
                reset(sock)
            echo(other)
            with connections(server.address, 4) as socks:
                for sock in socks:
                    echo(sock)

    @for_each(all_shapes)
    def test_slow_readers_and_busy_writers(self, shape: Shape) -> None:
        with shape.start(workers=1) as server:
            for part in (self.slow_reader_costs_bounded_memory, self.busy_writer_does_not_starve_others):
                with self.subTest(part=part.__name__):
                    part(server)
            server.finish()

    def slow_reader_costs_bounded_memory(self, server: Server) -> None:
        most = 64 << 20
        with connect(server.address) as other, socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)  # the kernel keeps less for the server
            slow.settimeout(BOUND_S)
            slow.connect(server.address)
            echo(slow)
            echo(other)
            before = sum(map(support.rss_bytes, server.group()))
            slow.setblocking(False)
            writable = select.poll()
            writable.register(slow, select.POLLOUT)
            sent = 0
            # Nothing announces that a server has stopped taking; too early a guess only makes it easier.
            while sent < most and writable.poll(200):
                offset = sent % len(PATTERN)
                with contextlib.suppress(BlockingIOError):
                    sent += slow.send(memoryview(PATTERN)[offset : offset + 65_536])
            self.assertLess(sent, most, "the server took everything from a client that reads nothing")
            for _ in range(20):
                echo(other)
            grown = sum(map(support.rss_bytes, server.group())) - before
            self.assertLess(grown, scaled(4, 32) << 20, "bytes")
            slow.settimeout(BOUND_S)
            slow.shutdown(socket.SHUT_WR)
            received = 0
            while chunk := slow.recv(1 << 20):
                offset = received % len(PATTERN)
                expected = (PATTERN[offset:] + PATTERN[: max(0, offset + len(chunk) - len(PATTERN))])[: len(chunk)]
                if chunk != expected:
                    self.fail(f"wrong bytes behind {received}")
                received += len(chunk)
            self.assertEqual(received, sent)

    def busy_writer_does_not_starve_others(self, server: Server) -> None:
        with connections(server.address, 2) as (busy, other):
            flowing, enough = threading.Event(), threading.Event()

            def write() -> None:
                with contextlib.suppress(OSError):
                    while not enough.is_set():
                        busy.sendall(PATTERN)

            def read() -> None:
                received = 0
                with contextlib.suppress(OSError):
                    while chunk := busy.recv(1 << 20):
                        received += len(chunk)
                        if received > 1 << 20:
                            flowing.set()

            threads = [threading.Thread(target=write), threading.Thread(target=read)]
            for thread in threads:
                thread.start()
            try:
                self.assertTrue(flowing.wait(BOUND_S))
                times = []
                for _ in range(20):
                    began = time.monotonic()
                    echo(other)
                    times.append(time.monotonic() - began)
            finally:
                enough.set()
                busy.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    thread.join()
            # One or two may meet a busy machine; who is starved waits each time.
            self.assertLess(sorted(times)[-3], 1, "seconds for an echo beside a busy connection")


class CloseAfterEcho(unittest.TestCase):
    """What the original experiment's client does."""

    @for_each(all_shapes)
    def test_one_echo_then_the_end(self, shape: Shape) -> None:
        with shape.start("--close-after-echo") as server:
            for size in (1, 20, 32):
                with connect(server.address) as sock:
                    echo(sock, PATTERN[:size])
                    self.assertEqual(sock.recv(1), b"", "an orderly end, not a reset")
            with connections(server.address, 32) as socks:
                for sock in socks:
                    sock.sendall(PATTERN[:20])
                for sock in socks:
                    self.assertEqual(support.receive_exactly(sock, 21), PATTERN[:20])
            self.assertEqual(server.finish().report["books"]["served"], 35)


class AcceptQueue(unittest.TestCase):
    """Fault 10. The overflow counter belongs to the network namespace: nothing else may run meanwhile."""

    def storm(self, server: Server, count: int) -> list[socket.socket]:
        """Connects while nobody can accept: what the queue does is decided by its length alone."""
        server.stop_group()
        socks = []
        for _ in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect_ex(server.address)
            socks.append(sock)
        server.signal_group(signal.SIGCONT)
        return socks

    @for_each(all_shapes)
    def test_a_short_queue_overflows_and_says_so(self, shape: Shape) -> None:
        with shape.start("--backlog", "4", "--accept-drain", "one", "--drain-timeout", "1") as server:
            socks = self.storm(server, 60)
            wait_until(lambda: totals_of(server)["accepted"] >= 4, "the queue is accepted")
            listener = server.report()["listener"]
            close_all(socks)
            server.finish()
        self.assertEqual(listener["queue_limit"], 4)
        self.assertGreaterEqual(listener["queue_peak"], 4)
        self.assertGreater(listener["listen_overflows"], 0)

    @for_each(all_shapes)
    def test_the_default_queue_does_not(self, shape: Shape) -> None:
        # More than 128, the common default, in each of two listeners; a process for each only as few as it takes.
        count = scaled(140, 100) if shape.strategy == "fork" else 320
        with shape.start() as server:
            socks = self.storm(server, count)
            wait_until(lambda: totals_of(server)["accepted"] == count, "all are accepted")
            close_all(socks)
            listener = server.finish().report["listener"]
        self.assertEqual(listener["listen_overflows"], 0)
        self.assertEqual(listener["queue_limit"], 4096)
        self.assertGreater(listener["queue_peak"], count / 4)  # a listener per worker has its share


if __name__ == "__main__":
    unittest.main()
