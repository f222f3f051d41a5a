# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role looks like every other, and its argument specification says what its defaults do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import contract
from ansible_collections.groundplane.onprem.plugins.module_utils.site import conditions

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
NOT_A_SERVICE = {"firewall", "lab_site", "router"}
TASKS_AT_MOST = 20
LINES_AT_MOST = 120
WRITTEN = ("roles/**/*", "playbooks/**/*", "inventories/**/*", "molecule/*/*")
SET_FILTER = re.compile(r"\|\s*(difference|intersect|union|symmetric_difference)\(")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def options(role: Path) -> dict[str, dict[str, Any]]:
    specs = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    found: dict[str, dict[str, Any]] = {}
    for entry in specs.values():
        found.update(entry.get("options", {}))
    return found


@pytest.fixture(params=ROLES, ids=lambda path: path.name)
def role(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_role_has_the_files_of_a_role(role: Path) -> None:
    expected = ["meta/argument_specs.yml", "meta/main.yml", "defaults/main.yml", "tasks/main.yml"]
    if role.name not in NOT_A_SERVICE:
        expected.append("meta/service.yml")
    assert [name for name in expected if not (role / name).exists()] == []


def test_role_has_a_scenario_that_spoils_repairs_and_looks(role: Path) -> None:
    """`lab_site` makes the nodes of all scenarios and needs none of its own."""
    if role.name != "lab_site":
        scenario = ROOT / "molecule" / role.name
        assert sorted(path.name for path in scenario.iterdir()) == ["molecule.yml", "spoil.yml", "verify.yml"]


def test_every_default_is_specified_and_equal(role: Path) -> None:
    defaults = load(role / "defaults" / "main.yml") or {}
    specified = options(role)
    assert sorted(set(defaults) - set(specified)) == [], "defaults that the specification does not know"
    different = {
        name: (value, specified[name].get("default"))
        for name, value in defaults.items()
        if specified[name].get("default") != value
    }
    assert different == {}
    unset = [name for name, option in specified.items() if "default" in option and name not in defaults]
    assert unset == [], "specified defaults that no file sets"


def test_variables_carry_the_roles_name(role: Path) -> None:
    names = {*(load(role / "defaults" / "main.yml") or {}), *options(role)}
    # What all roles of a cluster agree on is stated by the one that all of its hosts have.
    shared = {"site_"} | ({"kubernetes_"} if role.name == "kubernetes_node" else set())
    assert [name for name in names if not name.startswith((f"{role.name}_", *shared))] == []


def test_every_option_is_typed_and_described(role: Path) -> None:
    assert [
        name for name, option in options(role).items() if "type" not in option or not option.get("description")
    ] == []


def test_task_files_are_short_and_say_what_is_true_afterwards(role: Path) -> None:
    for path in (role / "tasks").rglob("*.yml"):
        assert len(path.read_text().splitlines()) <= LINES_AT_MOST, path
        tasks = load(path)
        assert len(tasks) <= TASKS_AT_MOST, path
        assert [task for task in tasks if "name" not in task] == [], path


def test_contracts_of_all_roles_are_valid() -> None:
    services = contract.discover([ROOT / "roles"])
    assert {path.parent.parent.name for path in (ROOT / "roles").glob("*/meta/service.yml")} == set(services)


def test_a_condition_of_a_contract_has_the_default_of_the_role_whose_variable_it_is() -> None:
    stated = [load(role / "defaults" / "main.yml") or {} for role in ROLES]
    found = conditions(contract.discover([ROOT / "roles"]))
    assert found, "no contract has a condition any more"
    for one in found:
        assert [defaults[one.variable] for defaults in stated if one.variable in defaults] == [one.default], (
            one.variable
        )


def test_no_list_goes_through_a_filter_that_loses_its_order() -> None:
    # Filters of sets give their items in an order of each process: what is made of it changes in each run.
    written = [path for pattern in WRITTEN for path in ROOT.glob(pattern) if path.suffix in (".yml", ".j2")]
    assert [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in written
        for found in SET_FILTER.finditer(path.read_text())
    ] == []
