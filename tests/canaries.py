# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets of the lab as canaries: who shows one, in its output, its log, an argv or an environment.

Each secret of the lab is a random value of its own, so it is searched by its value.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab import Lab, Play

# Reads canaries from standard input up to an empty line, then looks at every process each 20 ms until told to end. One
# that has been looked at for a second is looked at once a second: what it was started with does not change any more.
SAMPLER = r"""
import json, os, select, sys
canaries = []
for line in sys.stdin.buffer:
    if not line.strip(): break
    canaries.append(line.strip())
print("ready", flush=True)
hits, seen, rounds = set(), {}, 0
while True:
    rounds += 1
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    seen = {pid: seen.get(pid, -1) + 1 for pid in pids}
    for pid in pids:
        if seen[pid] > 50 and (rounds + int(pid)) % 50: continue
        for name in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file: text = file.read()
            except OSError: continue
            for number, canary in enumerate(canaries):
                if canary in text: hits.add((number, name, pid, text[:60].decode(errors="replace")))
    if select.select([sys.stdin], [], [], 0.02)[0]: break
print(json.dumps({"rounds": rounds, "hits": sorted(map(str, hits))}), flush=True)
"""


def canaries_of(lab: Lab) -> dict[str, str]:
    """Name to value of every secret of the lab."""
    found = {path.name: path.read_text().strip() for path in (lab.directory / "secrets").iterdir()}
    assert found, "the lab has no secrets"
    assert len(set(found.values())) == len(found)
    return found


@contextmanager
def sampled(canaries: dict[str, str]) -> Iterator[list[str]]:
    """Watch argv and environment of every process of this machine and of the lab's hosts; hits are known at the end."""
    hits: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", SAMPLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watcher:
        if watcher.stdin is None or watcher.stdout is None:
            raise RuntimeError("the sampler has no pipes")
        watcher.stdin.write("".join(f"{value}\n" for value in canaries.values()) + "\n")
        watcher.stdin.flush()
        assert watcher.stdout.readline() == "ready\n"
        try:
            yield hits
        finally:
            answer = json.loads(watcher.communicate("\n", timeout=30)[0])
    assert answer["rounds"] > 10, "the sampler hardly ran"
    hits += answer["hits"]


@dataclass
class Watched:
    """A run as talkative as can be, and what was seen of secrets in it."""

    play: Play
    shown: list[str]
    """Names of the secrets in its output or its log."""
    hits: list[str]
    """Processes, of this machine or of the lab's hosts, that had one in their argv or their environment."""

    def assert_secret(self) -> None:
        """Fail if the run showed a secret or a private key."""
        assert self.shown == []
        assert "PRIVATE KEY-----" not in self.play.output
        assert self.hits == []


def watched(lab: Lab, log: Path, *arguments: str, environment: dict[str, str] | None = None) -> Watched:
    """Run playbooks/site.yml with `-vvvv --diff`, while every process is looked at.

    Args:
        lab: the lab.
        log: a file that is not there yet; Ansible writes its own log to it.
        arguments: of the run.
        environment: adds to the lab's.
    """
    canaries = canaries_of(lab)
    with sampled(canaries) as hits:
        play = lab.play(
            "site", "-vvvv", "--diff", *arguments, environment={"ANSIBLE_LOG_PATH": str(log)} | (environment or {})
        )
    written = log.read_text()
    shown = [name for name, value in canaries.items() if value in play.output or value in written]
    return Watched(play, shown, hits)
