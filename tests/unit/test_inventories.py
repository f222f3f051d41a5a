# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The five environments have the same groups and variables, and the contracts fit each of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import contract
from ansible_collections.groundplane.onprem.plugins.module_utils.site import Site

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ["lab", "dev", "test", "staging", "prod"]
ONLY_IN_THE_LAB = {"router"}


def listing(environment: str) -> dict[str, Any]:
    done = subprocess.run(
        ["ansible-inventory", "-i", f"inventories/{environment}", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_contracts_fit_the_inventory(environment: str) -> None:
    inventory = listing(environment)
    hostvars = inventory["_meta"]["hostvars"]
    groups = {name: one["hosts"] for name, one in inventory.items() if "hosts" in one} | {"all": list(hostvars)}
    site = Site.from_hostvars(contract.discover([ROOT / "roles"]), groups, hostvars, next(iter(hostvars)))
    for host in hostvars:
        assert site.firewall(host)["inbound"], host
        assert all(one["directory"] for one in site.certificates(host))
    assert {one["name"] for one in site.endpoints()} == {"primary", "replicas", "direct"}
    assert {name for name in groups if name != "all"} - ONLY_IN_THE_LAB == {
        "bastion",
        "mirror",
        "time",
        "pki",
        "load_balancer",
        "etcd",
        "postgres",
    }
    assert hostvars[next(iter(hostvars))]["site_environment"] == environment


@pytest.mark.parametrize("environment", ["test", "staging", "prod"])
def test_voters_stand_in_three_zones(environment: str) -> None:
    inventory = listing(environment)
    for group in ("etcd", "postgres"):
        zones = [inventory["_meta"]["hostvars"][host]["host_zone"] for host in inventory[group]["hosts"]]
        assert sorted(zones) == ["a", "b", "c"]
