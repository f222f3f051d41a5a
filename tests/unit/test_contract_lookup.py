# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup reads all hosts' variables once in a worker, and anew each time in a process that outlives a task."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

import yaml
from ansible_collections.groundplane.onprem.plugins.lookup.contract import _site

from tests.lab import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Hosts(dict[str, dict[str, Any]]):
    """Variables by host that count how often somebody asked for those of one."""

    asked = 0

    def __getitem__(self, name: str) -> dict[str, Any]:
        self.asked += 1
        return super().__getitem__(name)


def variables() -> dict[str, Any]:
    """The inventory that the refusals are tested with, as Ansible gives it to a lookup."""
    tree = yaml.safe_load((ROOT / "tests/unit/fixtures/refusals/base.yml").read_text())["all"]
    groups: dict[str, list[str]] = {}
    hosts = Hosts()

    def walk(name: str, group: Mapping[str, Any]) -> Iterator[str]:
        for host, own in (group.get("hosts") or {}).items():
            hosts[host] = {**tree["vars"], **(hosts.get(host) or {}), **(own or {})}
            yield host
        for child, inner in (group.get("children") or {}).items():
            groups[child] = list(dict.fromkeys(walk(child, inner)))
            yield from groups[child]

    groups["all"] = list(dict.fromkeys(walk("all", tree)))
    return {"inventory_hostname": groups["all"][0], "groups": groups, "hostvars": hosts}


def ask_twice(asked: multiprocessing.SimpleQueue[Any] | None = None) -> tuple[int, int, bool]:
    """How often a host's variables were asked for by one and by two lookups, and whether both said the same."""
    given = variables()
    first = _site(given)
    once = given["hostvars"].asked
    same = _site(given) == first
    answer = (once, given["hostvars"].asked, same)
    if asked is not None:
        asked.put(answer)
    return answer


def test_a_process_that_outlives_a_task_reads_the_variables_each_time() -> None:
    once, twice, same = ask_twice()
    assert same
    assert twice == 2 * once > 0


def test_a_worker_reads_them_once() -> None:
    context = multiprocessing.get_context("fork")
    asked = context.SimpleQueue()
    worker = context.Process(target=ask_twice, args=(asked,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    once, twice, same = asked.get()
    assert same
    assert twice == once > 0
