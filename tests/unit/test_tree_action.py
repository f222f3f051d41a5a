# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`groundplane.onprem.tree` in real plays on this machine."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
OWNER = {"owner": str(os.getuid()), "group": str(os.getgid())}


class Project:
    """A playbook with one role."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = directory / "host"
        self.templates = directory / "roles/r/templates"
        self.host.mkdir()
        (directory / "ansible.cfg").touch()
        self.templates.mkdir(parents=True)

    def source(self, name: str, content: str | bytes, tree: str = "tree") -> None:
        """Put a file into the role's tree."""
        path = self.templates / f"{tree}{self.host}/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def run(self, *tasks: dict[str, Any], variables: dict[str, Any] | None = None, flags: tuple[str, ...] = ()) -> Run:
        """Run tasks of the role."""
        directory = self.directory / "roles/r/tasks"
        directory.mkdir(exist_ok=True)
        (directory / "main.yml").write_text(yaml.safe_dump(list(tasks)))
        handlers = [{"name": name, "ansible.builtin.debug": {"msg": f"{name} ran"}} for name in ("One", "Two", "All")]
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {"ansible_python_interpreter": sys.executable, **(variables or {})},
            "roles": ["r"],
            "handlers": handlers,
        }
        (self.directory / "play.yml").write_text(yaml.safe_dump([play]))
        done = subprocess.run(
            [PLAYBOOK, "-i", "localhost,", "play.yml", *flags],
            cwd=self.directory,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(self.directory / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
                "ANSIBLE_NOCOLOR": "1",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Run(done.stdout, done.stderr)

    def tree(self, paths: dict[str, Any] | None = None, flags: tuple[str, ...] = (), **task: Any) -> Run:
        """Run one tree task; paths are relative to the host's root."""
        declared = {str(self.host / name): value for name, value in (paths or {}).items()}
        variables = task.pop("variables", None)
        options = task.pop("options", {})
        return self.run(
            {"name": "Tree", "groundplane.onprem.tree": {"paths": declared, **OWNER, **options}, **task},
            variables=variables,
            flags=flags,
        )


class Run:
    """What a play answered."""

    def __init__(self, output: str, errors: str) -> None:
        self.output, self.errors = output, errors
        self.plays = json.loads(output[output.index("{") :])["plays"]

    def __getitem__(self, key: str) -> Any:
        return self.result[key]

    @property
    def result(self) -> dict[str, Any]:
        """Of the first task."""
        result: dict[str, Any] = self.plays[0]["tasks"][0]["hosts"]["localhost"]
        return result

    @property
    def handlers(self) -> list[str]:
        """Names of those that ran."""
        return sorted(
            task["task"]["name"] for task in self.plays[0]["tasks"] if task["task"]["name"] in ("One", "Two", "All")
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_role_converges_and_check_mode_told_it_before(project: Project) -> None:
    project.source("etc/a.conf.j2", "a={{ value }}\n{% if value %}\nb\n{% endif %}\n")
    project.source("etc/raw", b"\0{{ value }}\xff")
    paths: dict[str, Any] = {
        "etc/a.conf": {"mode": "0640", "validate": "grep -q a=5 %s"},
        "made": {"content": "{{ value }}-{{ 'x' | upper }}"},
        "link": {"state": "link", "target": "made"},
        "dir": {"state": "directory", "mode": "0700"},
    }
    predicted = project.tree(paths, variables={"value": 5}, flags=("--check", "--diff"))
    assert list(project.host.iterdir()) == []
    done = project.tree(paths, variables={"value": 5}, flags=("--diff",))
    assert done.result == predicted.result
    assert (project.host / "etc/a.conf").read_text() == "a=5\nb\n"
    assert (project.host / "etc/raw").read_bytes() == b"\0{{ value }}\xff"
    assert (project.host / "made").read_text() == "5-X"
    again = project.tree(paths, variables={"value": 5}, flags=("--diff",))
    assert (again["changed"], again["changed_paths"], again["diff"]) == (False, [], [])


def test_templates_render_as_the_template_module_renders_them(project: Project) -> None:
    (project.templates / "part.j2").write_text("part {{ value }}\n")
    (project.templates / "macro.j2").write_text("{% macro m(x) %}[{{ x }}]{% endmacro %}\n")
    text = (
        "# {{ ansible_managed }}\n{% import 'macro.j2' as lib %}\n{{ lib.m(value) }}\n{% include 'part.j2' %}\nend\n"
        "  {% for x in range(3) %}\n  {{ x }}\n  {% endfor %}\n{{ template_destpath }} {{ template_fullpath }}\n"
        "{{ {'a': [1, true, none]} | to_nice_json }}\n\\n \\1 {{ '\\\\' }}\n{# comment #}\n{{ unsafe }}\n\n"
    )
    cases = {
        "plain": text,
        "no-newline": "{{ value }}",
        "empty": "",
        "blank": "\n\n",
        "override": "#jinja2: lstrip_blocks: True, trim_blocks: False\n   {% if value %}\nx\n  {% endif %}\n",
        "unicode": "ä {{ 'ö' }}\n",
        "dos": "a\r\n{{ value }}\r\n",
    }
    variables = {"value": 5, "unsafe": "{{ '{{ not rendered }}' }}"}
    for name, content in cases.items():
        project.source(f"x/{name}.j2", content)
    source = f"tree{project.host}/x"
    builtin = [
        {
            "name": name,
            "ansible.builtin.template": {"src": f"{source}/{name}.j2", "dest": f"{project.host}/x/{name}"},
        }
        for name in cases
    ]
    run = project.run({"name": "Tree", "groundplane.onprem.tree": OWNER}, *builtin, variables=variables)
    assert run["changed"]
    # The builtin module finds nothing to change in what tree has written.
    for task in run.plays[0]["tasks"][1:]:
        name, result = task["task"]["name"], task["hosts"]["localhost"]
        assert result.get("changed") is False, (name, result, (project.host / "x" / name).read_bytes())


def test_one_template_serves_many_paths_and_paths_are_templates(project: Project) -> None:
    (project.templates / "one.j2").write_text("{{ n }} {{ template_destpath | basename }}\n")
    paths = {
        "{{ directory }}/a": {"template": "one.j2", "vars": {"n": 1}},
        "{{ directory }}/b": {"template": "one.j2", "vars": {"n": "{{ value }}"}},
    }
    project.tree(paths, variables={"directory": "d", "value": 2})
    assert [(project.host / "d" / name).read_text() for name in "ab"] == ["1 a\n", "2 b\n"]


def test_handlers_run_for_the_paths_that_changed(project: Project) -> None:
    def run(one: str, two: str, **task: Any) -> list[str]:
        paths = {"one": {"content": one, "notify": "One"}, "two": {"content": two, "notify": ["Two"]}}
        return project.tree(paths, **task).handlers

    assert run("1", "1") == ["One", "Two"]
    assert run("1", "1") == []
    assert run("1", "2", notify="All") == ["All", "Two"]
    assert run("2", "2", flags=("--check",)) == ["One"]


def test_diffs_are_exact(project: Project) -> None:
    for name in ("text", "secret", "binary", "gone"):
        (project.host / name).write_text("old\n")
        (project.host / name).chmod(0o600)
    project.source("binary", b"\0")
    paths = {
        "text": {"content": "new\n", "mode": "0644"},
        "secret": {"content": "new\n", "secret": True},
        "binary": {"mode": "0600"},
        "gone": {"state": "absent"},
        "new": {"content": "n"},
    }
    host = str(project.host)
    attributes = {"group": OWNER["group"], "owner": OWNER["owner"]}
    expected = [
        {"prepared": f"{host}/binary: content differs (binary, not shown)\n"},
        {"before_header": f"{host}/gone", "after_header": f"{host}/gone", "before": "old\n", "after": ""},
        {
            "before_header": f"{host}/gone",
            "after_header": f"{host}/gone",
            "before": {"state": "file"},
            "after": {"state": "absent"},
        },
        {"before_header": f"{host}/new", "after_header": f"{host}/new", "before": "", "after": "n"},
        {
            "before_header": f"{host}/new",
            "after_header": f"{host}/new",
            "before": {"state": "absent"},
            "after": {"state": "file", "mode": "0644", **attributes},
        },
        {"prepared": f"{host}/secret: content differs (secret, not shown)\n"},
        {"before_header": f"{host}/text", "after_header": f"{host}/text", "before": "old\n", "after": "new\n"},
        {
            "before_header": f"{host}/text",
            "after_header": f"{host}/text",
            "before": {"mode": "0600"},
            "after": {"mode": "0644"},
        },
    ]
    assert project.tree(paths, flags=("--check", "--diff"))["diff"] == expected
    assert "diff" not in project.tree(paths, flags=("--check",)).result
    assert project.tree(paths, flags=("--diff",))["diff"] == expected


def test_the_diff_has_all_parts_of_the_call(project: Project) -> None:
    """In check mode, so that this machine keeps its kernel's settings."""
    path = "/etc/sysctl.d/99-groundplane-test.conf"
    options = {"paths": {path: {"content": "kernel.panic = 4242\n"}}, "kernel_settings": ["kernel.panic"]}
    run = project.tree(options=options, flags=("--check", "--diff"))
    assert run["changed_settings"] == {"kernel.panic": "4242"}
    assert [shown["after_header"] for shown in run["diff"]] == [path, path, "sysctl.d"]
    assert "diffs" not in run.result


def test_a_large_tree_travels_in_parts(project: Project) -> None:
    generator = random.Random(1)
    for number in range(4):
        project.source(f"big{number}", generator.randbytes(150_000))
    assert len(project.tree()["created"]) == 4
    (project.host / "big2").write_bytes(b"edited")
    run = project.tree(flags=("-vvv",))
    assert run["changed_paths"] == [str(project.host / "big2")]
    assert not project.tree()["changed"]
    assert (project.host / "big2").stat().st_size == 150_000


def test_secrets_are_nowhere(project: Project) -> None:
    canary = "canary-51d0"
    project.source("t.j2", "password={{ password }}\n")
    paths = {
        "t": {"secret": True},
        "c": {"content": "{{ password }}", "secret": True, "validate": "sh -c 'cat $0; grep -q x %s'"},
    }
    for good in ("x", ""):
        run = project.tree(paths, variables={"password": canary + good}, flags=("-vvvv", "--diff"))
        assert bool(run.result.get("failed")) == (not good)
        assert canary not in run.output + run.errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": "x"}, "unknown option sources; known are changed_paths, directory_mode, group"),
        ({"src": "nowhere"}, "nowhere"),
        ({"paths": ["/a"]}, "paths must be a dictionary"),
        ({"paths": {"/a": "x"}}, "paths: /a must be text, and its declaration a dictionary"),
        ({"mode": 420}, "mode: mode must be a quoted octal string"),
        ({"paths": {"/a": {"template": "undefined.j2"}}}, "'nothing_like_that' is undefined"),
        ({"paths": {"/a": {"template": "dictionary.j2"}}}, "renders to .*, not to text; use to_nice_json"),
    ],
)
def test_a_wrong_task_fails_with_its_reason(project: Project, options: dict[str, Any], message: str) -> None:
    (project.templates / "undefined.j2").write_text("{{ nothing_like_that }}")
    (project.templates / "dictionary.j2").write_text("{{ {'a': 1} }}")
    run = project.run({"name": "Tree", "groundplane.onprem.tree": options})
    assert run["failed"]
    assert re.search(message, run["msg"]), run["msg"]
