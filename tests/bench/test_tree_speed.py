# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`tree` against builtin tasks that do the same: 50 files, half of them templates, over SSH through the bastion."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.conftest import Stopwatch

FILES = 50
ROUNDS = int(os.environ.get("GROUNDPLANE_RUNS", "3"))
SHORT_RUNS = 3  # in each round, of what takes less than a second and is therefore noisy
TARGET = "/tmp/groundplane-bench"
UNCHANGED_AT_LEAST = 15
FIRST_WRITE_AT_LEAST = 10


def write_role(role: Path) -> list[tuple[str, bool]]:
    """Make a role with 50 files of about 1.5 kB like those of /etc; give their names and whether each is a template."""
    generator = random.Random(50)
    files = []
    for number in range(FILES):
        template = number % 2 == 0
        name = f"part{number % 5}/service{number}.conf"
        lines = [f"option{line} = value{generator.randrange(10**6)}" for line in range(50)]
        if template:
            lines += [
                "{% for host in groups['all'] | sort %}",
                "peer {{ host }}",
                "{% endfor %}",
                "size = {{ bench_size }}",
            ]
        source = role / f"templates/tree{TARGET}/tree/{name}{'.j2' if template else ''}"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("\n".join(lines) + "\n")
        # The same bytes where the builtin modules look for them.
        plain = role / ("templates" if template else "files") / f"plain/{name}{'.j2' if template else ''}"
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.write_bytes(source.read_bytes())
        files.append((name, template))
    return files


def builtin_tasks(files: list[tuple[str, bool]]) -> list[dict[str, object]]:
    """One task a file, as a role would have them, and one for each directory."""
    tasks: list[dict[str, object]] = [
        {
            "name": f"Directory {part}",
            "ansible.builtin.file": {"path": f"{TARGET}/builtin/{part}", "state": "directory", "mode": "0755"},
        }
        for part in sorted({name.split("/")[0] for name, _template in files})
    ]
    for name, template in files:
        module = "ansible.builtin.template" if template else "ansible.builtin.copy"
        arguments = {
            "src": f"plain/{name}{'.j2' if template else ''}",
            "dest": f"{TARGET}/builtin/{name}",
            "owner": "root",
            "group": "root",
            "mode": "0644",
        }
        tasks.append({"name": name, module: arguments})
    return tasks


def playbook(path: Path, host: str, tasks: list[dict[str, object]]) -> Path:
    """Write a play of one role that has these tasks."""
    role = path.parent / "roles/bench/tasks"
    role.mkdir(parents=True, exist_ok=True)
    (role / f"{path.stem}.yml").write_text(yaml.safe_dump(tasks, sort_keys=False))
    include = {"ansible.builtin.import_role": {"name": "bench", "tasks_from": path.stem}}
    play = {"hosts": host, "gather_facts": False, "vars": {"bench_size": 5}, "tasks": [include]}
    path.write_text(yaml.safe_dump([play], sort_keys=False))
    return path


def test_tree_is_faster_than_builtin_tasks(stopwatch: Stopwatch, tmp_path: Path) -> None:
    files = write_role(tmp_path / "roles/bench")
    builtin = playbook(tmp_path / "builtin.yml", stopwatch.host, builtin_tasks(files))
    tree = playbook(
        tmp_path / "tree.yml", stopwatch.host, [{"name": "Tree", "groundplane.onprem.tree": {"src": "tree"}}]
    )
    for _round in range(ROUNDS):
        for _run in range(SHORT_RUNS):
            stopwatch.lab.run(stopwatch.host, f"rm -rf {TARGET}")
            stopwatch.empty()
            stopwatch.play("tree, first write", tree)
            assert "changed=0 " in stopwatch.play("tree, unchanged", tree)
        stopwatch.play("builtin, first write", builtin)
        assert "changed=0 " in stopwatch.play("builtin, unchanged", builtin)
    stopwatch.lab.run(stopwatch.host, f"diff -r {TARGET}/tree {TARGET}/builtin && rm -rf {TARGET}")

    print()
    for name in stopwatch.seconds:
        if name not in ("warm", "empty"):
            runs = len(stopwatch.seconds[name])
            print(f"{name}: {stopwatch.net(name):.2f} s (median of {runs}, start of Ansible taken off)")
    unchanged = stopwatch.ratio("builtin, unchanged", "tree, unchanged")
    first = stopwatch.ratio("builtin, first write", "tree, first write")
    print(f"tree is {unchanged:.0f} times faster when nothing changes and {first:.0f} times on the first write")
    assert unchanged >= UNCHANGED_AT_LEAST
    assert first >= FIRST_WRITE_AT_LEAST
