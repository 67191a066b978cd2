"""experiments/run_matrix: what it takes, and what it does with it."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from secrets import randbelow
from typing import Any

from matrix import facts, spec, store, usage
from matrix.cell import Tools, refusal
from matrix.spec import Matrix, UsageError

PROGRAM = "run_matrix"
RELEASE = facts.ROOT / "build" / "release"


def _parser() -> usage.Parser:
    matrices = "\n".join(f"  {name:10} {summary}" for name, summary in spec.names().items())
    parser = usage.Parser(
        PROGRAM,
        "Measures every cell of a matrix, records each the moment it ends, and prints the table.\n"
        "Installs and builds what is missing first.",
        f"matrices:\n{matrices}\n\n"
        "exit code: 0 done; 1 interrupted, or a cell failed (its row says why); 2 bad usage\n"
        "progress and errors go to stderr, the table to stdout; Ctrl-C keeps what is recorded",
    )
    parser.add_argument("matrix", nargs="?", metavar="MATRIX",
                        help="one of those below, or a file NAME.toml")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN",
                        help="workloads, ways, or kinds and groups of ways, by a glob; repeatable")
    parser.add_argument("--repetitions", type=usage.positive, metavar="N",
                        help="default: the matrix's own")
    parser.add_argument("--seed", type=usage.seed, metavar="N",
                        help="of the order of the cells (default: a new one)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: results/<UTC time>-<matrix>")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with an interrupted run")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and how long they will take")
    parser.add_argument("--bin-dir", type=Path, metavar="DIR",
                        help="take c10k-server and c10k-client from here and build nothing (default: build/release)")
    return parser


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    taken = [f"--{name}" for name in ("only", "repetitions", "seed", "output") if getattr(args, name)]
    if args.seed == 0:
        taken.append("--seed")
    if args.resume and (args.matrix or taken):
        parser.error(f"--resume takes all from the recorded run; not allowed with it: {args.matrix or taken[0]}")
    if not args.resume and not args.matrix:
        parser.error(f"no matrix named; allowed: {', '.join(spec.names())}")
    try:
        if args.resume:
            resumed = store.load(args.resume)
            matrix, seed = Matrix.from_json(resumed.meta["matrix"]), resumed.meta["seed"]
        else:
            resumed = None
            matrix = spec.select(spec.load(args.matrix), args.only, args.repetitions)
            seed = randbelow(2**32) if args.seed is None else args.seed
            if args.output and store.holds_a_run(args.output):
                raise UsageError(f"--output: {args.output} holds a run; name another folder, or --resume it")
        if args.dry_run:
            return _dry_run(matrix, seed, args.bin_dir or RELEASE, resumed)
        if args.bin_dir is None and not usage.set_up("release"):
            return 1
        if not usage.need_rich():
            return 1
        return _run(args, argv, matrix, seed, resumed)
    except UsageError as error:
        parser.error(str(error))
    except store.StoreError as error:
        return usage.fail(PROGRAM, error)
    except OSError as error:
        return usage.fail(PROGRAM, f"{error.filename or 'output'}: {error.strerror}")
    except KeyboardInterrupt:
        return usage.fail(PROGRAM, "interrupted; what is recorded stays, and --resume goes on")


def _left(matrix: Matrix, seed: int, resumed: store.Run | None) -> list[spec.Cell]:
    done = {(cell["way"], cell["workload"], cell["repetition"]) for cell in resumed.cells} if resumed else set()
    return [cell for cell in spec.cells(matrix, seed) if cell.key not in done]


def _dry_run(matrix: Matrix, seed: int, folder: Path, resumed: store.Run | None) -> int:
    tools = Tools(folder)
    tools.ask()
    left, width = _left(matrix, seed, resumed), max(len(load.name) for load in matrix.workloads)
    counts, seconds = Counter[str](), Counter[str]()
    for cell in left:
        load, way = cell.workload, cell.way
        reasons = (("unsupported", tools.unsupported(way)), ("not run", refusal(cell)))
        why = next((f"  {status}: {reason}" for status, reason in reasons if reason), "")
        counts[load.name] += 1
        seconds[load.name] += 0 if why else load.expected_s
        print(f"{cell.order:4} {cell.repetition:3} {load.name:{width}} {way.name}{why}")
    for name in (load.name for load in matrix.workloads if counts[load.name]):
        print(f"{name:{width}} {counts[name]} cells, about {seconds[name] / 60:.1f} minutes")
    print(f"{len(left)} cells, about {seconds.total() / 60:.1f} minutes, seed {seed}")
    if tools.list_error:
        print(f"{PROGRAM}: what is unsupported is unknown: {tools.list_error}", file=sys.stderr)
    return 0


def _client_shape(matrix: Matrix) -> str:
    if any(load.held for load in matrix.workloads):
        return "the load is as many client processes as the table says, with 1 thread each"
    processes: dict[int, list[str]] = {}
    for load in matrix.workloads:
        processes.setdefault(int(spec.options_of(load.client).get("--processes", 1)), []).append(load.name)
    if len(processes) == 1:
        count = next(iter(processes))
        return f"the load is {count} client process{'es' * (count > 1)} with 1 thread{' each' * (count > 1)}"
    parts = [f"{count} in {', '.join(names)}" for count, names in sorted(processes.items())]
    return f"client processes, each with 1 thread: {'; '.join(parts)}"


def _meta(args: Any, argv: list[str], matrix: Matrix, seed: int, folder: Path, started: datetime) -> dict[str, Any]:
    return {
        "schema": store.RUN_SCHEMA,
        "started_at": started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "version": facts.version(),
        "argv": [PROGRAM, *argv],
        "options": {"only": args.only, "bin_dir": str(folder)},
        "matrix": matrix.to_json(),
        "seed": seed,
        "client_shape": _client_shape(matrix),
        "source": facts.source(),
        "build": facts.build(folder),
        "host": facts.host(),
    }


def _run(args: Any, argv: list[str], matrix: Matrix, seed: int, resumed: store.Run | None) -> int:
    from matrix import runner  # needs rich, which may have been installed just now

    folder = (args.bin_dir or RELEASE).resolve()
    started = datetime.now(timezone.utc)
    now = _meta(args, argv, matrix, seed, folder, started)
    path = resumed.path if resumed else args.output or store.RESULTS / f"{started:%Y%m%dT%H%M%SZ}-{matrix.name}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        return usage.fail(PROGRAM, f"{error.filename}: {error.strerror}; give --output a folder that you may write to")
    with contextlib.closing(store.Recorder(path)) as recorder:
        if resumed:
            resumed = store.load(path)  # once more, now that nobody else writes to it
            part = {key: now[key] for key in ("started_at", "argv", "options", "source", "build", "host")}
            now = {**resumed.meta, "resumed": [*resumed.meta.get("resumed", []), part]}
        elif store.holds_a_run(path):  # another's, made while this one was setting up
            raise UsageError(f"--output: {path} holds a run by now; name another folder, or --resume it")
        recorder.go_on_at(resumed.whole_bytes if resumed else 0)
        store.write_meta(path, now)
        tools = Tools(folder)
        tools.ask()
        return runner.run(path, spec.cells(matrix, seed), _left(matrix, seed, resumed), tools, recorder)
