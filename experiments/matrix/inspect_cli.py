"""experiments/inspect: the table of a recorded run, in several forms."""

from __future__ import annotations

import sys
from pathlib import Path

from matrix import bench, facts, store, usage

PROGRAM = "inspect"


def _parser() -> usage.Parser:
    parser = usage.Parser(
        PROGRAM,
        "Prints the table of a run that experiments/run_matrix recorded.",
        "exit code: 0 done; 1 the run cannot be read, or --check-notes found a difference; 2 bad usage",
    )
    parser.add_argument("run", nargs="?", metavar="RUN",
                        help="a folder, or a name in results/ (default: the newest)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print GitHub Markdown")
    form.add_argument("--json", action="store_true", help="print the rows as JSON")
    form.add_argument("--csv", action="store_true", help="print the rows as CSV")
    form.add_argument("--svg", type=Path, metavar="FILE", help="write the table as a picture")
    form.add_argument("--record", type=Path, metavar="DIR",
                      help="write a small copy, without histogram buckets")
    form.add_argument("--update-notes", action="store_true",
                      help="put the tables between their marks in the notes")
    form.add_argument("--check-notes", action="store_true",
                      help="exit 1 if the notes' tables differ from the data")
    parser.add_argument("--notes", type=Path, default=facts.ROOT / "NOTES.md", metavar="FILE",
                        help="the notes (default: NOTES.md)")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if not usage.need_rich():
        return 1
    try:
        return _inspect(args)
    except store.StoreError as error:
        return usage.fail(PROGRAM, error)
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        return 0


def _find(name: str | None) -> Path:
    if name is None:
        return store.newest()
    path = Path(name)
    return path if path.exists() or not (store.RESULTS / name).exists() else store.RESULTS / name


def _inspect(args: object) -> int:
    from rich.console import Console

    from matrix import export, table

    path = _find(args.run)
    if bench.is_bench(path):
        return _inspect_bench(args, path)
    run = store.load(path)
    if args.markdown:
        print(table.markdown(run), end="")
    elif args.json:
        print(export.as_json(run), end="")
    elif args.csv:
        print(export.as_csv(run), end="")
    elif args.svg:
        export.write_svg(run, args.svg)
    elif args.record:
        store.record_copy(run, args.record)
    elif args.update_notes or args.check_notes:
        return _notes(args, path, run.meta["matrix"]["name"], table.markdown(run))
    else:
        table.show(run, Console())
    sys.stdout.flush()
    return 0


def _inspect_bench(args: object, path: Path) -> int:
    """A recorded result of handoff-bench: Markdown, for the notes."""
    shown = path.resolve()
    shown = shown.relative_to(facts.ROOT) if shown.is_relative_to(facts.ROOT) else shown
    text = bench.markdown(bench.load(path), str(shown))
    if args.update_notes or args.check_notes:
        return _notes(args, path, bench.NAME, text)
    if args.json or args.csv or args.svg or args.record:
        return usage.fail(PROGRAM, f"{path}: of handoff-bench's results there is only Markdown and --update-notes")
    print(text, end="")
    return 0


def _notes(args: object, path: Path, name: str, text: str) -> int:
    from matrix import notes

    if args.update_notes:
        print(f"{args.notes}: {'updated' if notes.update(name, text, args.notes) else 'up to date'}")
    elif notes.differ(name, text, args.notes):
        return usage.fail(PROGRAM, f"{args.notes}: its {name} table differs from "
                          f"{path}; remedy: experiments/inspect {path} --update-notes")
    return 0
