"""The host, the source and the build that a run was made on."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUSY_LOAD = 0.5

SYSCTLS = (
    "net/core/somaxconn",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_max_tw_buckets",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_migrate_req",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_mem",
    "fs/file-max",
    "kernel/pid_max",
    "kernel/threads-max",
)


def version() -> str:
    """The project's version, which stands in CMakeLists.txt alone."""
    found = re.search(r"project\([^)]*\bVERSION\s+([\d.]+)", (ROOT / "CMakeLists.txt").read_text())
    return found[1] if found else "unknown"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _field(path: str, key: str) -> str:
    found = re.search(rf"^{re.escape(key)}\s*:\s*(.+)$", _text(path), re.MULTILINE)
    return found[1].strip() if found else ""


def host() -> dict[str, Any]:
    memory_kib = int((_field("/proc/meminfo", "MemTotal") or "0").split()[0])
    folder = Path("/sys/devices/system/cpu/vulnerabilities")
    limits = {}
    for name in ("NOFILE", "NPROC"):
        soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        limits[f"RLIMIT_{name}"] = {"soft": soft, "hard": hard}  # -1 is unlimited
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu_model": _field("/proc/cpuinfo", "model name"),
        "hypervisor": "hypervisor" in _field("/proc/cpuinfo", "flags").split(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_kib * 1024,
        "mitigations": {path.name: _text(str(path)) for path in sorted(folder.glob("*"))},
        "limits": limits,
        "sysctls": {name.replace("/", "."): _text(f"/proc/sys/{name}") for name in SYSCTLS},
        "load_average_1min": os.getloadavg()[0],
    }


def source() -> dict[str, Any]:
    """The revision of the tree and whether it has changes of its own; None where git cannot say."""

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def build(folder: Path) -> dict[str, Any]:
    cache = str(folder / "CMakeCache.txt")
    keys = ("CMAKE_BUILD_TYPE", "CMAKE_CXX_COMPILER", "CMAKE_CXX_FLAGS", "C10K_SANITIZE")
    found = {}
    for key in keys:
        match = re.search(rf"^{key}:\w+=(.*)$", _text(cache), re.MULTILINE)
        found[key.lower()] = match[1] if match else ""
    programs = {}
    for name in ("c10k-server", "c10k-client", "minimal-server", "minimal-client"):
        try:
            programs[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError:
            programs[name] = None
    return {"folder": str(folder), **found, "programs_sha256": programs, "peers": _interpreters()}


def _interpreters() -> dict[str, str]:
    """The versions of what peers run in."""
    try:
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        node = ""
    return {"python": platform.python_version(), "node": node.strip()}


def flags(meta: dict[str, Any], cells: list[dict[str, Any]]) -> list[str]:
    """What makes this run less than clean, each with its remedy."""
    found = []
    built = meta["build"]
    if built["c10k_sanitize"] or built["cmake_build_type"] not in ("Release", "RelWithDebInfo"):
        what = built["c10k_sanitize"] or built["cmake_build_type"] or "unknown"
        found.append(f"{what} build: figures are not for comparing (use the release preset)")
    if meta["source"]["dirty"]:
        found.append("dirty tree: the revision alone does not name this source (commit first)")
    if meta["source"]["revision"] is None:
        found.append("revision unknown (git is missing, or this is no checkout)")
    if (load := meta["host"]["load_average_1min"]) > BUSY_LOAD:
        found.append(f"busy host: load {load:.1f} at the start (a build or run just before? wait a minute)")
    if busy := sum(cell.get("other_cpu", 0) > 0.05 for cell in cells):
        found.append(f"busy host: in {busy} of {len(cells)} cells other processes took over 5 % of the CPUs")
    programs = [part["build"]["programs_sha256"] for part in (meta, *meta.get("resumed", []))]
    if any(program != programs[0] for program in programs):
        found.append("resumed with other programs: its cells are not of one build")
    for part in meta.get("resumed", []):
        if any(part["host"].get(key) != meta["host"].get(key) for key in ("kernel", "cpu_model", "cores")):
            found.append("resumed on another host: its cells are not of one machine")
        if part["source"]["dirty"]:
            found.append("resumed with a dirty tree")
    return found


def one_line(facts: dict[str, Any]) -> str:
    virtual = " (virtual machine)" if facts["hypervisor"] else ""
    return (
        f"Linux {facts['kernel']} {facts['machine']}, {facts['cpu_model'] or 'unknown CPU'}{virtual}, "
        f"{facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB"
    )


def origin(meta: dict[str, Any]) -> str:
    """Of a run: what it takes to make it again, in a sentence."""
    revision = (meta["source"]["revision"] or "unknown")[:12]
    return (f"Seed {meta['seed']}, {meta['started_at'][:16]} UTC, revision {revision}, "
            f"{meta['build']['cmake_build_type'] or 'unknown'} build.")


def shown_path(path: Path) -> str:
    """As it is named from the project's folder, where it lies in there."""
    whole = path.resolve()
    return str(whole.relative_to(ROOT)) if whole.is_relative_to(ROOT) else str(whole)
