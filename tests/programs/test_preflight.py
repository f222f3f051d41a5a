# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The preflight playbook as it is run: what it refuses stops all that follows, and it gives no secret away.

The hosts are this machine under other names. Each rule by itself is in tests/unit/test_refusal.py; the lab's site is in
tests/integration/test_preflight.py.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import yaml

from tests.lab import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FIXTURES = ROOT / "tests" / "unit" / "fixtures" / "refusals"
TOGETHER = (
    *("voters_even", "subnets_overlap", "vip_outside-network", "vip_taken-host"),
    *("secret-shared", "unknown_variable", "unknown_variable-site", "table_key"),
)
SITE = """\
- name: Preflight
  ansible.builtin.import_playbook: {preflight}

- name: The work
  hosts: all
  gather_facts: false
  tasks:
    - name: Something is touched
      ansible.builtin.file: {{path: "{directory}/touched-{{{{ inventory_hostname }}}}", state: touch, mode: "0600"}}
"""


def merged(base: Any, change: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return deepcopy(change)
    both = {key: value for key, value in base.items() if key not in change or change[key] is not None}
    return both | {key: merged(both.get(key), value) for key, value in change.items() if key in both or key not in base}


class Run:
    """One run of a site's playbook, preflight first."""

    def __init__(self, directory: Path, inventory: Mapping[str, Any], *arguments: str) -> None:
        (directory / "inventory.yml").write_text(yaml.safe_dump(inventory))
        (directory / "site.yml").write_text(
            SITE.format(preflight=ROOT / "playbooks/preflight.yml", directory=directory)
        )
        done = subprocess.run(
            [
                ROOT / ".venv/bin/ansible-playbook",
                "-i",
                directory / "inventory.yml",
                directory / "site.yml",
                *arguments,
            ],
            cwd=ROOT,
            env=os.environ | {"ANSIBLE_CACHE_PLUGIN": "memory", "COLUMNS": "1000", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        self.returncode = done.returncode
        self.output = done.stdout + done.stderr
        self.touched = sorted(path.name.removeprefix("touched-") for path in directory.glob("touched-*"))

    @property
    def refused(self) -> list[str]:
        """The sentences of the failed task."""
        found = re.search(r"^\s+Refused for .*:\n((?:\s+- .*\n)+)", self.output, re.MULTILINE)
        return [line.strip().removeprefix("- ") for line in found[1].splitlines()] if found else []


def site(*changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fixtures' base with a secret for each that the real contracts ask for, and some changes."""
    inventory = yaml.safe_load((FIXTURES / "base.yml").read_text())
    for path in sorted(ROOT.glob("roles/*/meta/service.yml")):
        for secret in yaml.safe_load(path.read_text()).get("secrets", []):
            inventory["all"]["vars"].setdefault(secret["name"], secrets.token_hex(secret["minimum_length"]))
    # All hosts are this machine, which has no drives to spare.
    inventory["all"]["vars"]["object_store_drives_unchecked"] = True
    inventory["all"]["vars"]["ansible_python_interpreter"] = str(ROOT / ".venv/bin/python")
    for change in changes:
        inventory = merged(inventory, change)
    result: dict[str, Any] = inventory
    return result


def fixture(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FIXTURES / f"{name}.yml").read_text())
    return content


def sentences(*names: str) -> list[str]:
    """What is said of some fixtures, sorted."""
    return sorted(sentence for name in names for sentence in fixture(name)["says"])


def test_a_good_site_is_let_through(tmp_path: Path) -> None:
    run = Run(tmp_path, site())
    assert run.returncode == 0, run.output
    assert run.touched == sorted(site()["all"]["hosts"])


def test_one_reason_is_enough_and_an_extra_variable_is_looked_at_too(tmp_path: Path) -> None:
    run = Run(tmp_path, site(), "-e", "preflight_purpse=repair")
    assert run.refused == ["all hosts: preflight_purpse is no variable of any role, did you mean preflight_purpose?"]
    assert run.returncode != 0
    assert run.touched == []


def test_all_reasons_are_told_together_and_nothing_is_touched(tmp_path: Path) -> None:
    run = Run(tmp_path, site(*(fixture(name)["inventory"] for name in TOGETHER)))
    assert sorted(run.refused) == sentences(*TOGETHER), run.output
    assert run.returncode != 0
    assert run.touched == []


def test_a_repair_goes_on_with_part_of_a_quorum_and_without_the_dead_and_converging_does_not(tmp_path: Path) -> None:
    dead = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
    inventory = site({"all": {"hosts": {"worker1": dead}}})
    said = [
        *fixture("partial_run")["says"],
        *(sentence.replace("data3", "worker1") for sentence in fixture("unreachable")["says"]),
    ]
    run = Run(tmp_path, inventory, "--limit", "lb1,lb2,data1,worker1")
    assert run.refused == said, run.output
    assert run.returncode != 0
    assert run.touched == []
    run = Run(tmp_path, inventory, "--limit", "lb1,lb2,data1,worker1", "-e", "preflight_purpose=repair")
    assert run.touched == ["data1", "lb1", "lb2"], run.output
    assert "Refused" not in run.output
    assert all(sentence in run.output for sentence in said)


def test_check_mode_refuses_alike(tmp_path: Path) -> None:
    names = ("address_twice", "secret-default", "subnets_overlap")
    run = Run(tmp_path, site(*(fixture(name)["inventory"] for name in names)), "--check", "--diff")
    assert sorted(run.refused) == sentences(*names), run.output
    assert run.returncode != 0


def test_a_secret_is_nowhere_in_the_output_however_verbose(tmp_path: Path) -> None:
    canary = f"canary{secrets.token_hex(3)}"
    weak = {
        "all": {"vars": {"postgres_superuser_password": canary, "postgres_replication_password": f"{{{{ {canary} }}}}"}}
    }
    run = Run(tmp_path, site(weak), "-vvvv")
    assert sorted(run.refused) == [
        *(one.replace("superuser", "replication") for one in fixture("secret-unreadable")["says"]),
        *(one.replace("has 11", "has 12") for one in fixture("secret-short")["says"]),
    ]
    assert canary not in run.output
