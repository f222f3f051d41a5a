# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of the site costs, by role: tasks a host and seconds a host. More tasks than budgeted fail."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests import results

if TYPE_CHECKING:
    from tests.lab import Lab, Play

BUDGET: dict[str, int] = yaml.safe_load((Path(__file__).parent / "budget.yml").read_text())
HEADER = re.compile(r"^TASK \[(?:groundplane\.onprem\.(?P<role>\w+) : )?(?P<name>.*)\] \*+\s*$")
CLOCK = re.compile(r"\(\d+:\d\d:[\d.]+\)\s+(\d+):(\d\d):([\d.]+) \*+\s*$")
DONE = re.compile(r"^(?:ok|changed): \[(?P<host>[^\] ]+)")

PROFILED = {"ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks"}
"""Environment of a run whose output `costs` can read."""


@dataclass
class Cost:
    """What one role cost in one run."""

    seconds: float = 0.0
    tasks: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def tasks_a_host(self) -> int:
        """Tasks on the host that had most."""
        return max(self.tasks.values(), default=0)

    @property
    def seconds_a_host(self) -> float:
        """Wall seconds shared by the hosts that the role ran on."""
        return round(self.seconds / max(len(self.tasks), 1), 2)


def costs(output: str) -> dict[str, Cost]:
    """Read a run's output under the callback ansible.posix.profile_tasks.

    Validations of arguments and includes run on the controller alone and are not counted as tasks of a host.
    """
    found: dict[str, Cost] = defaultdict(Cost)
    role, counts, started = "playbook", False, 0.0
    running = role
    for line in output.splitlines():
        if header := HEADER.match(line):
            role, counts = header["role"] or "playbook", not header["name"].startswith("Validating arguments")
        elif clock := CLOCK.search(line):
            now = int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
            found[running].seconds += now - started
            running, started = role, now
        elif (done := DONE.match(line)) and counts:
            found[role].tasks[done["host"]] += 1
    return found


def record_costs(name: str, play: Play) -> None:
    """Record what each role cost in a run under PROFILED, and fail if one is over its budget.

    Args:
        name: of the run, in the results.
        play: the run, which has to have ended well.
    """
    assert play.returncode == 0, play.output[-4000:]
    measured = costs(play.output)
    results.record(
        f"site_cost_{name}",
        {role: {"tasks_a_host": c.tasks_a_host, "seconds_a_host": c.seconds_a_host} for role, c in measured.items()},
    )
    over = {role: c.tasks_a_host for role, c in measured.items() if c.tasks_a_host > BUDGET.get(role, 0)}
    assert over == {}, "more tasks a host than tests/bench/budget.yml allows"


def profiled(lab: Lab, name: str, *arguments: str) -> tuple[Play, float]:
    """A run of the site whose costs are recorded and within budget: its outcome and its seconds, start included."""
    start = time.monotonic()
    play = lab.play("site", *arguments, environment=PROFILED)
    seconds = time.monotonic() - start
    record_costs(name, play)
    return play, seconds
