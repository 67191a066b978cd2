"""Command lines in the GNU style, and the packages that the programs need beyond the standard library."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from typing import NoReturn

from matrix import facts


class Parser(argparse.ArgumentParser):
    """Bad usage is one line and exit code 2; no abbreviated options."""

    def __init__(self, program: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=program,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--version", action="version", version=f"{program} {facts.version()}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of repetitions; allowed: 1 to 1000")
    return int(text)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"'{text}' is no seed; allowed: 0 to 2^63 - 1")
    return int(text)


def set_up(preset: str) -> bool:
    """Installs what is missing, and builds the preset ('--no-build': nothing)."""
    return subprocess.run([str(facts.ROOT / "experiments" / "setup"), preset], check=False).returncode == 0


def need_rich() -> bool:
    """rich is a Debian package, so it may be missing where Python is not."""
    if importlib.util.find_spec("rich"):
        return True
    installed = set_up("--no-build")
    importlib.invalidate_caches()
    return installed


def fail(program: str, message: object) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return 1
