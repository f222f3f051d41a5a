# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The generated pages say what the code says."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import contract
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import API_ARGUMENTS

from docs import generate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return generate.pages()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Set O(state=absent) or C(a|b).", "Set `state=absent` or `a|b`."),
        (r"As V(ALL=(ALL:ALL\) ALL) says", "As `ALL=(ALL:ALL) ALL` says"),
        ("See M(groundplane.onprem.tree).", "See [`tree`](../tree.md)."),
        ("See M(ansible.builtin.apt).", "See `ansible.builtin.apt`."),
        ("P(groundplane.onprem.contract#lookup) gives", "[`contract`](../contract.md) gives"),
        ("RV(groundplane.onprem.tree#module:changed_paths)", "`changed_paths` of [`tree`](../tree.md)"),
        ("RV(restart_required) is E(HOME)", "`restart_required` is `HOME`"),
        ("R(the view,some.where) of L(Patroni, https://example.org/)", "the view of [Patroni](https://example.org/)"),
        ("B(never), I(ever), U(https://example.org/)", "**never**, *ever*, <https://example.org/>"),
        ("a * for DIR/<name>, not SRC(x)", r"a \* for DIR/\<name>, not SRC(x)"),
        ("C(a `b` c)", "``a `b` c``"),
    ],
)
def test_markup_of_ansible_becomes_markdown(text: str, expected: str) -> None:
    assert generate.markdown(text, "../") == expected


def test_markup_that_ansible_would_cut_off_is_refused() -> None:
    with pytest.raises(generate.PageError, match="first closing parenthesis"):
        generate.markdown("such as C(f(x))", "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        ("", '""'),
        ("off", '"off"'),
        ("0644", '"0644"'),
        ("*-*-* 00:00", '"*-*-* 00:00"'),
        ("{{ a | b }}", "{{ a | b }}"),
        ("lab", "lab"),
        ([], "[]"),
        ([1, "on"], "[1, 'on']"),
        ({"z": 1, "a": [2]}, "{z: 1, a: [2]}"),
    ],
)
def test_defaults_are_written_as_in_an_inventory(value: object, expected: str) -> None:
    assert generate.literal(value) == expected
    if "{{" not in expected:
        assert yaml.safe_load(expected) == value


def test_nested_options_stand_behind_theirs() -> None:
    leaf = {"type": "int", "description": "Leaf."}
    inner = {"type": "dict", "description": "Inner.", "options": {"leaf": leaf}}
    declared = {
        "outer": {"type": "list", "elements": "dict", "description": ["One.", "Two."], "options": {"inner": inner}},
        "last": {"description": "One.\nstill one\n\nTwo."},
    }
    rows = generate.options(declared)
    assert [(row["name"], row["type"]) for row in rows] == [
        ("outer", "list of dict"),
        ("outer[].inner", "dict"),
        ("outer[].inner.leaf", "int"),
        ("last", "str"),
    ]
    assert rows[0]["description"] == ["One.", "Two."]
    assert generate.cell("\n\n".join(rows[3]["description"])) == "One. still one<br>Two."
    assert [row["name"] for row in generate.options(declared, "suboptions")] == ["outer", "last"]


def test_tasks_of_blocks_and_included_files_stand_below_theirs(tmp_path: Path) -> None:
    (tmp_path / "inner.yml").write_text("- {name: Inner}\n")
    (tmp_path / "main.yml").write_text(
        """
- {name: Included, ansible.builtin.include_tasks: inner.yml}
- {name: By variable, ansible.builtin.include_tasks: "{{ x }}.yml"}
- name: Block
  block: [{name: In it, ansible.builtin.import_tasks: {file: inner.yml}}]
"""
    )

    def names(tasks: list[dict[str, Any]]) -> list[Any]:
        return [(task["name"], names(task["tasks"])) for task in tasks]

    assert names(generate.tasks(tmp_path / "main.yml")) == [
        ("Included", [("Inner", [])]),
        ("By variable", []),
        ("Block", [("In it", [("Inner", [])])]),
    ]


def role_page(stated: dict[str, Any] | None) -> str:
    entry = {
        "name": "main", "title": "A role", "description": [], "tasks": [], "declared": {}, "options": [], "same": None,
    }  # fmt: skip
    values = {"role": "x", "entries": [entry], "notes": "", "scenario": "x", "further": []}
    loaded = contract.load(stated).as_mapping() if stated else None
    return generate.page(generate.environment(), "role.md.j2", "", contract=loaded, **values)


def test_a_contract_shows_what_it_has_and_nothing_else() -> None:
    listen = {"name": "rest", "port": 8008, "tls": "none", "reason": "a | b", "from": ["all"], "from_networks": ["dmz"]}
    page = role_page({"service": "x", "group": "x", "listens": [listen]})
    row = r"| `rest` | 8008/tcp | none: a \| b | every host of the site, network `dmz` | the host's primary network |"
    assert row in page.splitlines()
    assert [
        word for word in ("| endpoint", "| certificate", "| secret", "| data", "Quorum", "Size") if word in page
    ] == []
    assert "## Its contract" not in role_page(None)


def test_every_part_of_a_contract_has_a_place_in_the_page() -> None:
    template = (generate.ROOT / "docs/templates/role.md.j2").read_text()
    missing = [
        field.name for field in dataclasses.fields(contract.Contract) if f"contract.{field.name}" not in template
    ]
    assert missing == []


def test_every_role_and_plugin_has_a_page(pages: dict[str, str]) -> None:
    roles = {f"roles/{path.name}/README.md" for path in (generate.ROOT / "roles").iterdir() if path.is_dir()}
    modules = {f"docs/plugins/{path.stem}.md" for path in (generate.ROOT / "plugins/modules").glob("*.py")}
    assert (roles | modules) - set(pages) == set()


def test_no_page_knows_the_machine_that_wrote_it(pages: dict[str, str]) -> None:
    assert [name for name, text in pages.items() if str(generate.ROOT) in text] == []


def test_links_between_pages_lead_somewhere(pages: dict[str, str]) -> None:
    broken = [
        f"{name}: {target}"
        for name, text in pages.items()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        if not (generate.ROOT / name).parent.joinpath(target).resolve().exists()
    ]
    assert broken == []


def test_a_page_that_is_not_current_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "pages", lambda: {"docs/plugins/a.md": "new\n", "docs/plugins/b.md": "same\n"})
    (tmp_path / "docs/plugins").mkdir(parents=True)
    for name, text in {"a": "old\n", "b": "same\n", "gone": "x\n"}.items():
        (tmp_path / f"docs/plugins/{name}.md").write_text(text)
    assert generate.main(["--check"]) == 1
    named = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert named == ["docs/plugins/a.md", "docs/plugins/gone.md"]
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert sorted(path.name for path in (tmp_path / "docs/plugins").iterdir()) == ["a.md", "b.md"]
    (tmp_path / "docs/plugins/a.md").unlink()
    assert generate.main(["--check"]) == 1, "a missing page alone"


def test_options_of_a_fragment_are_those_that_programs_take() -> None:
    documented = generate.shared_options(generate.ROOT / "plugins", ["groundplane.onprem.kubernetes_api"])
    assert {
        name: {key: value for key, value in option.items() if key != "description"}
        for name, option in documented.items()
    } == API_ARGUMENTS


def test_a_fragment_that_is_not_there_is_named() -> None:
    with pytest.raises(generate.PageError, match=r"community\.general\.proxmox"):
        generate.shared_options(generate.ROOT / "plugins", ["community.general.proxmox"])
