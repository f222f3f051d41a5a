# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays of one task on this machine, as Ansible runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Answer:
    """What one task answered, and all that the play printed."""

    result: dict[str, Any]
    output: str
    warnings: str


@dataclass
class Role:
    """A role with templates, and a play that runs a task of it."""

    directory: Path

    def template(self, name: str, content: str | list[dict[str, Any]]) -> None:
        """Put a file below the role's templates; documents are written as YAML."""
        path = self.directory / "roles/r/templates" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump_all(content))

    def run(
        self, module: str, arguments: dict[str, Any], *flags: str, variables: dict[str, Any] | None = None
    ) -> Answer:
        """Run one task."""
        tasks = self.directory / "roles/r/tasks"
        tasks.mkdir(parents=True, exist_ok=True)
        (tasks / "main.yml").write_text(yaml.safe_dump([{"name": "Task", f"groundplane.onprem.{module}": arguments}]))
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {"ansible_python_interpreter": sys.executable, **(variables or {})},
            "roles": ["r"],
        }
        (self.directory / "play.yml").write_text(yaml.safe_dump([play]))
        (self.directory / "ansible.cfg").touch()
        done = subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "play.yml", *flags],
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
            timeout=180,
            check=False,
        )
        plays = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
        return Answer(plays[0]["tasks"][-1]["hosts"]["localhost"], done.stdout, done.stderr)
