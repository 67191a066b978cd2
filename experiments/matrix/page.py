"""The report of a run: one HTML file that opens offline and fetches nothing.

Its tables are made here, so that they are there without JavaScript and without node; experiments/report/
has its looks and its script. Whatever comes from the run is escaped: it may be anything."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matrix import charts, facts, findings, table, topics
from matrix.charts import Chart
from matrix.topics import Topic
from matrix.findings import Group
from matrix.points import Column, Point
from matrix.rows import CLIENT_LIMIT, Section, sections
from matrix.store import Run, StoreError

FOLDER = facts.ROOT / "experiments" / "report"
LIBRARIES = ("vega/build/vega.min.js", "vega-lite/build/vega-lite.min.js")
FILTERS = {"workload": "Load", "loop": "Loop of a worker", "workers": "Workers", "connections": "Connections"}
MISSING = ("Charts and filters are missing: Vega-Lite was not there when the page was made ({what}). To get them: "
           "apt-get install nodejs npm, then experiments/setup --no-build, then experiments/inspect {run} --html FILE. "
           "The tables are complete.")


@dataclass(frozen=True)
class Libraries:
    scripts: tuple[str, ...] = ()
    missing: str = ""  # what stands in the way


def libraries(folder: Path = FOLDER / "node_modules") -> Libraries:
    scripts = []
    for name in LIBRARIES:
        try:
            scripts.append((folder / name).read_text(encoding="utf-8"))
        except OSError as error:
            return Libraries(missing=f"{error.filename}: {error.strerror}")
    return Libraries(tuple(scripts))


def write(run: Run, target: Path) -> None:
    text = html(run, libraries())
    try:
        target.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}; the page is not whole") from None


def html(run: Run, found: Libraries) -> str:
    all_sections = sections(run)
    drawn = topics.drawn(all_sections)
    missing = MISSING.format(what=found.missing, run=run.path)
    parts = {
        "title": escape(f"{run.meta['matrix']['name']}, {run.meta['started_at'][:10]}"),
        "style": _part("page.css"),
        "name": escape(run.meta["matrix"]["name"]),
        "summary": escape(run.meta["matrix"]["summary"]),
        "facts": _facts(run, all_sections),
        "findings": "".join(map(_group, findings.groups(all_sections))),
        "missing": f'<p class="missing">{escape(missing)}</p>' if found.missing else "",
        "filters": _filters([row for of_topic in drawn.values() for chart in of_topic for row in chart.rows]),
        "topics": "".join(_topic(topic, drawn[topic.name]) for topic in topics.TOPICS),
        "data": _json({
            "config": charts.config(ink="currentColor"),
            "charts": {chart.name: {"spec": chart.spec, "points": chart.points}
                       for of_topic in drawn.values() for chart in of_topic},
        }),
        "scripts": "" if found.missing else _scripts(*found.scripts, _part("page.js")),
    }
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], _part("page.html"))


def _part(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """For a script element, which ends at the first </script whatever stands around it."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _scripts(*texts: str) -> str:
    whole = (re.sub(r"</(?=(?i:script))", r"<\\/", text) for text in texts)
    return "".join(f"<script>{text}</script>\n" for text in whole)


def _facts(run: Run, all_sections: list[Section]) -> str:
    meta = run.meta
    built, host = meta["build"], meta["host"]
    mitigated = [f"{name}: {state}" for name, state in host["mitigations"].items() if state != "Not affected"]
    flags = [*facts.flags(meta, run.cells), *_limits(all_sections), *table.interruption(run), *run.remarks]
    entries = {
        "Host": facts.one_line(host),
        "Mitigations": "; ".join(mitigated) or "none",
        "Limits": ", ".join(f"{name} {value['soft']:,}" for name, value in host["limits"].items()),
        "Build": " ".join(filter(None, [built["cmake_build_type"] or "unknown", built["c10k_sanitize"],
                                        built["cmake_cxx_compiler"], built["cmake_cxx_flags"]])),
        "Source": f"revision {(meta['source']['revision'] or 'unknown')[:12]}, version {meta.get('version', 'unknown')}",
        "Run": f"{meta['started_at']}, seed {meta['seed']}, {len(run.cells):,} cells",
        "Load": f"{meta['client_shape']}; client and server share {host['cores']} cores: compare only within this load",
    }
    lines = [f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in entries.items()]
    raised = "".join(f"<li>{escape(flag)}</li>" for flag in flags)
    lines.append(f"<dt>Flags</dt><dd>{f'<ul>{raised}</ul>' if raised else 'none'}</dd>")
    return f"<dl>{''.join(lines)}</dl>"


def _limits(all_sections: list[Section]) -> list[str]:
    found = []
    for section in all_sections:
        count = sum(row.client_limited for row in section.rows)
        if count:
            why = f"a process of it used {CLIENT_LIMIT:.0%} of a CPU or more, or started late"
            where = f"{count} of {len(section.rows)} rows"
            found.append(f"{section.workload.name}: the client may be the limit in {where} ({why})")
    return found


def _group(group: Group) -> str:
    lines = "".join(
        f"<dt>{escape(one.question)}</dt><dd><strong>{escape(one.answer)}</strong> {escape(one.detail)}</dd>"
        for one in group.findings
    )
    remark = f"<p>{escape(group.remark)}</p>" if group.remark else ""
    return f"<section><h3>{escape(group.title)}</h3>{f'<dl>{lines}</dl>' if lines else ''}{remark}</section>"


def _filters(rows: list[Point]) -> str:
    controls = []
    for key, label in FILTERS.items():
        found = dict.fromkeys(row[key] for row in rows)
        values = list(found) if key == "workload" else sorted(found, key=_size_or_name)
        options = "".join(f"<option>{escape(value)}</option>" for value in values)
        controls.append(f'<label>{label} <select name="{key}"><option value="">all</option>{options}</select></label>')
    name = '<input name="way" type="search" placeholder="part of a name">'
    return "".join(controls) + f"<label>Way, strategy or method {name}</label>"


def _size_or_name(value: str) -> tuple[int, str]:
    return (int(value) if value.isdecimal() else -1, value)


def _topic(topic: Topic, of_topic: list[Chart]) -> str:
    body = "".join(map(_figure, of_topic)) or f'<p class="absent">Not in this run: {escape(topic.absent)}.</p>'
    return f'<section id="{topic.name}"><h2>{escape(topic.title)}</h2>{body}</section>'


def _figure(chart: Chart) -> str:
    title = escape(chart.title)
    scroll = f'<div class="scroll" role="region" tabindex="0" aria-label="Table of {title}">{_table(chart)}</div>'
    return (
        f'<figure data-chart="{escape(chart.name)}"><figcaption><h3>{title}</h3><p>{escape(chart.caption)}</p>'
        f'</figcaption><div class="plot"></div><details open><summary>Table</summary>{scroll}</details></figure>\n'
    )


def _table(chart: Chart) -> str:
    heads = "".join(f'<th scope="col"{_align(column)}>{escape(column.head)}</th>' for column in chart.columns)
    lines = "".join(_line(chart, row) for row in chart.rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def _line(chart: Chart, row: Point) -> str:
    axes = {key: row[key] for key in FILTERS} | {"way": f"{row['way']} {row['strategy']} {row['method']}".lower()}
    data = "".join(f' data-{key}="{escape(value)}"' for key, value in axes.items())
    first, *others = chart.columns
    cells = "".join(f"<td{_align(column)}>{escape(column.text(row))}</td>" for column in others)
    return f'<tr{data}><th scope="row">{escape(first.text(row))}</th>{cells}</tr>'


def _align(column: Column) -> str:
    return ' class="number"' if column.is_number else ""
