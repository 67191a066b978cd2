"""experiments/inspect: the table of a recorded run, in several forms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matrix import bench, facts, store, usage
from matrix.figures import METRICS
from matrix.spec import Matrix, UsageError
from matrix.view import AXES

PROGRAM = "inspect"
REFERENCE = facts.ROOT / "experiments" / "reference"


DESCRIPTION = """Prints a run that experiments/run_matrix recorded: the figure of every way as ranked bars with
95 % intervals, and the table with all the rest. --metric or --by prints the bars alone."""


def _parser() -> usage.Parser:
    parser = usage.Parser(
        PROGRAM,
        DESCRIPTION,
        f"axes: {', '.join(AXES)}\n"
        f"metrics: {', '.join(METRICS)}\n\n"
        "exit code: 0 done; 1 the run cannot be read, or --check-notes found a difference; 2 bad usage",
    )
    parser.add_argument("run", nargs="?", metavar="RUN",
                        help="a folder, or a name in results/ (default: the newest)")
    what = parser.add_argument_group("what is shown")
    what.add_argument("--metric", metavar="NAME", help="this figure, as ranked bars (see below)")
    what.add_argument("--by", metavar="AXIS", help="group the bars by it (default: workload)")
    what.add_argument("--where", action="append", default=[], metavar="KEY=GLOB",
                      help="only rows whose axis matches; repeatable, all must match")
    what.add_argument("--baseline", metavar="WAY", help="take ratios to it (default: the matrix's own)")
    what.add_argument("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="the ratio B/A of two runs")
    forms = parser.add_argument_group("in which form")
    form = forms.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print GitHub Markdown")
    form.add_argument("--json", action="store_true", help="print the rows as JSON")
    form.add_argument("--csv", action="store_true", help="print the rows as CSV")
    form.add_argument("--svg", type=Path, metavar="FILE", help="write the table as a picture")
    form.add_argument("--record", type=Path, metavar="DIR",
                      help="write a small copy, without histogram buckets; of a calibration, two figures a cell")
    form.add_argument("--html", type=Path, metavar="FILE",
                      help="write the report: a page that opens offline, with charts, tables and filters")
    form.add_argument("--figures", type=Path, metavar="DIR", help="draw every chart of the report as DIR/CHART.svg")
    form.add_argument("--update-notes", action="store_true",
                      help="put the tables and figures between their marks in the notes, and draw the charts that the "
                      "notes show as images RUN/CHART.svg; without RUN: of all runs in experiments/reference")
    form.add_argument("--check-notes", action="store_true",
                      help="exit 1 if the notes' tables or images differ from the data")
    parser.add_argument("--notes", type=Path, default=facts.ROOT / "NOTES.md", metavar="FILE",
                        help="the notes (default: NOTES.md)")
    return parser


def _check(parser: usage.Parser, args: Any) -> None:
    """What argparse cannot: names of axes and metrics, and what does not go together."""
    if args.by is not None and args.by not in AXES:
        parser.error(f"--by: unknown axis '{args.by}'; allowed: {', '.join(AXES)}")
    if args.metric is not None and args.metric not in METRICS:
        parser.error(f"--metric: unknown figure '{args.metric}'; allowed: {', '.join(METRICS)}")
    if args.compare and (args.run or args.baseline):
        parser.error(f"--compare names both runs and takes ratios between them; not allowed with it: "
                     f"{args.run or '--baseline'}")
    forms = ("svg", "record", "html", "figures", "update-notes", "check-notes")
    whole = [name for name in forms if getattr(args, name.replace("-", "_"))]
    chosen = [name for name in ("metric", "by", "where", "baseline", "compare") if getattr(args, name)]
    if whole and chosen:
        parser.error(f"--{whole[0]} takes the whole run; not allowed with it: --{chosen[0]}")


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    if not usage.need_rich():
        return 1
    try:
        if args.compare:
            return _compare(args)
        if (args.update_notes or args.check_notes) and args.run is None:
            return _inspect_all(args)
        return _inspect(args, _find(args.run))
    except UsageError as error:
        parser.error(str(error))
    except store.StoreError as error:
        return usage.fail(PROGRAM, error)
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:
        return usage.fail(PROGRAM, f"{error.filename or 'output'}: {error.strerror}")


def _find(name: str | None) -> Path:
    if name is None:
        return store.newest()
    path = Path(name)
    return path if path.exists() or not (store.RESULTS / name).exists() else store.RESULTS / name


def _inspect_all(args: Any) -> int:
    """The notes against every recorded run."""
    folders = sorted(path for path in REFERENCE.iterdir() if path.is_dir())
    return max(_inspect(args, path) for path in folders)


def _inspect(args: Any, path: Path) -> int:
    from matrix import calibration, export, prose, table

    if bench.is_bench(path):
        return _inspect_bench(args, path)
    run = store.load(path)
    of_ways = args.metric or args.by or args.where
    if calibration.is_copy(run) or calibration.is_calibration(Matrix.from_json(run.meta["matrix"])) and not of_ways:
        return _inspect_calibration(args, run)
    if args.svg:
        export.write_svg(run, args.svg)
    elif args.record:
        store.record_copy(run, args.record)
    elif args.html or args.figures:
        _draw(args, run)
    elif args.update_notes or args.check_notes:
        text = table.markdown(run)
        return _notes(args, path, _name(run), text, prose.of_run(run)) or _images(args, run)
    else:
        _print(args, run)
    sys.stdout.flush()
    return 0


def _print(args: Any, run: store.Run) -> None:
    from rich.console import Console

    from matrix import bars, export, layout, table, view

    chosen = view.select(run, args.where, args.baseline)
    metric, axis = args.metric or "rate", args.by or "workload"
    alone = bool(args.metric or args.by)
    if args.json or args.csv:
        rows = view.records(chosen, args.metric, args.by)
        print(export.as_json(run, rows) if args.json else export.as_csv(rows), end="")
    elif args.markdown:
        print(bars.markdown(chosen, metric, axis) if alone else table.markdown(run, chosen), end="")
    else:
        console = Console()
        layout.show(bars.lines(chosen, metric, axis, console), console)
        if not alone:
            print()
            layout.show(table.lines(run, chosen), console)


def _draw(args: Any, run: store.Run) -> None:
    from matrix import page, pictures

    if args.html:
        page.write(run, args.html)
    else:
        print("".join(f"{args.figures / name}.svg\n" for name in pictures.write_all(run, args.figures)), end="")


def _images(args: Any, run: store.Run) -> int:
    from matrix import pictures

    if args.update_notes:
        if count := pictures.update(run, args.notes):
            print(f"{args.notes}: {count} of its images drawn")
    elif problem := pictures.differ(run, args.notes):
        return usage.fail(PROGRAM, f"{problem}; remedy: experiments/inspect {run.path} --update-notes")
    return 0


def _compare(args: Any) -> int:
    from rich.console import Console

    from matrix import compare, export, layout, view

    a, b = (store.load(_find(name)) for name in args.compare)
    found = compare.compared(view.select(a, args.where, None), view.select(b, args.where, None), args.metric, args.by)
    if args.json or args.csv:
        rows = compare.records(found)
        more = {"compared_with": str(b.path), "differences": compare.differences(a, b)}
        print(export.as_json(a, rows, **more) if args.json else export.as_csv(rows), end="")
    elif args.markdown:
        print(compare.markdown(a, b, found, args.by or ""), end="")
    else:
        layout.show(compare.lines(a, b, found, args.by or ""), Console())
    sys.stdout.flush()
    return 0


def _inspect_bench(args: Any, path: Path) -> int:
    """A recorded result of handoff-bench: Markdown, for the notes."""
    from matrix import prose

    data = bench.load(path)
    text = bench.markdown(data, facts.shown_path(path))
    if args.update_notes or args.check_notes:
        return _notes(args, path, bench.NAME, text, prose.of_bench(data))
    if args.json or args.csv or args.svg or args.record or args.html or args.figures:
        return usage.fail(PROGRAM, f"{path}: of handoff-bench's results there is only Markdown and --update-notes")
    print(text, end="")
    return 0


def _inspect_calibration(args: Any, run: store.Run) -> int:
    """What the comparison found of differences that are known; the figures of its ways by --metric or --where."""
    from rich.console import Console

    from matrix import calibration, layout

    if args.record:
        calibration.record(run, args.record)
        return 0
    if (args.json or args.csv or args.svg or args.html or args.figures or args.baseline or args.metric or args.by
            or args.where):
        return usage.fail(PROGRAM, f"{run.path}: of a calibration there is its summary, also as --markdown, and "
                          "its ways by --metric in the run itself, not in a recorded copy")
    samples = calibration.sample(run)
    if not (args.markdown or args.update_notes or args.check_notes):
        layout.show(calibration.lines(run, samples), Console())
        return 0
    text = calibration.markdown(run, samples)
    if not args.markdown:
        return _notes(args, run.path, _name(run), text)
    print(text, end="")
    return 0


def _name(run: store.Run) -> str:
    """What the notes call it. A recorded run may be a part of its matrix, and then has a name of its own."""
    return run.path.name if run.path.resolve().parent == REFERENCE else run.meta["matrix"]["name"]


def _notes(args: Any, path: Path, name: str, text: str, value: Callable[[str, str, str], str] | None = None) -> int:
    from matrix import notes

    if path.resolve().parent == REFERENCE and (unknown := notes.unknown_runs(args.notes, REFERENCE)):
        return usage.fail(PROGRAM, f"{args.notes}: it has figures of {', '.join(unknown)}, and {REFERENCE} has no such "
                          "run; record it, or take them out")
    if args.update_notes:
        print(f"{args.notes}: {name} {'updated' if notes.update(name, text, value, args.notes) else 'up to date'}")
    elif difference := notes.differ(name, text, value, args.notes):
        return usage.fail(PROGRAM, f"{args.notes} differs from {path}: {difference}; remedy: experiments/inspect "
                          f"{path} --update-notes")
    return 0
