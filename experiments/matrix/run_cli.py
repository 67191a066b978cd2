"""experiments/run_matrix: what it takes, and what it does with it."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from secrets import randbelow
from typing import Any

from matrix import facts, spec, store, usage
from matrix.cell import Tools, plan_of
from matrix.spec import Matrix, UsageError

PROGRAM = "run_matrix"
RELEASE = facts.ROOT / "build" / "release"
CLIENT_SHAPE = "the load is 1 client process with 1 thread"
PLANNED_SHAPE = "the load is as many client processes as the table says, with 1 thread each"


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
                        help="ways or workloads whose name matches the glob; repeatable")
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
            if args.output and (args.output / "run.json").exists():
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
        return usage.fail(PROGRAM, f"{error.filename or 'i/o'}: {error.strerror}")
    except KeyboardInterrupt:
        return usage.fail(PROGRAM, "interrupted before the first cell")


def _left(matrix: Matrix, seed: int, resumed: store.Run | None) -> list[spec.Cell]:
    done = {(cell["way"], cell["workload"], cell["repetition"]) for cell in resumed.cells} if resumed else set()
    return [cell for cell in spec.cells(matrix, seed) if cell.key not in done]


def _dry_run(matrix: Matrix, seed: int, folder: Path, resumed: store.Run | None) -> int:
    tools = Tools(folder)
    tools.ask()
    total, left = 0.0, _left(matrix, seed, resumed)
    for cell in left:
        status, reason = "unsupported", tools.unsupported(cell.way)
        if not reason and (planned := plan_of(cell)):
            status, reason = "not run", planned.refusal
        total += 0 if reason else cell.workload.expected_s
        print(f"{cell.order:4} {cell.repetition:3} {cell.workload.name:6} {cell.way.name}"
              + (f"  {status}: {reason}" if reason else ""))
    print(f"{len(left)} cells, about {total / 60:.1f} minutes, seed {seed}")
    if tools.list_error:
        print(f"{PROGRAM}: what is unsupported is unknown: {tools.list_error}", file=sys.stderr)
    return 0


def _meta(args: Any, argv: list[str], matrix: Matrix, seed: int, folder: Path, started: datetime) -> dict[str, Any]:
    return {
        "schema": store.RUN_SCHEMA,
        "started_at": started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "version": facts.version(),
        "argv": [PROGRAM, *argv],
        "options": {"only": args.only, "bin_dir": str(folder)},
        "matrix": matrix.to_json(),
        "seed": seed,
        "client_shape": PLANNED_SHAPE if any(load.held for load in matrix.workloads) else CLIENT_SHAPE,
        "source": facts.source(),
        "build": facts.build(folder),
        "host": facts.host(),
    }


def _run(args: Any, argv: list[str], matrix: Matrix, seed: int, resumed: store.Run | None) -> int:
    from matrix import runner  # needs rich, which may have been installed just now

    folder = (args.bin_dir or RELEASE).resolve()
    started = datetime.now(timezone.utc)
    now = _meta(args, argv, matrix, seed, folder, started)
    if resumed:
        path = resumed.path
        part = {key: now[key] for key in ("started_at", "argv", "options", "source", "build", "host")}
        meta = {**resumed.meta, "resumed": [*resumed.meta.get("resumed", []), part]}
    else:
        path = args.output or store.RESULTS / f"{started:%Y%m%dT%H%M%SZ}-{matrix.name}"
        meta = now
    path.mkdir(parents=True, exist_ok=True)
    recorder = store.Recorder(path, resumed.whole_bytes if resumed else 0)
    try:
        store.write_meta(path, meta)
        tools = Tools(folder)
        tools.ask()
        return runner.run(path, spec.cells(matrix, seed), _left(matrix, seed, resumed), tools, recorder)
    finally:
        recorder.close()
