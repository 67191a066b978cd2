"""Tests of the load itself: open loop, several client processes, the phases, and what the result tells of them.

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_load.OpenLoop"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import statistics
import sys
import threading
import time
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fault_support import unread_at  # noqa: E402
from process_support import (  # noqa: E402
    BOUND_S,
    CLIENT,
    Program,
    Server,
    listing,
    receive_exactly,
    run_client,
    run_program,
    stop_process,
    totals_of,
    wait_until,
)
from test_client import OUTCOMES, allowed, at_once  # noqa: E402


def check_sums(test: unittest.TestCase, result: dict[str, Any]) -> None:
    test.assertEqual(sum(result["outcomes"][name] for name in OUTCOMES), result["attempts"])
    test.assertTrue(result["totals_add_up"])
    test.assertEqual(sum(phase["attempts"] for phase in result["phases"]), result["attempts"])
    test.assertEqual(sum(phase["echoed"] for phase in result["phases"]), result["outcomes"]["echoed"])
    series = result["series"]["intervals"]
    test.assertEqual(sum(row["echoed"] for row in series), result["outcomes"]["echoed"])
    test.assertEqual(sum(row["echoed"] + row["failed"] for row in series), result["attempts"])
    test.assertEqual(sum(row["connections_opened"] for row in series), result["connections_opened"])


class ArrivalTimes:
    """A server that notes when each request of 20 bytes arrives on the one connection it takes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = "{}:{}".format(*self._listener.getsockname())
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        with sock:
            while data := sock.recv(20):
                self.times.append(time.monotonic())
                sock.sendall(data)

    def gaps(self) -> list[float]:
        self._thread.join(BOUND_S)
        self._listener.close()
        return [after - before for before, after in zip(self.times, self.times[1:])]


class OpenLoop(unittest.TestCase):
    def test_engines_agree(self) -> None:
        """On the number of echoes; and at a low rate on the median, of the best of some rounds each, as the
        machine's own noise only ever adds. (So those that are among the fast ones need no other round.)"""
        engines = allowed("engine")
        with Server("--strategy", "epoll") as server:
            for workload in ("crr", "rr"):
                best = dict.fromkeys(engines, float("inf"))
                for _ in range(40):
                    for engine in [name for name in engines if best[name] >= 1.5 * min(best.values())]:
                        code, result, err = run_client(
                            server.target,
                            *("--engine", engine, "--workload", workload, "--connections", "4"),
                            *("--rate", "400", "--duration", "0.1"),
                        )
                        self.assertEqual((code, err), (0, ""))
                        check_sums(self, result)
                        self.assertEqual(result["outcomes"]["echoed"], 40, engine)
                        best[engine] = min(best[engine], result["latency"]["p50_us"])
                    if max(best.values()) < 1.5 * min(best.values()):
                        break
                self.assertLess(max(best.values()), 1.5 * min(best.values()), (workload, best))
            totals = server.finish().report["totals"]
        self.assertEqual(totals["echoes"] % 40, 0)

    def test_starts_are_evenly_spaced(self) -> None:
        for engine in allowed("engine"):
            with self.subTest(engine=engine):
                tries = []
                for _ in range(6):  # a machine that is busy with something else spaces them otherwise
                    server = ArrivalTimes()
                    options = ("--engine", engine, "--workload", "rr", "--connections", "1", "--rate", "200")
                    code, result, err = run_client(server.target, *options, "--duration", "0.5")
                    gaps = server.gaps()
                    self.assertEqual((code, err, result["attempts"], len(gaps)), (0, "", 100, 99))
                    tries.append((statistics.median(gaps), sum(gap < 0.002 for gap in gaps)))
                    if abs(tries[-1][0] - 0.005) < 0.0005 and tries[-1][1] < 25:  # sent in pairs it would be half
                        break
                else:
                    self.fail(f"median gap and bursts: {tries}")

    def test_poisson_arrivals(self) -> None:
        server = ArrivalTimes()
        options = ("--workload", "rr", "--connections", "1", "--rate", "400", "--arrivals", "poisson")
        code, result, err = run_client(server.target, *options, "--duration", "2")
        gaps = server.gaps()
        self.assertEqual((code, err), (0, ""))
        self.assertAlmostEqual(result["attempts"], 800, delta=150)
        # Of exponential times: 1, and of even ones 0. (unit_test has the schedule itself.)
        self.assertGreater(statistics.stdev(gaps) / statistics.mean(gaps), 0.7)


class Rates(unittest.TestCase):
    """What of an open loop does not depend on the machine's other work."""

    def test_a_stall_shows_in_the_latency_and_not_in_the_service_time(self) -> None:
        with contextlib.ExitStack() as stack:
            runs = []
            servers = [(engine, stack.enter_context(Server("--strategy", "epoll"))) for engine in allowed("engine")]
            for engine, server in servers:
                command = [CLIENT, "--target", server.target, "--engine", engine, "--workload", "rr", "--json", "-"]
                # Of 2,500 requests two are under way when the server stops, and a hundred are due.
                command += ["--connections", "2", "--rate", "500", "--duration", "5"]
                runs.append((engine, server, stack.enter_context(Program(command))))
            for _, server, _ in runs:
                wait_until(lambda server=server: totals_of(server)["echoes"] > 50, "it runs")
            for _, server, _ in runs:
                stop_process(server.pid)
            time.sleep(0.2)  # not a wait for something: the stall itself
            for _, server, _ in runs:
                os.kill(server.pid, signal.SIGCONT)
            for engine, _, client in runs:
                with self.subTest(engine=engine):
                    code, out, err = client.wait()
                    self.assertEqual((code, err), (0, ""))
                    result = json.loads(out)
                    check_sums(self, result)
                    self.assertGreater(result["latency"]["p99_9_us"], 150_000)
                    self.assertLess(result["service_time"]["p99_us"], 100_000)
                    # It shows in a second or two of the series, too, and not in all.
                    seconds = result["series"]["intervals"]
                    slow = [row for row in seconds if row["max_us"] > 150_000]
                    self.assertTrue(1 <= len(slow) < len(seconds), seconds)

    def test_too_few_connections_for_the_rate_are_told(self) -> None:
        with Server("--strategy", "epoll", "--service-time", "fixed:2000") as server:
            options = ("--workload", "rr", "--connections", "1", "--rate", "1000", "--duration", "0.4")
            code, result, err = run_client(server.target, *options)
        self.assertEqual((code, err), (0, ""))
        schedule = result["schedule"]
        self.assertEqual(schedule["starts"], result["attempts"])
        self.assertGreater(schedule["waited_for_a_connection"], 300)
        self.assertGreater(result["latency"]["p50_us"], 5 * result["service_time"]["p50_us"])

    def test_a_client_that_falls_behind_says_so(self) -> None:
        with Server("--strategy", "epoll") as server:
            command = [CLIENT, "--target", server.target, "--workload", "rr", "--json", "-"]
            with Program([*command, "--connections", "300", "--rate", "500", "--duration", "2"]) as client:
                wait_until(lambda: totals_of(server)["echoes"] > 20, "it runs")
                (worker,) = [pid for pid in client.group() if pid != client.pid]
                stop_process(worker)
                time.sleep(0.3)  # not a wait for something: the stall itself
                os.kill(worker, signal.SIGCONT)
                code, out, err = client.wait()
        self.assertEqual((code, err), (0, ""))
        result = json.loads(out)
        self.assertGreater(result["schedule"]["late"], 50)
        self.assertTrue(result["client"]["limited"])
        self.assertRegex(" ".join(result["client"]["limited_because"]), r"\d+ of \d+ starts came more than 1 ms late")

    def test_an_interrupt_does_not_wait_for_the_next_start(self) -> None:
        with Server("--strategy", "epoll") as server:
            for number, engine in enumerate(allowed("engine"), 1):
                with self.subTest(engine=engine):
                    command = [CLIENT, "--target", server.target, "--engine", engine, "--workload", "rr", "--json", "-"]
                    with Program([*command, "--connections", "2", "--rate", "0.01", "--duration", "600"]) as client:
                        wait_until(lambda: totals_of(server)["echoes"] == number, "the first request")
                        client.signal(signal.SIGINT)
                        code, out, err = client.wait(5)
                    self.assertEqual((code, err), (0, ""))
                    self.assertEqual(json.loads(out)["ended"], "interrupted")

    def test_every_engine_and_workload_at_a_rate(self) -> None:
        with Server("--strategy", "epoll") as server:

            def run(what: tuple[str, str]) -> tuple[int, dict[str, Any], str]:
                engine, workload = what
                options = ("--engine", engine, "--workload", workload, "--connections", "10")
                active = ("--active", "5") if workload == "hold" else ()
                return run_client(server.target, *options, *active, "--rate", "300", "--duration", "0.2")

            runs = [(engine, workload) for engine in allowed("engine") for workload in allowed("workload")]
            for (engine, workload), ran in at_once(run, runs):
                with self.subTest(engine=engine, workload=workload):
                    code, result, err = ran.result()
                    self.assertEqual((code, err), (0, ""))
                    check_sums(self, result)
                    expected = {"crr": 60, "rr": 60, "storm": 10, "hold": 10 + 60 + 10}[workload]
                    self.assertEqual(result["attempts"], expected)
                    measured = [phase for phase in result["phases"] if phase["measured"]]
                    self.assertEqual(len(measured), 1)
                    lasts = 0.029 if workload == "storm" else 0.2  # 10 starts have 9 gaps of 3.3 ms
                    self.assertGreaterEqual(measured[0]["end_s"] - measured[0]["begin_s"], lasts)
            server.finish()


class Strategies(unittest.TestCase):
    def test_every_engine_and_workload_against_every_strategy(self) -> None:
        """Each two of the three. (test_client has every engine with every workload in full; what a server does
        depends on the workload, not on who makes it.)"""
        names = [entry["name"] for entry in listing()["strategies"] if entry["available"]]
        workloads = allowed("workload")
        by_server, by_engine = set(), set()
        for row, strategy in enumerate(names):
            with Server("--strategy", strategy) as server:
                attempts = opened = 0
                for column, engine in enumerate(allowed("engine")):
                    workload = workloads[(row + column) % len(workloads)]
                    by_server.add((strategy, workload))
                    by_engine.add((engine, workload))
                    with self.subTest(strategy=strategy, engine=engine, workload=workload):
                        options = ("--engine", engine, "--workload", workload, "--connections", "8")
                        code, result, err = run_client(server.target, *options, "--requests", "40")
                        self.assertEqual((code, err), (0, ""))
                        check_sums(self, result)
                        expected = {"crr": 40, "rr": 40, "storm": 8, "hold": 56}[workload]
                        self.assertEqual(result["outcomes"]["echoed"], expected)
                        attempts += expected
                        opened += result["connections_opened"]
                totals = server.finish().report["totals"]
                self.assertEqual((totals["echoes"], totals["accepted"]), (attempts, opened), strategy)
        self.assertEqual(len(by_server), len(names) * len(workloads))
        self.assertEqual(len(by_engine), len(allowed("engine")) * len(workloads))


class Phases(unittest.TestCase):
    def run_it(self, server: Server, *options: str) -> dict[str, Any]:
        before = totals_of(server)
        code, result, err = run_client(server.target, *options)
        self.assertEqual((code, err), (0, ""))
        check_sums(self, result)
        totals = totals_of(server)
        self.assertEqual(totals["echoes"] - before["echoes"], result["outcomes"]["echoed"])
        self.assertEqual(totals["accepted"] - before["accepted"], result["connections_opened"])
        return result

    def test_warm_up_is_in_the_books_and_not_in_the_figures(self) -> None:
        with Server("--strategy", "epoll") as server:
            for engine in allowed("engine"):
                with self.subTest(engine=engine):
                    result = self.run_it(
                        *(server, "--engine", engine, "--workload", "crr", "--connections", "2"),
                        *("--warmup", "0.3", "--duration", "0.1"),
                    )
                    warmup, measured = result["phases"]
                    self.assertEqual((warmup["name"], warmup["measured"]), ("warmup", False))
                    self.assertGreater(warmup["echoed"], 0)
                    self.assertEqual(result["latency"]["count"], measured["echoed"])
                    seconds = measured["end_s"] - measured["begin_s"]
                    self.assertAlmostEqual(result["connections_per_s"] * seconds, measured["echoed"], delta=1)
            server.finish()

    def test_requests_per_connection(self) -> None:
        with Server("--strategy", "epoll") as server:
            for engine in allowed("engine"):
                for workload, more in (("crr", ()), ("rr", ()), ("rr", ("--rate", "2000"))):
                    for each, opened in ((1, 60), (7, 9), (100, 1), (0, 1)):
                        with self.subTest(engine=engine, workload=workload, each=each, more=more):
                            result = self.run_it(
                                *(server, "--engine", engine, "--workload", workload, "--connections", "1"),
                                *("--requests", "60", "--requests-per-connection", str(each), *more),
                            )
                            self.assertEqual((result["attempts"], result["connections_opened"]), (60, opened))
                            self.assertEqual(result["first_echo_latency"]["count"], opened)
                            self.assertEqual(result["echo_latency"]["count"], 60)
            server.finish()

    def test_a_storm_is_all_at_once(self) -> None:
        for engine in allowed("engine"):
            with self.subTest(engine=engine), socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
                listener.settimeout(BOUND_S)
                target = "{}:{}".format(*listener.getsockname())
                command = [CLIENT, "--target", target, "--engine", engine, "--workload", "storm", "--json", "-"]
                with Program([*command, "--connections", "100", "--timeout", str(BOUND_S)]) as client:
                    # None is answered before all have come.
                    socks = [listener.accept()[0] for _ in range(100)]
                    for sock in socks:
                        with sock:
                            sock.sendall(receive_exactly(sock, 20))
                    code, out, err = client.wait()
                self.assertEqual((code, err), (0, ""))
                result = json.loads(out)
                self.assertEqual((result["attempts"], result["outcomes"]["echoed"]), (100, 100))

    def test_hold_idles_and_says_its_phases(self) -> None:
        with Server("--strategy", "epoll") as server:
            code, out, err = run_program(
                *(CLIENT, "--target", server.target, "--workload", "hold", "--connections", "20", "--active", "5"),
                *("--requests", "100", "--idle", "0.3", "--announce-phases", "--json", "-"),
            )
            self.assertEqual(code, 0, err)
        self.assertEqual(err, "".join(f"phase {name}\n" for name in ("connect", "idle", "active", "check")))
        phases = json.loads(out)["phases"]
        self.assertEqual([phase["attempts"] for phase in phases], [20, 0, 100, 20])
        self.assertGreaterEqual(phases[1]["end_s"] - phases[1]["begin_s"], 0.3)
        for before, after in zip(phases, phases[1:]):
            self.assertLessEqual(before["end_s"], after["begin_s"])

    def test_an_interrupt_ends_an_idle_phase(self) -> None:
        with Server("--strategy", "epoll") as server:
            command = [CLIENT, "--target", server.target, "--workload", "hold", "--connections", "20", "--idle", "600"]
            with Program([*command, "--announce-phases", "--json", "-"]) as client:
                wait_until(lambda: "phase idle" in client.err_text(), "it idles")
                client.signal(signal.SIGINT)
                code, out, _ = client.wait(5)
            self.assertEqual((code, json.loads(out)["ended"]), (0, "interrupted"))


class Processes(unittest.TestCase):
    def test_each_workload_shared_out(self) -> None:
        with Server("--strategy", "epoll") as server:
            for engine in allowed("engine"):
                if engine == "processes":
                    continue
                for workload in allowed("workload"):
                    with self.subTest(engine=engine, workload=workload):
                        options = ("--engine", engine, "--workload", workload, "--processes", "3")
                        more = ("--active", "4") if workload == "hold" else ()
                        code, result, err = run_client(
                            server.target, *options, *more, "--connections", "12", "--requests", "60"
                        )
                        self.assertEqual((code, err), (0, ""))
                        check_sums(self, result)
                        self.assertEqual(result["client"]["processes"], 3)
                        expected = {"crr": 60, "rr": 60, "storm": 12, "hold": 84}[workload]
                        self.assertEqual(result["attempts"], expected)
                        if workload == "hold":  # all are up before any is active, in whichever process
                            self.assertEqual((result["peak_connections"], result["connections_opened"]), (12, 12))
            server.finish()

    def test_one_per_connection(self) -> None:
        with Server("--strategy", "epoll") as server:
            command = [CLIENT, "--target", server.target, "--engine", "processes", "--workload", "rr", "--json", "-"]
            with Program([*command, "--connections", "6", "--duration", "60"]) as client:
                wait_until(lambda: totals_of(server)["active"] == 6, "all are connected")
                self.assertEqual(len(client.group()), 7)
                client.signal(signal.SIGTERM)
                code, out, err = client.wait(10)
            self.assertEqual((code, err), (0, ""))
            self.assertEqual(json.loads(out)["client"]["processes"], 6)

    def test_a_process_that_dies_ends_the_run(self) -> None:
        for number in (1, 3):
            with self.subTest(number=number), Server("--strategy", "epoll") as server:
                command = [CLIENT, "--target", server.target, "--workload", "rr", "--processes", str(number)]
                with Program([*command, "--connections", "6", "--duration", "60"]) as client:
                    wait_until(lambda: totals_of(server)["echoes"] > 100, "it runs")
                    victim = [pid for pid in client.group() if pid != client.pid][-1]
                    os.kill(victim, signal.SIGKILL)
                    code, out, err = client.wait(10)  # and nothing of its group is left
                self.assertEqual((code, out), (1, ""))
                self.assertRegex(err, rf"\Ac10k-client: [^\n]*{victim}[^\n]*signal 9[^\n]*\n\Z")

    def test_the_end_of_the_conductor_ends_them_all(self) -> None:
        with Server("--strategy", "epoll") as server:
            command = [CLIENT, "--target", server.target, "--workload", "rr", "--processes", "3"]
            with Program([*command, "--connections", "6", "--duration", "60"]) as client:
                wait_until(lambda: totals_of(server)["echoes"] > 100, "it runs")
                client.signal(signal.SIGKILL)
                self.assertEqual(client.wait(10)[0], -signal.SIGKILL)

    def test_a_second_signal_does_not_wait(self) -> None:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Server("--strategy", "epoll"))
            command = [CLIENT, "--target", server.target, "--workload", "rr", "--timeout", "600"]
            client = stack.enter_context(Program([*command, "--connections", "6", "--duration", "600"]))
            wait_until(lambda: totals_of(server)["echoes"] > 100, "it runs")
            stop_process(server.pid)  # what is in flight now does not end
            # One may have been read and not answered when it stopped.
            wait_until(lambda: unread_at(server.address) >= 5, "requests are in flight")
            client.signal(signal.SIGINT)
            status = Path(f"/proc/{client.pid}/status")

            def pending() -> int:
                (mask,) = re.findall(r"^ShdPnd:\s+(\w+)$", status.read_text(), re.M)
                return int(mask, 16) & 1 << (signal.SIGINT - 1)

            wait_until(lambda: not pending(), "it has taken the first")
            self.assertFalse(client.has_ended(0.2))
            client.signal(signal.SIGINT)
            code, out, _ = client.wait(5)
            self.assertEqual(code, 0)
            self.assertIn("interrupted", out)
            os.kill(server.pid, signal.SIGCONT)


class Percentiles(unittest.TestCase):
    def test_as_hdr_histogram_writes_them(self) -> None:
        with Server("--strategy", "epoll") as server:
            code, result, err = run_client(
                server.target, "--workload", "rr", "--requests", "5000", "--hdr", "/dev/stderr"
            )
        self.assertEqual(code, 0)
        header, blank, *lines = err.splitlines()
        self.assertRegex(header, r"^ +Value +Percentile +TotalCount +1/\(1-Percentile\)$")
        self.assertEqual(blank, "")
        rows = [line.split() for line in lines if not line.startswith("#")]
        values = [float(row[0]) for row in rows]
        percentiles = [float(row[1]) for row in rows]
        counts = [int(row[2]) for row in rows]
        for column in (values, percentiles, counts):
            self.assertEqual(column, sorted(column))
        self.assertEqual((percentiles[-1], counts[-1], len(rows[-1])), (1.0, 5000, 3))
        for row in rows[:-1]:
            self.assertAlmostEqual(float(row[3]) * (1 - float(row[1])), 1, delta=0.01)
            self.assertGreaterEqual(int(row[2]) + 1e-6, float(row[1]) * 5000)
        median = next(value for value, percentile in zip(values, percentiles) if percentile >= 0.5)
        self.assertAlmostEqual(median, result["latency"]["p50_us"] / 1000, delta=0.001)
        self.assertAlmostEqual(values[-1], result["latency"]["max_us"] / 1000, delta=0.001)
        footer = "\n".join(line for line in lines if line.startswith("#"))
        self.assertRegex(
            footer,
            re.compile(
                r"\A#\[Mean    = +[\d.]+, StdDeviation   = +[\d.]+\]\n"
                r"#\[Max     = +[\d.]+, Total count    = +5000\]\n"
                r"#\[Buckets = +\d+, SubBuckets     = +\d+\]\Z"
            ),
        )

    def test_the_parts_of_a_latency(self) -> None:
        with Server("--strategy", "epoll") as server:
            code, result, _ = run_client(server.target, "--workload", "crr", "--connections", "1", "--requests", "300")
        self.assertEqual(code, 0)
        names = ("latency", "connect_latency", "first_echo_latency", "echo_latency")
        for name in names:
            self.assertEqual(result[name]["count"], 300)
            steps = [result[name][f"p{step}_us"] for step in ("50", "90", "99", "99_9", "99_99")]
            self.assertEqual(steps, sorted(steps))
            self.assertLessEqual(steps[-1], result[name]["max_us"])
        self.assertEqual(result["latency"]["p50_us"], result["first_echo_latency"]["p50_us"])
        whole, connect, _, echo = (sum(ns * count for ns, count in result[name]["buckets_ns"]) for name in names)
        self.assertAlmostEqual(whole, connect + echo, delta=0.02 * whole)


class Usage(unittest.TestCase):
    def test_bad_usage(self) -> None:
        for options, says in [
            (("--rate", "0"), r"--rate.*0\.001 to 1000000"),
            *((("--rate", value), "--rate") for value in ("-5", "fast", "nan")),
            (("--rate", "100", "--duration", "0"), "--duration.*0.001"),
            (("--rate", "100", "--arrivals", "bursts"), "even, poisson"),
            (("--arrivals", "even"), "--arrivals.*--rate"),
            (("--warmup", "-1"), "--warmup"),
            (("--warmup", "1", "--workload", "storm"), "--warmup"),
            (("--idle", "1"), "--idle.*hold"),
            (("--processes", "0"), "--processes"),
            (("--processes", "65"), "--processes.*up to 64"),
            (("--processes", "2", "--engine", "processes"), "--processes"),
            (("--engine", "processes", "--connections", "20000"), "--connections.*up to 10000"),
            (("--connections", "1000000"), r"--processes \d+"),
            (("--requests-per-connection", "-1"), "--requests-per-connection"),
            (("--requests-per-connection", "2", "--workload", "hold"), "--requests-per-connection"),
            (("--requests-per-connection", "2", "--close-by", "server"), "--close-by"),
            *((("--hdr", value), "--hdr") for value in ("", "/no/such/folder/x")),
            (("--hdr", "-", "--json", "-"), "--hdr.*--json"),
        ]:
            with self.subTest(options=options):
                code, out, err = run_program(CLIENT, *options)
                self.assertEqual((code, out), (2, ""), err)
                self.assertRegex(err, r"\Ac10k-client: [^\n]+\n\Z")
                self.assertRegex(err, says)

    def test_the_number_of_processes_that_it_names_works(self) -> None:
        low_limit = ("prlimit", "--nofile=64:64", CLIENT)
        _, _, err = run_program(*low_limit, "--connections", "100")
        match = re.search(r"--processes (\d+)", err)
        assert match is not None, err
        with Server("--strategy", "epoll") as server:
            code, out, err = run_program(
                *(*low_limit, "--target", server.target, "--workload", "hold", "--connections", "100"),
                *("--processes", match[1], "--duration", "0.2"),
            )
        self.assertEqual((code, err), (0, ""), out)


if __name__ == "__main__":
    unittest.main()
