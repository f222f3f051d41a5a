# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps what HAProxy knows of its members for the process that a reload starts; it would else believe that all are up.

Usage: haproxy_state.py ADMIN_SOCKET CONFIGURATION STATE_FILE. Kept is what concerns members of the configuration on
disk, at the same address; where to check them is left to the configuration, over which a state file would win. A member
that follows another (`track`) gets its state from that one alone: one of its own in the file would stay, however wrong,
until the other changes. Without an answer the file is removed: no knowledge rather than old one.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

SECONDS = 5.0

# Positions in a line of `show servers state`, version 1 (HAProxy, management guide, 9.3).
BACKEND, SERVER, ADDRESS, PORT = 1, 3, 4, 18
FROM_CONFIGURATION = {21: "0", 22: "-", 23: "-", 24: "0"}  # the check's and the agent's port and address
COLUMNS = 25


def ask(path: str) -> str:
    """The state of all servers, as `load-server-state-from-file` reads it.

    Raises:
        OSError: no answer, or one of another version.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        connection.sendall(b"show servers state\n")
        chunks = []
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    state = b"".join(chunks).decode()
    if not state.startswith("1\n"):
        raise OSError(f"unknown answer: {state[:80]!r}")
    return state


def members(configuration: str) -> set[tuple[str, str, str]]:
    """Backend, name and `address:port` of each server of a configuration that has a state of its own."""
    found = set()
    backend = ""
    for line in configuration.splitlines():
        words = line.split()
        if words[:1] == ["backend"]:
            backend = words[1]
        elif words[:1] == ["server"] and "track" not in words:
            found.add((backend, words[1], words[2]))
    return found


def select(state: str, configuration: str) -> str:
    """The lines of a state that still hold under a configuration."""
    known = members(configuration)
    kept = []
    for line in state.splitlines():
        words = line.split()
        if len(words) == COLUMNS and not line.startswith("#"):
            if (words[BACKEND], words[SERVER], f"{words[ADDRESS]}:{words[PORT]}") not in known:
                continue
            for position, value in FROM_CONFIGURATION.items():
                words[position] = value
        kept.append(" ".join(words))
    return "\n".join(kept) + "\n"


def keep(path: str, configuration: str, file: str) -> None:
    """Replace the file by the present state, or remove it.

    Raises:
        OSError: there is no state to keep; the file is gone.
    """
    Path(file).unlink(missing_ok=True)
    Path(file).write_text(select(ask(path), Path(configuration).read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    keep(*sys.argv[1:4])
