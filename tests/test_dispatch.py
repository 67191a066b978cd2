"""Tests of who gets a connection, and when: dispatch policies, --hand-off-at, --service-time.

How to run one class:  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_dispatch.Dispatch"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import process_support as support  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    Server,
    Shape,
    close_all,
    connections,
    dispatched_shapes,
    echo,
    ended,
    for_each,
    listing,
    receive_exactly,
    run_client,
    sink_shapes,
    totals_of,
    wait_until,
    workers_of,
)


class Dispatch(unittest.TestCase):
    @for_each(dispatched_shapes)
    def test_round_robin_is_even(self, shape: Shape) -> None:
        with shape.start("--dispatch", "round-robin", workers=3) as server:
            with connections(server.address, 60) as socks:
                for sock in socks:
                    echo(sock)
            report = server.finish().report
        self.assertEqual([row["received"] for row in workers_of(report)], [20, 20, 20])
        self.assertEqual(report["totals"]["handed"], 60)

    @for_each(dispatched_shapes)
    def test_least_connections_evens_out(self, shape: Shape) -> None:
        with shape.start("--dispatch", "least-connections") as server, connections(server.address, 40) as socks:
            for sock in socks:
                echo(sock)

            def active() -> list[int]:
                return [row["active"] for row in workers_of(server.report())]

            self.assertEqual(active(), [20, 20])
            close_all(socks[::2])  # they went in turn, so one worker loses them all
            wait_until(lambda: sum(active()) == 20, "half of them are gone")
            self.assertEqual(sorted(active()), [0, 20])
            with connections(server.address, 20) as more:
                for sock in more:
                    echo(sock)
                self.assertEqual(active(), [20, 20])
            close_all(socks)
            server.finish()

    def test_every_policy_serves(self) -> None:
        for row in listing()["policies"]:
            with self.subTest(policy=row["name"]), Server("--strategy", "pool", "--dispatch", row["name"]) as server:
                code, _, err = run_client(server.target, "--requests", "300", "--duration", str(BOUND_S))
                self.assertEqual(code, 0, err)
                report = server.finish().report
                self.assertEqual(report["books"]["served"], 300)
                self.assertTrue(report["books"]["balanced"])
                self.assertEqual("load_figures" in report, row["uses_load"])

    def test_source_hash_keeps_a_client_with_its_worker(self) -> None:
        with Server("--strategy", "pool", "--dispatch", "source-hash", "--workers", "4") as server:
            one = run_client(server.target, "--requests", "200", "--sources", "1", "--duration", str(BOUND_S))
            self.assertEqual(one[0], 0, one[2])
            shares = sorted(row["received"] for row in workers_of(server.report()))
            self.assertEqual(shares, [0, 0, 0, 200])
            many = run_client(server.target, "--requests", "800", "--sources", "64", "--duration", str(BOUND_S))
            self.assertEqual(many[0], 0, many[2])
            report = server.finish().report
        self.assertTrue(all(row["received"] > 0 for row in workers_of(report)), workers_of(report))
        self.assertGreater(report["balance"]["connections"]["largest_to_mean"], 1)

    def test_first_free_loads_the_first(self) -> None:
        with Server("--strategy", "pool", "--dispatch", "first-free", "--workers", "3") as server:
            for _ in range(20):  # one at a time, and the next when it has been counted
                with connections(server.address, 1) as socks:
                    echo(socks[0])
                wait_until(lambda: totals_of(server)["active"] == 0, "it is gone")
            report = server.finish().report
        self.assertEqual([row["received"] for row in workers_of(report)], [20, 0, 0])
        self.assertEqual(report["balance"]["connections"]["largest_to_mean"], 3)
        self.assertAlmostEqual(report["balance"]["connections"]["coefficient_of_variation"], 2**0.5)

    def test_only_who_dispatches_takes_a_policy(self) -> None:
        for row in listing()["methods"]:
            if row["chosen_by"] == "acceptor":
                continue
            with self.subTest(method=row["name"]):
                code, _, err = support.run_program(
                    support.SERVER, "--strategy", "pool", "--ipc", row["name"], "--dispatch", "round-robin"
                )
                self.assertEqual((code, err.count("\n")), (2, 1), err)


class FirstByte(unittest.TestCase):
    FIRST_BYTE = ("--hand-off-at", "first-byte")

    @for_each(sink_shapes)
    def test_a_silent_client_costs_no_worker_anything(self, shape: Shape) -> None:
        with shape.start(*self.FIRST_BYTE) as server, connections(server.address, 20) as socks:
            wait_until(lambda: totals_of(server)["accepted"] == 20, "all are accepted")
            report = server.report()
            self.assertEqual(report["totals"]["handed"], 0)
            self.assertEqual(report["books"]["in_hand_off"], 20)
            for sock in socks[:5]:
                echo(sock)
            report = server.report()
            self.assertEqual((report["totals"]["received"], report["books"]["in_hand_off"]), (5, 15))
            self.assertTrue(report["books"]["balanced"], report["books"])
            for sock in socks:  # no byte was consumed, and no event of the acceptor's is left over
                echo(sock)
            close_all(socks)
            report = server.finish().report
        self.assertEqual(report["books"]["served"], 20)
        self.assertTrue(report["books"]["balanced"], report["books"])

    def test_serves_a_load(self) -> None:
        for workload in ("crr", "rr"):
            with self.subTest(workload=workload), Server("--strategy", "pool", *self.FIRST_BYTE) as server:
                code, result, err = run_client(
                    server.target, "--workload", workload, "--requests", "2000", "--duration", str(BOUND_S)
                )
                self.assertEqual(code, 0, err)
                self.assertEqual(result["outcomes"]["echoed"], 2000)
                server.finish()

    def test_an_end_before_the_first_byte_is_passed_on(self) -> None:
        with Server("--strategy", "pool", *self.FIRST_BYTE) as server:
            with connections(server.address, 3) as socks:
                wait_until(lambda: totals_of(server)["accepted"] == 3, "all are accepted")
                close_all(socks)
            wait_until(lambda: totals_of(server)["finished"] == 3, "all have ended")
            self.assertEqual(server.finish().report["books"]["served"], 3)

    def test_the_idle_timeout_counts_here_too(self) -> None:
        with Server("--strategy", "pool", "--idle-timeout", "0.2", *self.FIRST_BYTE) as server:
            with connections(server.address, 3) as socks:
                self.assertTrue(all(ended(sock) for sock in socks))
            report = server.finish().report
        self.assertEqual((report["totals"]["closed_idle"], report["totals"]["handed"]), (3, 0))
        self.assertTrue(report["books"]["balanced"], report["books"])

    def test_a_drain_gives_silent_clients_to_workers(self) -> None:
        with Server("--strategy", "pool", *self.FIRST_BYTE) as server, connections(server.address, 5) as socks:
            wait_until(lambda: totals_of(server)["accepted"] == 5, "all are accepted")
            server.signal(signal.SIGTERM)
            for sock in socks:
                echo(sock)
                sock.close()
            code, _, err = server.wait()
        self.assertEqual(code, 0, err)

    def test_the_limit_of_connections_counts_those_that_wait(self) -> None:
        with Server("--strategy", "pool", "--max-connections", "4", *self.FIRST_BYTE) as server:
            with connections(server.address, 6) as socks:
                wait_until(lambda: totals_of(server)["accepted"] == 4, "four are accepted")
                self.assertEqual(wait_until(lambda: server.report()["listener"]["queue_length"], "two wait"), 2)
                for sock in socks[:4]:
                    echo(sock)
                    sock.close()
                for sock in socks[4:]:
                    echo(sock)
            server.finish()


class FullWorkers(unittest.TestCase):
    """Workers at their descriptor limit refuse, and whoever has room gets it: a policy that goes by load must not
    take the full for the least loaded."""

    def test_nothing_is_shed_while_one_has_room(self) -> None:
        for row in listing()["policies"]:
            with (
                self.subTest(policy=row["name"]),
                Server("--strategy", "pool", "--ipc", "scm-seqpacket", "--workers", "3", "--dispatch", row["name"]) as server,
                contextlib.ExitStack() as socks,
            ):
                for slot in (0, 1):
                    pid = server.worker_pid(slot)
                    limit = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1 + 5
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
                for _ in range(60):
                    echo(socks.enter_context(support.connect(server.address)))
                totals = server.report()["totals"]
                self.assertEqual((totals["active"], totals["shed"]), (60, 0))
                self.assertLess(totals["refused"], 10, "asked again and again")
                socks.close()
                books = server.finish().report["books"]
                self.assertEqual(books["served"] + books["redelivered_and_served"], 60)


class SharedChannel(unittest.TestCase):
    """What a dead worker had not pulled is pulled by another one; what it had pulled and not served is
    handed over again."""

    @for_each(lambda: [shape for shape in sink_shapes() if shape not in dispatched_shapes()])
    def test_kills_under_load_lose_only_what_the_dead_served(self, shape: Shape) -> None:
        for slot in range(3):
            with shape.start(workers=3) as server, connections(server.address, 300) as socks:
                os.kill(server.worker_pid(slot), signal.SIGKILL)  # at whatever it does just now
                echoed = 0
                for sock in socks:
                    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                        sock.sendall(b"12345678")
                        echoed += receive_exactly(sock, 8) == b"12345678"
                report = wait_until(
                    lambda: now if (now := server.report())["worker_deaths"] else {}, "the death is counted"
                )
                self.assertEqual(echoed, 300 - report["books"]["lost"])
                self.assertTrue(report["books"]["balanced"], report["books"])
                close_all(socks)
                code, _, err = run_client(server.target, "--requests", "500", "--duration", str(BOUND_S))
                self.assertEqual(code, 0, err)
                self.assertEqual(server.finish().report["worker_deaths"], 1)


class ServiceTime(unittest.TestCase):
    def test_each_request_costs_what_it_says(self) -> None:
        mean_us = 2000
        # What is drawn by chance takes 400 for a mean that is within a quarter, by five standard deviations.
        for spec, count in (("fixed:2000", 100), ("exp:2000", 400), ("bimodal:1000,6000,0.2", 400)):
            with self.subTest(spec=spec), Server("--strategy", "epoll", "--service-time", spec) as server:
                code, _, err = run_client(server.target, "--requests", str(count), "--duration", str(BOUND_S))
                self.assertEqual(code, 0, err)
                totals = server.finish().report["totals"]
                self.assertEqual(totals["echoes"], count)
                per_request = totals["user_us"] + totals["system_us"]
                self.assertGreater(per_request / count, mean_us * 0.75)

    def test_what_it_takes(self) -> None:
        for spec in ("fixed", "fixed:", "fixed:-1", "fixed:1,2", "exp:0", "bimodal:1,2", "bimodal:1,2,3", "x:1", "", "1"):
            with self.subTest(spec=spec):
                code, _, err = support.run_program(support.SERVER, "--service-time", spec)
                self.assertEqual((code, err.count("\n")), (2, 1), err)
                self.assertIn("bimodal:US,US,P", err)


if __name__ == "__main__":
    unittest.main()
