"""Tests of the report (experiments/inspect --html and --figures): /usr/bin/python3 -m unittest tests/test_report.py

The pages are opened in headless Chromium by report_page.mjs. Where the browser or what draws the charts is
missing, the tests that need it are skipped and say so; tests/run installs both."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

import made_up_runs  # noqa: E402
from made_up_runs import ROOT  # noqa: E402
from matrix import charts, figures, findings, inspect_cli, losses, page, pictures, points, rows  # noqa: E402
from matrix import spec, store, topics  # noqa: E402
from matrix_support import run_inside  # noqa: E402

QUICK = ROOT / "experiments" / "reference" / "quick"
CHROMIUM = shutil.which("chromium") or ""
BOUND_S = 300  # for whatever a test waits for; reached only when it fails
HOSTILE = "</script x><img src=x onerror=alert(1)>'\"{{data}} <b>&amp;"
REPETITIONS = 6
ONE_FAILED = (HOSTILE, "crr", 2)
STEPS = {"whole": 200.0, "- HMAC": 150.0, "- lock": 149.9, "- ticket": 144.0}  # CPU per connection, us
DRIFT = (0.9, 1.1, 0.95, 1.05, 1.0, 1.0)  # of the steps' CPU from repetition to repetition, in all alike


def way(name: str, *server: str, **more: str) -> dict[str, Any]:
    kind = "methods" if "--ipc" in server else "strategies"
    return {"name": name, "server": ["--strategy", *server], "kind": kind, "needs": server[0], **more}


def load(name: str, connections: int, *client: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "crr", "summary": f"connect, echo, close: {name}", "limit_s": 9, "expected_s": 1,
            "client": ["--connections", str(connections), *client], "not_ways": ["anatomy"], **more}


LISTENERS = ["inherited-listener:wait=exclusive", "inherited-listener:wait=mutex"]
POOL = ("pool", "--ipc", "scm-seqpacket", "--workers", "2")
WAYS = [
    way("epoll", "epoll"),
    way("poll", "poll"),
    way("scm-seqpacket", *POOL),
    way(HOSTILE, "pool", "--ipc", "reuseport", "--workers", "4", "--loop", "uring"),
    *(way(name, *POOL, group="anatomy") for name in STEPS),
    *(way(name, "pool", "--ipc", name) for name in LISTENERS),
    {"name": "Node", "server": [], "kind": "peers", "needs": ""},
]
ONLY_CRR = ["anatomy", "inherited-listener*", "peers"]
LOADS = [
    load("crr", 64, not_ways=[]),
    load("crr-256", 256, not_ways=ONLY_CRR),
    load("kill", 64, "--rate", "2000", ways=["methods"], not_ways=ONLY_CRR, fault="kill", every_s=0.4),
]
# Connections per second and the server's CPU per connection, acceptor and workers, us.
FIGURES = {
    "epoll": (50_000, 0, 20),
    "poll": (49_990, 0, 20.01),
    "scm-seqpacket": (30_000, 12, 18),
    HOSTILE: (40_000, 0, 24),
    **{name: (20_000, 0, 30) for name in LISTENERS},
    "Node": (10_000, 10, 40),
    **{name: (20_000, used / 2, used / 2) for name, used in STEPS.items()},
}
LATENCY = {"p50_us": 900, "p90_us": 2000, "p99_us": 5000, "p99_9_us": 8000, "max_us": 9000}


def processes(repetition: int) -> list[dict[str, Any]]:
    """Another worker has the most in every repetition."""
    workers = [{"role": "worker", "received": 550, "accepted": 0, "user_us": 30, "system_us": 30},
               {"role": "worker", "received": 450, "accepted": 0, "user_us": 20, "system_us": 20}]
    acceptor = {"role": "acceptor", "received": 0, "accepted": 1000, "user_us": 500, "system_us": 500}
    return [acceptor, *(workers if repetition % 2 else workers[::-1])]


def cell(of: spec.Way, workload: spec.Workload, repetition: int) -> dict[str, Any]:
    noise = random.Random(f"{of.name}/{workload.name}/{repetition}").uniform(0.99, 1.01)
    rate, acceptor, worker = (value * noise for value in FIGURES[of.name])
    if of.group:
        acceptor, worker = (value * DRIFT[repetition - 1] for value in (acceptor, worker))
    killed = bool(workload.fault)
    lost = 4 if killed and of.name == HOSTILE else 0
    failed = (of.name, workload.name) == ("poll", "crr-256") or (of.name, workload.name, repetition) == ONE_FAILED
    return made_up_runs.cell(
        of, workload, repetition,
        status="failed" if failed else "ok",
        reason=f"fell over: {HOSTILE}" if failed else "",
        netstat={"ListenOverflows": 3 * (of.name == HOSTILE)},
        faults={"kind": "kill", "events": [{"at_s": 0.4, "pid": 1, "worker": 0, "whole_s": 0.02}] * 5, "hung": lost,
                "descriptors_left": 0, "processes_left": 0} if killed else None,
        client={
            "attempts": 1000,
            "outcomes": {"echoed": 1000 - lost, "reset": lost},
            "latency": {name: value * noise for name, value in LATENCY.items()},
            "connections_per_s": rate,
            "client": {"limited": of.name == HOSTILE},
        },
        server={
            "totals": {"accepted": 1000, "acceptor_cpu_us": 1000 * acceptor, "worker_cpu_us": 1000 * worker,
                       "redelivered": lost, "voluntary_switches": 500, "involuntary_switches": 5},
            "balance": {"connections": {"largest_to_mean": 1.1}, "cpu": {"largest_to_mean": 1.2}},
            "processes": processes(repetition) if "--ipc" in of.server else [],
            "books": {"lost": 2} if killed else {},
        },
    )


def run_of(ways: list[dict[str, Any]], loads: list[dict[str, Any]]) -> store.Run:
    matrix = spec.Matrix.from_json({"name": "synthetic", "summary": HOSTILE, "baseline": "epoll",
                                    "repetitions": REPETITIONS, "ways": ways, "workloads": loads})
    run = made_up_runs.run(matrix, cell)
    run.meta["host"]["cpu_model"] = HOSTILE
    return run


def make_run(folder: Path) -> Path:
    """A run with every kind of row that the page knows, and text that means harm wherever a run has text."""
    return made_up_runs.write(run_of(WAYS, LOADS), folder)


def inspect(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = run_inside(inspect_cli.main, *arguments)
    assert done.returncode == code, f"exit code {done.returncode}: {done.stderr}"
    return done


class Tables(HTMLParser):
    """The tables of a page, as a parser that runs no script sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.started: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.started.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


class Case(unittest.TestCase):
    folder: Path
    made: Path

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory(prefix="c10k-test-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.made = make_run(cls.folder / "run")


class WithoutNode(Case):
    """The page as it is where nothing but Python is."""

    def setUp(self) -> None:
        self.text = page.html(store.load(self.made), page.libraries(self.folder / "nowhere"))
        self.tables = Tables(self.text)

    def rows_of(self, name: str) -> list[list[str]]:
        return [row for row in self.tables.rows if row and row[0] == name]

    def test_says_what_is_missing_and_how_to_get_it(self) -> None:
        self.assertRegex(self.text, r'class="missing">Charts and filters are missing.*No such file.*apt-get install')
        self.assertEqual(self.tables.started.count("script"), 1)  # the data

    def test_the_tables_are_there_and_open(self) -> None:
        self.assertEqual(self.tables.started.count("table"), len(re.findall("<details open>", self.text)))
        used = [row[1] for row in self.rows_of("epoll") if row[1].startswith(("19.", "20."))]
        self.assertEqual(len(used), 2)  # CPU of crr and of crr-256

    def test_text_of_a_run_is_text(self) -> None:
        self.assertTrue(self.rows_of(HOSTILE))
        self.assertNotIn("img", self.tables.started)
        # Throughput, CPU, latency and scaling.
        self.assertEqual(sum(f"failed: fell over: {HOSTILE}" in row for row in self.rows_of("poll")), 4)
        said = (f"1 of 6 repetitions have no figure: fell over: {HOSTILE}; 18 queue overflows; "
                "the client may be the limit")
        self.assertTrue(any(said in row for row in self.rows_of(HOSTILE)))
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.text, re.DOTALL)
        assert data
        self.assertNotIn("<", data[1])
        points = json.loads(data[1])["charts"]["throughput-crr"]["points"]
        self.assertIn(HOSTILE, [point["way"] for point in points])

    def test_the_findings_say_how_sure_they_are(self) -> None:
        part = re.search(r'<div class="groups">(.*?)<p class="missing', self.text, re.DOTALL)
        assert part
        found = re.sub(r"<[^>]+>", " ", part[1])
        self.assertRegex(found, r"Fastest +e?poll .*?95 %.*?No difference seen to e?poll\. 5 others are seen")
        self.assertRegex(found, r"Fastest with workers +&lt;/script.*?All others are seen to be slower\. The "
                                r"client may have been its limit\. Its faults: 18 queue overflows\.")
        self.assertRegex(found, r"With 1 of the 7 ways the client may have been the limit.*?Peers are not among those")
        self.assertRegex(found, r"None seen lost +scm-seqpacket +in 30 kills in all: at most 0\.12 per kill each")
        self.assertRegex(found, r"Lose connections +1 of 2 ways: +&lt;/script.* 24 in 30 kills "
                                r"\(95 %: 0\.51 to 1\.19 per kill\)")
        self.assertRegex(found, r"Seen to lose more than all these: &lt;/script")

    def test_a_step_within_the_noise_is_marked(self) -> None:
        (hmac,), (lock,) = self.rows_of("- HMAC"), self.rows_of("- lock")
        self.assertRegex(hmac[5], r"^-(49|50|51)\.\d$")
        self.assertRegex(hmac[8], r"^-2[45]\.\d%$")
        self.assertRegex(lock[5], " ~$")
        self.assertEqual(hmac[9:11], ["whole", "0.75"])
        # The two rows' own intervals overlap; within the repetitions they differ.
        (ticket,) = self.rows_of("- ticket")
        ends = [[float(end) for end in row[2].split(" to ")] for row in (lock, ticket)]
        self.assertGreater(ends[1][1], ends[0][0])
        self.assertRegex(ticket[5], r"^-\d\.\d$")

    def test_where_workers_are_killed_other_faults_are_still_told(self) -> None:
        (killed,) = [row for row in self.rows_of(HOSTILE) if row[1] == "30"]
        self.assertEqual(killed[-1], "18 queue overflows; the client may be the limit")
        self.assertEqual(killed[-2], "12")  # the books', which failed attempts stand beside

    def test_workers_that_are_not_told_are_not_denied(self) -> None:
        for name, says in (("Node", "unknown"), (LISTENERS[0], "default"), ("epoll", "no pool"), (HOSTILE, "4")):
            self.assertEqual(self.rows_of(name)[0][7], says)

    def test_each_workers_share_is_shown_also_of_a_recorded_copy(self) -> None:
        copy = self.folder / "copy"
        store.record_copy(store.load(self.made), copy)
        text = gzip.decompress((copy / store.COPY).read_bytes()).decode()
        self.assertNotIn('"processes"', text)
        again = store.load(copy)
        self.assertEqual([store._small(store._with_shares(one)) for one in again.cells], again.cells)
        for found in (self.tables, Tables(page.html(again, page.Libraries(missing="nothing")))):
            balance = [row for row in found.rows if row[0] == "scm-seqpacket" and row[4:6] == ["55% 45%", "60% 40%"]]
            self.assertEqual(len(balance), 2)  # of crr and of crr-256

    def test_what_a_run_lacks_is_one_line(self) -> None:
        text = page.html(store.load(QUICK), page.Libraries(missing="nothing"))
        for topic in ("scaling", "anatomy"):
            self.assertRegex(text, rf'<section id="{topic}"><h2>[^<]+</h2><p class="absent">Not in this run: [^<]+</p>')


class Judgement(unittest.TestCase):
    """What the page says of data made for it."""

    def section(self, name: str, *lost: int) -> rows.Section:
        """Ways that lost so many attempts in 50 kills each."""
        load = spec.Workload(name, "crr", "", (), 9, 1, fault="kill", every_s=0.4)
        ways = []
        for index, count in enumerate(lost):
            low, high = losses.poisson_interval(count)
            ways.append(rows.Row(name, f"way {index}", fault="kill", events=50, lost_in_faults=count,
                                 lost_per_event=count / 50, lost_per_event_interval=(low / 50, high / 50)))
        return rows.Section(load, figures.figure_of(load), ways, "way 0", {})

    def kills(self, *lost: int) -> dict[str, str]:
        (group,) = findings.groups([self.section("kill", *lost)])
        return {one.question: f"{one.answer} {one.detail}" for one in group.findings}

    def test_of_few_losses_no_way_is_said_to_lose_more(self) -> None:
        said = self.kills(0, 3, 0, 1)
        self.assertEqual(list(said), ["Lose connections"])
        lost = r"Lost: way 1 3 in 50 kills; way 3 1 in 50 kills\. None seen lost in 100 kills: way 0; way 2\."
        self.assertRegex(said["Lose connections"], f"^No difference seen between the 4 ways: .*{lost}")
        self.assertIn("in 200 kills in all: at most 0.074 per kill", self.kills(0, 0, 0, 0)["None seen lost"])

    def test_each_load_with_kills_is_judged_by_itself(self) -> None:
        light, busy = findings.groups([self.section("kill", 0, 1), self.section("busy", 0, 50)])
        self.assertTrue(light.title.endswith("killed, kill: ") and busy.title.endswith("killed, busy: "))
        self.assertTrue(light.findings[0].answer.startswith("No difference seen between the 2 ways"))
        self.assertEqual(busy.findings[0].answer, "1 of 2 ways:")

    def test_many_losses_are_told_from_none(self) -> None:
        said = self.kills(0, *range(20, 29))
        self.assertRegex(said["Lose connections"], r"^9 of 10 ways: way 9 28 in 50 kills .* and 3 more\.$")
        self.assertIn("Seen to lose more than all these: way 9; ", said["None seen lost"])

    def test_a_small_number_is_not_nothing(self) -> None:
        texts = [points.number(value) for value in (0.0, 0.0123, 0.000456, 0.0996, 0.5, 1.0, 12.3, 1234.5)]
        self.assertEqual(texts, ["0.00", "0.012", "0.00046", "0.10", "0.50", "1.00", "12.3", "1,234"])

    def test_the_first_is_so_within_repetitions_and_not_by_medians(self) -> None:
        run = run_of(WAYS[:3], LOADS[:1])
        # poll has figures of the fast half alone, in which epoll is faster still.
        for one in run.cells:
            fast, noise = one["repetition"] > 3, one["client"]["connections_per_s"] / FIGURES[one["way"]][0]
            if one["way"] == "poll" and not fast:
                one.update(status="failed", reason="fell over", client=None, server=None)
            else:
                base = {"epoll": 60_000, "poll": 50_000, "scm-seqpacket": 20_000}[one["way"]]
                one["client"]["connections_per_s"] = base * (2 if fast else 1) * noise
        (section,) = rows.sections(run)
        medians = {row.way: row.median for row in section.rows}
        self.assertGreater(medians["poll"], medians["epoll"])
        first = findings.groups([section])[0].findings[0]
        self.assertEqual((first.question, first.answer), ("Fastest", "epoll"))
        self.assertIn("All others are seen to be slower.", first.detail)

    def test_without_the_baseline_the_page_says_so(self) -> None:
        text = page.html(run_of(WAYS[1:3], LOADS[:1]), page.Libraries(missing="nothing"))
        self.assertEqual(text.count("epoll is not measured under this load: there are no ratios."), 2)
        self.assertNotRegex(text, "compares with epoll|repetitions: no difference can be told")

    def test_latency_is_captioned_by_the_loop(self) -> None:
        loads = [load("crr", 64), load("rate", 64, "--rate", "4000")]
        closed, opened = charts.latency(rows.sections(run_of(WAYS[:2], loads)))
        self.assertRegex(closed.caption, "^A closed loop")
        self.assertIn("from when a start was intended", opened.caption)

    def test_each_chart_has_a_name_and_a_line_one_load(self) -> None:
        loads = [load(name, connections, "--payload", payload) for name, connections, payload in
                 (("a|b", 64, "20"), ("a-b", 256, "20"), ("big", 64, "9000"), ("big-256", 256, "9000"))]
        loads[1]["client"] += ["--duration", "3"]
        drawn = topics.drawn(rows.sections(run_of(WAYS[:1], loads)))
        found = [chart for of_topic in drawn.values() for chart in of_topic]
        self.assertEqual(len(found), len({chart.name for chart in found}))
        lines = {chart.name: [row["workload"] for row in chart.rows] for chart in found if "scaling" in chart.name}
        self.assertEqual(lines, {"scaling-crr-payload-20-no-pool": ["a|b", "a-b"],
                                 "scaling-crr-payload-9000-no-pool": ["big", "big-256"]})


@unittest.skipIf(pictures.missing(), f"{pictures.missing()}: experiments/setup --no-build installs it")
class Pictures(Case):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.notes = cls.folder / "NOTES.md"
        marks = "<!-- table:synthetic begin -->\n<!-- table:synthetic end -->\n"
        cls.notes.write_text(f"{marks}![CPU](run/cpu-crr.svg) ![table](run/table.svg)\n")
        inspect(str(cls.made), "--update-notes", "--notes", str(cls.notes))

    def check(self, code: int = 0) -> str:
        return inspect(str(self.made), "--check-notes", "--notes", str(self.notes), code=code).stderr

    def test_every_chart_is_drawn_the_same_each_time(self) -> None:
        first, second = self.folder / "first", self.folder / "second"
        names = inspect(str(self.made), "--figures", str(first)).stdout.split()
        inspect(str(self.made), "--figures", str(second))
        self.assertIn(str(first / "throughput-crr.svg"), names)
        for name in names:
            text = Path(name).read_text()
            self.assertEqual(text, (second / Path(name).name).read_text())
            self.assertNotRegex(text, r"<script|<img|NaN|Infinity")

    def test_the_notes_name_what_is_drawn_and_a_changed_picture_is_found(self) -> None:
        picture = self.made / "cpu-crr.svg"
        text = picture.read_text()
        self.addCleanup(picture.write_text, text)
        self.assertEqual([path.name for path in self.made.glob("*.svg")], ["cpu-crr.svg"])
        self.check()
        drawn = pictures._render(pictures._shown(store.load(self.made), self.notes))
        # Drawn the same each time, so once is enough.
        with mock.patch.object(pictures, "_render", lambda _: drawn):
            for damaged, says in ((text.replace("<svg", '<svg id="another"', 1),
                                   "differs from the run's data; remedy: experiments/inspect"),
                                  (re.sub("data: .", "data: x", text), "differs")):
                picture.write_text(damaged)
                self.assertIn(says, self.check(code=1))
            picture.unlink()
            self.assertIn("No such file", self.check(code=1))

    def test_an_unknown_chart_is_one_line(self) -> None:
        self.addCleanup(self.notes.write_text, self.notes.read_text())
        self.notes.write_text(self.notes.read_text() + "![x](run/cpu-rr.svg)\n")
        said = self.check(code=1)
        self.assertEqual(len(said.splitlines()), 1)
        self.assertRegex(said, "no chart 'cpu-rr'; it has: throughput-crr")


@unittest.skipIf(pictures.missing(), f"{pictures.missing()}: experiments/setup --no-build installs it")
@unittest.skipUnless(CHROMIUM, "chromium is not installed: experiments/setup --tests --no-build installs it")
class Browser(Case):
    """The pages of a recorded run and of the made one, as a reader has them."""

    seen: dict[str, dict[str, Any]]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        files = {name: cls.folder / f"{name}.html" for name in ("made", "quick", "bare")}
        inspect(str(cls.made), "--html", str(files["made"]))
        inspect(str(QUICK), "--html", str(files["quick"]))
        files["bare"].write_text(page.html(store.load(cls.made), page.Libraries(missing="nothing is here")))
        script = ROOT / "tests" / "report_page.mjs"
        command = ["node", str(script), str(page.FOLDER), CHROMIUM, *map(str, files.values())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        cls.seen = {name: found[str(path)] for name, path in files.items()}

    def test_there_is_no_error_and_nothing_is_fetched(self) -> None:
        for name, found in self.seen.items():
            with self.subTest(name):
                self.assertEqual((found["errors"], found["requests"], found["elements"]), ([], [], 0))

    def test_every_row_with_a_figure_is_a_point(self) -> None:
        quick, made = (self.seen[name]["all"]["figures"] for name in ("quick", "made"))
        self.assertEqual(quick["throughput-crr"]["points"], len(quick["throughput-crr"]["ways"]))
        self.assertEqual(made["throughput-crr"]["points"], 7)
        with_failed = made["throughput-crr-256"]
        self.assertEqual((with_failed["points"], len(with_failed["ways"])), (3, 4))
        self.assertEqual(made["latency-crr"]["points"], 7 * 5)
        self.assertEqual(made["crashes-kill"]["points"], 2)
        self.assertTrue(any(name.startswith("scaling-crr") for name in made), list(made))

    def test_each_filter_filters_rows_and_points_and_stands_in_the_hash(self) -> None:
        for page_name in ("quick", "made"):
            found = self.seen[page_name]
            whole = found["all"]["figures"]
            for name, left in found["filters"].items():
                with self.subTest(page_name, filter=name):
                    self.assertIn(f"{name}=", left["hash"])
                    rows, points = (sum(measure(one) for one in left["figures"].values())
                                    for measure in (lambda one: len(one["ways"]), lambda one: one["points"]))
                    self.assertLess(rows, sum(len(one["ways"]) for one in whole.values()))
                    self.assertLess(points, sum(one["points"] for one in whole.values()))
                    self.assertGreater(points, 0)
                    self.assertTrue(left["count"].startswith(f"{rows} of "), left["count"])
                    for chart, one in left["figures"].items():
                        if chart.startswith("throughput-crr") and chart in whole and page_name == "quick":
                            self.assertEqual(one["points"], len(one["ways"]))
        self.assertEqual(set(self.seen["made"]["filters"]), {"workload", "loop", "workers", "connections", "way"})

    def test_a_filter_leaves_the_right_rows(self) -> None:
        filters = self.seen["made"]["filters"]
        self.assertEqual(filters["workers"]["value"], "4")
        self.assertEqual(set(filters["workers"]["figures"]["throughput-crr"]["ways"]), {HOSTILE})
        self.assertEqual(set(filters["way"]["figures"]["throughput-crr"]["ways"]), {"epoll", "poll"})
        self.assertEqual(filters["connections"]["value"], "256")
        self.assertEqual(filters["connections"]["figures"]["throughput-crr"]["ways"], [])

    def test_the_hash_brings_the_filters_back(self) -> None:
        for name in ("quick", "made"):
            found = self.seen[name]
            self.assertEqual(found["reloaded"]["count"], found["filters"]["way"]["count"])
            self.assertEqual(found["reloaded"]["figures"], found["filters"]["way"]["figures"])

    def test_a_point_says_its_numbers(self) -> None:
        number = r"\d\d,\d\d\d"
        self.assertRegex(self.seen["made"]["tooltip"], rf"^e?poll\nconn/s\s+{number}\s+95 %\s+{number} to {number}")

    def test_it_fits_a_phone_and_follows_light_dark_and_paper(self) -> None:
        for name in ("quick", "made"):
            found = self.seen[name]
            with self.subTest(name):
                self.assertEqual(found["overflow"], 0)
                self.assertEqual(found["light"]["paper"], "rgb(255, 255, 255)")
                self.assertNotEqual(found["dark"]["paper"], found["light"]["paper"])
                self.assertEqual(found["dark"]["label"], found["dark"]["ink"])  # a chart's text follows the page's
                self.assertEqual(found["paper"]["paper"], "rgb(255, 255, 255)")
                self.assertGreater(found["closedOnScreen"], 0)
                self.assertEqual((found["closedAsIfPrinted"], found["closedInPrint"]), (0, 0))
        self.assertEqual(self.seen["bare"]["overflow"], 0)

    def test_on_a_phone_no_two_ways_read_alike(self) -> None:
        for name in ("quick", "made"):
            phone = self.seen[name]["phone"]
            self.assertEqual(phone["overflow"], 0)
            for texts in (*phone["labels"], *self.seen[name]["wide"]):
                self.assertEqual(len(texts), len(set(texts)), texts)
            self.assertEqual(self.seen[name]["narrowed"], phone["labels"])
        listeners = {text for texts in self.seen["made"]["phone"]["labels"] for text in texts if "inheri" in text}
        self.assertEqual(len(listeners), 2)

    def test_a_printed_view_says_what_is_left_out(self) -> None:
        for name in ("quick", "made"):
            self.assertRegex(self.seen[name]["printed"], r"^\d+ of \d+ rows; Way, strategy or method: POLL$")

    def test_without_vega_the_tables_are_seen(self) -> None:
        bare = self.seen["bare"]
        self.assertIn("Charts and filters are missing", bare["text"])
        self.assertIn("nothing is here", bare["text"])
        self.assertEqual(bare["tables"], len(self.seen["made"]["all"]["figures"]))
        self.assertIn(HOSTILE, bare["text"])


if __name__ == "__main__":
    unittest.main()
