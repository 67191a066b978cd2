"""What faults during a load cost its clients: failures for each, and how sure that is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from matrix.fault_kinds import KINDS
from matrix.figures import failed_attempts
from matrix.spec import options_of

if TYPE_CHECKING:
    from matrix.rows import Row

HUNG_NS = 1e9
ERROR = 0.025  # on each side of a 95 % interval
RULE_OF_THREE = 3.0  # none of n seen: at 95 % the rate is below 3 / n


def hung(client: dict[str, Any]) -> int:
    """Attempts that took over a second from their intended start: echoed so late, or given up. With a --timeout of 1 s
    these are all: what has neither an echo nor a visible end by then is given up."""
    late = sum(count for ns, count in client.get("latency", {}).get("buckets_ns", []) if ns > HUNG_NS)
    return late + client.get("outcomes", {}).get("timeout", 0)


def ran_out(cell: dict[str, Any]) -> bool:
    """The client of an open loop had no connection left when it was time to begin: the server does not carry the load
    beside the faults, or what waits for one holds them all. Attempts are late for that as well."""
    options = options_of(cell["client_options"])
    return "--rate" in options and options.get("--workload") == "crr" and \
        cell["client"].get("peak_connections", 0) >= float(options.get("--connections", "inf"))


def recorded(cell: dict[str, Any]) -> dict[str, Any] | None:
    """The faults of a cell. Runs from when killing a worker was the only one have it in another form."""
    if old := cell.get("crashes"):
        return {"kind": "kill", "events": old["kills"], "hung": old["hung"]}
    return cell.get("faults")


def reopened(cell: dict[str, Any]) -> int:
    """Connections that clients who keep theirs opened in place of others."""
    wanted = int(options_of(cell["client_options"]).get("--connections", 0))
    return max(0, cell["client"].get("connections_opened", 0) - wanted)


def exposed(row: Row, cells: int, attempts: int) -> int:
    """How many of what can be lost were there to be lost: attempts, or of clients that keep their connections those
    connections. Each event of a worker meets its share of them; what meets all of them meets the same ones again and
    again, so they count once for a cell."""
    if row.reopened is None:
        return attempts
    kept = row.connections or 0
    return kept * (row.events or 0) // (row.workers or 1) if KINDS[row.fault].of_worker else kept * cells


def describe(row: Row, cells: list[dict[str, Any]]) -> None:
    """The faults of a row's cells and what they cost. Workers that end by them are this workload's own doing, and so
    is what the dead held by the server's books: no faults of the server. What clients lost of it is among their
    failed attempts."""
    seen = [(cell, found) for cell in cells if (found := recorded(cell))]
    if not seen:
        return
    row.fault = seen[0][1]["kind"]
    kind, failed = KINDS[row.fault], Counter[str]()
    for cell, found in seen:
        failed.update(failed_attempts(cell["client"]))
        _add_earlier(row, found)
    events = [event for _, found in seen for event in found["events"]]
    row.events, row.fault_cells = len(events), len(seen)
    row.ran_out = sum(ran_out(cell) for cell, _ in seen)
    row.fault_attempts = sum(cell["client"]["attempts"] for cell, _ in seen)
    row.fault_echoed = sum(cell["client"].get("outcomes", {}).get("echoed", 0) for cell, _ in seen)
    row.fault_failed = dict(failed)
    row.redelivered = (row.redelivered or 0) + sum(cell["server"]["totals"].get("redelivered", 0) for cell, _ in seen)
    row.hung = sum(found["hung"] for _, found in seen)
    row.not_replaced = sum(bool(event.get("not_replaced")) for event in events)
    if not any(cell.get("crashes") for cell, _ in seen):  # which did not say so
        row.not_over = sum("whole_s" not in event for event in events)
    if kind.each_reports:
        row.missing_reports = sum(_missing_reports(found) for _, found in seen)
    if any("descriptors_left" in found for _, found in seen):
        row.descriptors_left = sum(max(0, found.get("descriptors_left", 0)) for _, found in seen)
        row.processes_left = sum(found.get("processes_left", 0) for _, found in seen)
    if times := [event["whole_s"] for event in events if "whole_s" in event]:
        row.whole_ms, row.whole_max_ms = 1e3 * sorted(times)[len(times) // 2], 1e3 * max(times)
    if options_of(seen[0][0]["client_options"]).get("--workload") == "rr":
        row.reopened = sum(reopened(cell) for cell, _ in seen)
    row.fault_exposed = exposed(row, len(seen), row.fault_attempts)
    row.lost_in_faults = row.reopened if row.reopened is not None else failed.total() - _apart(row.fault, failed)
    if row.events:
        low, high = poisson_interval(row.lost_in_faults)
        row.lost_per_event = row.lost_in_faults / row.events
        row.lost_per_event_interval = (low / row.events, high / row.events)
    # Of the cells whose events these are: in one that failed, deaths are told as they are.
    died = sum(cell["server"].get("worker_deaths", 0) for cell, _ in seen)
    own_deaths = min(died, row.events) if kind.ends_worker else 0
    row.worker_deaths -= own_deaths
    own_lost = sum(cell["server"]["books"].get("lost", 0) for cell, _ in seen) if kind.ends_worker else 0
    row.faults += (row.descriptors_left or 0) + (row.processes_left or 0) - own_deaths - own_lost
    row.faults += row.not_over + row.missing_reports + row.ran_out


def _apart(fault: str, failed: Counter[str]) -> int:
    """While no server listens, connects are refused: that is counted by itself. What is reset had been accepted, or
    waited for the acceptor that has died: it is lost."""
    return failed["refused"] if fault == "acceptor" else 0


def _missing_reports(found: dict[str, Any]) -> int:
    """Servers that others have replaced, and that have not written their books."""
    return len(found["events"]) - sum(bool(report["books"]) for report in found["earlier"])


def _add_earlier(row: Row, found: dict[str, Any]) -> None:
    """What the servers that others have replaced, and that have written a report, say in it."""
    for report in found.get("earlier", []):
        unbalanced, deaths, lost = report["books"].get("balanced") is False, report["worker_deaths"], \
            report["books"].get("lost", 0)
        row.unbalanced_reports += unbalanced
        row.worker_deaths += deaths
        row.lost += lost
        errors = report["totals"]["errors"] or {}
        row.server_errors = dict(Counter(row.server_errors) + Counter(errors))
        row.faults += unbalanced + deaths + lost + sum(errors.values())
        row.redelivered = (row.redelivered or 0) + report["totals"]["redelivered"]


def rate_text(count: int | None, events: int | None, of_all: int | None, number: Callable[[float], str],
              of: bool = False) -> str:
    """So many in all, and for each event with the exact interval; of none, below which share of all that could have
    been counted (attempts, or connections) that is at 95 %. With `of` it says of how many."""
    if count is None or not events or not of_all:
        return "-"
    if count == 0:
        digits, _, power = f"{RULE_OF_THREE / of_all:.1e}".partition("e")
        bound = f"{digits}e{int(power)}"
        return f"0 of {of_all:,}: below {bound}" if of else f"0 (< {bound})"
    low, high = poisson_interval(count)
    return f"{count:,}: {number(count / events)} ({number(low / events)} to {number(high / events)})"


@lru_cache(maxsize=None)  # of a row it is wanted for each figure, table and sentence
def poisson_interval(count: int) -> tuple[float, float]:
    """The exact (Garwood) 95 % interval of the mean of which this count was seen."""
    low = _mean(lambda mean: 1 - _at_most(count - 1, mean) >= ERROR, count) if count else 0.0
    return low, _mean(lambda mean: _at_most(count, mean) <= ERROR, count)


def _mean(reached: Callable[[float], bool], count: int) -> float:
    """The smallest mean that has reached it."""
    low, high = max(0.0, count - 6 * math.sqrt(count)), count + 6 * math.sqrt(count) + 6
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _at_most(count: int, mean: float) -> float:
    """The probability of so many or fewer. Terms further down are below what a float can add."""
    first = max(0, math.floor(count - 16 * math.sqrt(count)))
    log_mean = math.log(mean)
    logs = (i * log_mean - mean - log for i, log in enumerate(_log_factorials(first, count), first))
    return math.fsum(map(math.exp, logs))


@lru_cache(maxsize=2)  # for the many means that are tried with one count
def _log_factorials(first: int, last: int) -> list[float]:
    return [math.lgamma(i + 1) for i in range(first, last + 1)]
