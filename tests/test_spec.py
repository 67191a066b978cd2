"""Tests of the matrices as data. How to run one class:

  cd tests; C10K_BIN_DIR=../build/release /usr/bin/python3 -m unittest -v test_spec.Reading"""

from __future__ import annotations

import sys
import tempfile
import unittest
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

from matrix import calibration, peers, spec  # noqa: E402
from matrix.cell import Tools  # noqa: E402
from process_support import BIN_DIR  # noqa: E402

HEAD = """
schema = "c10k-matrix/1"
summary = "for tests"
repetitions = 2
baseline = "epoll"
"""
SERVER = """
[server]
strategies = ["epoll"]
methods = ["scm-seqpacket", "relay"]
workers = 2
"""
WORKLOAD = """
[[workload]]
name = "crr"
kind = "crr"
summary = "{connections} at once"
client = ["--duration", "1"]
limit_s = 10
expected_s = 1
"""
WHOLE = HEAD + SERVER + WORKLOAD


class Case(unittest.TestCase):
    def load(self, text: str) -> spec.Matrix:
        with tempfile.NamedTemporaryFile("w", prefix="c10k-test-", suffix=".toml") as file:
            file.write(text)
            file.flush()
            return spec.load(file.name)

    def cells(self, text: str) -> Counter[tuple[str, str]]:
        return Counter((cell.workload.name, cell.way.name) for cell in spec.cells(self.load(text), 1))


class Reading(Case):
    def test_axes_make_a_product_with_names(self) -> None:
        made = self.load(WHOLE.replace("workers = 2", 'workers = [1, 4]\nloops = ["epoll", "uring"]'))
        self.assertEqual([way.name for way in made.ways[:6]], [
            "epoll", "scm-seqpacket, epoll x1", "scm-seqpacket, epoll x4", "scm-seqpacket, uring x1",
            "scm-seqpacket, uring x4", "relay, epoll x1",
        ])
        self.assertEqual(made.ways[4].server, ("--strategy", "pool", "--ipc", "scm-seqpacket", "--workers", "4",
                                               "--loop", "uring"))
        self.assertEqual(self.load(WHOLE).ways[1].name, "scm-seqpacket")

    def test_retain_is_an_axis(self) -> None:
        made = self.load(WHOLE.replace("workers = 2", "workers = 2\nretain = [false, true]"))
        self.assertEqual([(way.name, "--retain" in way.server) for way in made.ways[1:3]],
                         [("scm-seqpacket", False), ("scm-seqpacket, retain", True)])

    def test_connections_make_a_workload_each(self) -> None:
        made = self.load(WHOLE + "connections = [16, 4096]\n")
        self.assertEqual([(load.name, load.summary, load.client[-2:]) for load in made.workloads],
                         [("crr-16", "16 at once", ("--connections", "16")),
                          ("crr-4096", "4,096 at once", ("--connections", "4096"))])

    def test_a_workload_has_ways_and_repetitions_of_its_own(self) -> None:
        second = WORKLOAD.replace('"crr"', '"few"', 1) + 'repetitions = 1\nways = ["methods"]\nnot_ways = ["rel*"]\n'
        self.assertEqual(self.cells(WHOLE + second), {
            ("crr", "epoll"): 2, ("crr", "scm-seqpacket"): 2, ("crr", "relay"): 2, ("few", "scm-seqpacket"): 1,
        })

    def test_globs_take_groups_too(self) -> None:
        way = '[[server.way]]\nname = "apart"\ngroup = "anatomy"\nargv = ["--strategy", "poll"]\n'
        self.assertNotIn(("crr", "apart"), self.cells(HEAD + SERVER + way + WORKLOAD + 'not_ways = ["anatomy"]\n'))
        self.assertIn(("crr", "apart"), self.cells(HEAD + SERVER + way + WORKLOAD))

    def test_a_recorded_matrix_is_the_same_again(self) -> None:
        for name in spec.names():
            made = spec.load(name)
            self.assertEqual(spec.Matrix.from_json(made.to_json()), made)

    def test_a_run_from_before_there_were_other_faults_is_read(self) -> None:
        made = self.load(WHOLE + 'ways = ["methods"]\nfault = "kill"\nevery_s = 0.4\n')
        old = made.to_json()
        for load in old["workloads"]:
            del load["fault"]
            load["kill_every_s"] = load.pop("every_s")
        self.assertEqual(spec.Matrix.from_json(old), made)

    def test_what_is_wrong_is_one_line_that_says_what_is_allowed(self) -> None:
        for wrong, *parts in (
            ("not toml at all", "line 1"),
            ("\x00", "line 1"),
            (WHOLE.replace("c10k-matrix/1", "other/2"), "'other/2'", "c10k-matrix/1"),
            (WHOLE.replace("summary =", "sumary =", 1), "'sumary'", "summary"),
            (WHOLE.replace("repetitions = 2", "repetitions = 0"), "repetitions is 0", "1 to 1000"),
            (WHOLE.replace("repetitions = 2", "repetitions = true"), "True", "int"),
            (WHOLE.replace("repetitions = 2", ""), "'repetitions' is missing"),
            (WHOLE.replace('baseline = "epoll"', 'baseline = "epol"'), "baseline 'epol'", "scm-seqpacket"),
            (WHOLE.replace("methods =", "method ="), "[server]", "'method'", "methods"),
            (WHOLE.replace('["epoll"]', '["epol"]'), "strategy 'epol'", "select"),
            (WHOLE.replace("workers = 2", "workers = 'two'"), "'two'", "int or list"),
            (WHOLE.replace("workers = 2", "workers = [0]"), "workers holds 0", "from 1"),
            (WHOLE.replace("workers = 2", ""), "'workers' is missing"),
            (WHOLE.replace("workers = 2", 'workers = 2\nloops = ["fast"]'), "loop 'fast'", "uring"),
            (WHOLE.replace("[server]", "[sever]"), "'sever'", "server"),
            (WHOLE.replace('kind = "crr"', 'kind = "ccr"'), "'ccr'", "crr, rr, hold"),
            (WHOLE.replace("limit_s = 10", "limit = 10"), "'limit'", "limit_s"),
            (WHOLE.replace("limit_s = 10", "limit_s = 'ten'"), "'ten'", "int or float"),
            (WHOLE.replace("limit_s = 10", "limit_s = -1"), "limit_s is -1", "0 and more"),
            (WHOLE.replace("limit_s = 10", "limit_s = inf"), "limit_s is inf", "0 and more"),
            (WHOLE.replace("limit_s = 10", "limit_s = nan"), "limit_s is nan", "0 and more"),
            (WHOLE.replace("client = [", 'client = ["--connections", "many", '), "--connections is 'many'", "number"),
            (WHOLE.replace("client = [", 'client = ["--processes", "-2", '), "--processes is '-2'", "number"),
            (WHOLE.replace('kind = "crr"', 'kind = "hold"'), "--connections N"),
            (HEAD.replace('"epoll"', '"x"') + '[[server.way]]\nname = "x"\nargv = ["--strategy", "pool", "--workers"]\n'
             + WORKLOAD, "way x", "--workers is ''"),
            (WHOLE + 'figure = "speed"\n', "'speed'", "client-cpu"),
            (WHOLE + 'ways = ["scm-*", "fork"]\n', "'fork' matches no way"),
            (WHOLE + 'ways = ["scm-*", ""]\n', "'' matches no way"),
            (WHOLE + 'ways = ["epoll"]\nnot_ways = ["*"]\n', "leave no way"),
            (WHOLE + 'ways = "epoll"\n', "ways is 'epoll'", "list"),
            (WHOLE + "connections = []\n", "connections is a list of numbers"),
            (WHOLE + "pin = {acceptor = [0], boss = [1]}\n", "'boss'", "acceptor, workers, client"),
            (WHOLE + "pin = {acceptor = 0}\n", "pin.acceptor is 0", "[0]"),
            (WHOLE + 'fault = "kill"\nevery_s = 0.4\n', "with 'fault'", "methods"),
            (WHOLE + 'ways = ["methods"]\nfault = "kil"\nevery_s = 0.4\n', "'kil'", "kill, stop, pause, acceptor"),
            (WHOLE + 'ways = ["methods"]\nfault = "kill"\n', "with 'fault', every_s", "above 0"),
            (WHOLE + 'ways = ["methods"]\nevery_s = 0.4\n', "unknown fault", "kill, stop"),
            (WHOLE + 'ways = ["methods"]\nfault = "stop"\nevery_s = 0.4\n', "--duration above 1.6"),
            (WHOLE + "kill_every_s = 0.4\n", "unknown key 'kill_every_s'", "every_s"),
            (WHOLE.replace("workers = 2", "workers = 2\nretain = true"), "retain is True", "list"),
            (WHOLE.replace("workers = 2", "workers = 2\nretain = [1]"), "retain holds 1", "true and false"),
            (WHOLE + WORKLOAD, "2 workloads are called 'crr'"),
            (HEAD + SERVER, "'workload' is missing"),
            (HEAD + "server = 5\n" + WORKLOAD, "server is 5", "dict"),
            (HEAD.replace('"epoll"', '"x"') + '[[server.way]]\nname = "x"\n' + WORKLOAD, "way x", "--strategy"),
        ):
            with self.subTest(parts=parts), self.assertRaises(spec.UsageError) as caught:
                self.load(wrong)
            said = str(caught.exception)
            self.assertEqual(said.count("\n"), 0, said)
            for part in (".toml: ", *parts):
                self.assertIn(part, said)


class Order(Case):
    def test_a_seed_gives_blocks_of_all_cells_in_one_order(self) -> None:
        matrix = self.load(WHOLE + WORKLOAD.replace('"crr"', '"more"', 1) + "repetitions = 5\n")
        first, again, other = (spec.cells(matrix, seed) for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertEqual([cell.order for cell in first], list(range(1, len(first) + 1)))
        for repetition in range(1, 6):
            block = [(cell.workload.name, cell.way.name) for cell in first if cell.repetition == repetition]
            both = {"crr", "more"} if repetition <= 2 else {"more"}
            self.assertEqual(sorted(block), sorted((load, way.name) for load in both for way in matrix.ways))
        self.assertEqual([cell.repetition for cell in first], sorted(cell.repetition for cell in first))
        self.assertEqual(len({cell.seed for cell in first}), len(first))

    def test_only_narrows_and_an_empty_selection_is_refused(self) -> None:
        matrix = self.load(WHOLE + WORKLOAD.replace('"crr"', '"few"', 1) + 'repetitions = 1\nways = ["methods"]\n')
        some = spec.select(matrix, ["few", "rel*"], None)
        self.assertEqual([(cell.workload.name, cell.way.name) for cell in spec.cells(some, 1)], [("few", "relay")])
        self.assertEqual(len(spec.cells(spec.select(matrix, ["few"], 7), 1)), 14)
        with self.assertRaisesRegex(spec.UsageError, "few, epoll selects no cell"):
            spec.select(matrix, ["few", "epoll"], None)
        with self.assertRaisesRegex(spec.UsageError, "'x\\*' selects nothing; allowed: crr, few, epoll"):
            spec.select(matrix, ["x*"], None)
        with self.assertRaisesRegex(spec.UsageError, "'' selects nothing"):
            spec.select(matrix, ["few", ""], None)


class Shipped(unittest.TestCase):
    def minutes(self, name: str) -> float:
        return sum(cell.workload.expected_s for cell in spec.cells(spec.load(name), 1)) / 60

    def test_each_says_how_long_it_takes(self) -> None:
        for name, summary in spec.names().items():
            with self.subTest(matrix=name):
                self.assertRegex(summary, r"about \d+ minutes?$")
                if name != "ladder":  # what does not fit is not run, which depends on the machine
                    said = int(summary.rsplit(" ", 2)[1])
                    self.assertAlmostEqual(said, self.minutes(name), delta=max(0.5, 0.06 * said))

    def test_full_has_every_way_and_takes_less_than_45_minutes(self) -> None:
        full = spec.load("full")
        self.assertLess(self.minutes("full"), 45)
        tools = Tools(BIN_DIR)
        tools.ask()
        for kind in ("strategies", "methods"):
            listed = {entry["name"] for entry in tools.listed[kind]} - {"pool"}
            self.assertEqual({way.needs for way in full.ways if way.kind == kind}, listed)
        self.assertEqual({way.needs for way in full.ways if way.kind == "peers"}, set(peers.SERVERS))
        # As many as the recorded calibration shows to be enough.
        self.assertEqual(full.repetitions_of(full.workloads[0]), max(calibration.LENGTHS))

    def test_faults_has_every_method_and_retains_wherever_that_can_be(self) -> None:
        matrix = spec.load("faults")
        tools = Tools(BIN_DIR)
        tools.ask()
        methods = {entry["name"]: entry["why_not_retained"] for entry in tools.listed["methods"]}
        self.assertEqual({load.fault for load in matrix.workloads}, set(spec.FAULTS))
        for load in matrix.workloads:
            with self.subTest(workload=load.name):
                taken = [way for way in matrix.ways if load.takes(way)]
                retained = {way.needs for way in taken if "--retain" in way.server}
                self.assertTrue(load.has_rate, "a closed loop stands still with the server")
                self.assertFalse({name for name in retained if methods[name]})
                if load.name == "kill-busy":  # only those that carry it
                    continue
                if load.fault != "upgrade":
                    self.assertEqual({way.needs for way in taken}, set(methods))
                if load.fault in ("kill", "stop"):
                    self.assertEqual(retained, {name for name, reason in methods.items() if not reason})


if __name__ == "__main__":
    unittest.main()
