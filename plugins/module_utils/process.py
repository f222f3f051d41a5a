# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes of this machine, by what the kernel tells of them (proc_pid_stat(5))."""

from __future__ import annotations

import os
from pathlib import Path

_STARTED = 19
"""Where `/proc/PID/stat` has the start time, counted after the name, which may hold anything."""


def _fields(process: int | str) -> tuple[str, list[str]]:
    """Name and further fields of a process; empty when there is none of that id."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", []
    head, _, rest = stat.rpartition(")")
    return head.partition("(")[2], rest.split()


def started(process: int) -> int:
    """When a process was started, in ticks since the boot; 0 when there is none of that id."""
    _, fields = _fields(process)
    return int(fields[_STARTED]) if fields else 0


def kernel() -> str:
    """Boot and namespace in which the ids of processes mean something; empty where there is no `/proc`."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _network(process: str) -> str:
    """The namespace of the network that a process has; empty when there is no such process, or we may not see it."""
    try:
        return str(Path(f"/proc/{process}/ns/net").readlink())
    except OSError:
        return ""


def oldest(name: str) -> float:
    """For how many seconds the oldest process of that name runs on this host's own network; 0 when none does.

    Args:
        name: as the kernel has it, at most 15 characters.
    """
    here = _network("self")
    starts = []
    for process in (path.name for path in Path("/proc").iterdir() if path.name.isdigit()):
        known, fields = _fields(process)
        if known == name and _network(process) == here:
            starts.append(int(fields[_STARTED]))
    if not starts:
        return 0.0
    uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return uptime - min(starts) / os.sysconf("SC_CLK_TCK")
