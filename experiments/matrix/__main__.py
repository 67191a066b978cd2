"""Entry of both programs: python3 experiments/matrix run_matrix|inspect ARGUMENTS."""

import errno
import sys
from pathlib import Path

# Python put this folder first; its parent takes the place, so that the modules here are the package
# `matrix` and none of them can stand in for one of the standard library.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from matrix import inspect_cli, run_cli, usage  # noqa: E402

PROGRAMS = {"run_matrix": run_cli.main, "inspect": inspect_cli.main}

if __name__ == "__main__":
    # A terminal that knows no ± gets a question mark, not a traceback.
    sys.stdout.reconfigure(errors="replace")
    code = PROGRAMS[sys.argv[1]](sys.argv[2:])
    try:
        sys.stdout.flush()
    except OSError as error:
        # Left to the interpreter's own end it would be a traceback.
        if code == 0 and error.errno != errno.EPIPE:
            code = usage.fail(sys.argv[1], f"output: {error.strerror}")
    sys.exit(code)
