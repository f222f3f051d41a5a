# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Side-by-side timing of plays.

Two ways to one end are run in turn, in the same minutes, on the same host, so that a busy machine slows both. Of each
wall time the wall time of a play without tasks is taken off: starting Ansible is not what is compared.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.lab import ROOT, Lab

if TYPE_CHECKING:
    from pathlib import Path

EMPTY = "- hosts: {host}\n  gather_facts: false\n  tasks: []\n"


@dataclass
class Stopwatch:
    """Times plays against one host of the lab; seconds, by name of what was timed."""

    lab: Lab
    directory: Path
    host: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def play(self, name: str, playbook: Path, *arguments: str) -> str:
        """Run a playbook to success and note how long it took."""
        command = ["ansible-playbook", "-i", str(self.lab.inventory), str(playbook), *arguments]
        start = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.lab.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def empty(self) -> None:
        """Time a play without tasks."""
        playbook = self.directory / "empty.yml"
        playbook.write_text(EMPTY.format(host=self.host))
        self.play("empty", playbook)

    def net(self, name: str) -> float:
        """Median wall time of `name` in seconds, without the start of Ansible."""
        return statistics.median(self.seconds[name]) - statistics.median(self.seconds["empty"])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times faster `fast` is. Nothing that Ansible does takes less than 0.1 s: less is noise."""
        return self.net(slow) / max(self.net(fast), 0.1)


@pytest.fixture
def stopwatch(lab: Lab, tmp_path: Path) -> Stopwatch:
    """A stopwatch whose connection to the host is up already."""
    stopwatch = Stopwatch(lab, tmp_path, "lb2")
    lab.run(stopwatch.host, "true")
    warm = tmp_path / "warm.yml"
    warm.write_text(f"- hosts: {stopwatch.host}\n  gather_facts: false\n  tasks: [{{ansible.builtin.ping: }}]\n")
    stopwatch.play("warm", warm)
    return stopwatch
