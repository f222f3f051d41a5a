# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After `make lab-down` the machine is what it was before `make lab`. Runs last: it ends the lab."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.groundplane.onprem.plugins.module_utils import kernel_settings
from ansible_collections.groundplane.onprem.plugins.modules import lab_machine

if TYPE_CHECKING:
    from tests.lab import Lab


def processes_naming(text: str) -> list[str]:
    """Command lines of this machine's processes that contain a text, without our own callers."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and "pytest" not in line and "make" not in line:
            found.append(line)
    return found


def test_lab_down_leaves_nothing(lab: Lab) -> None:
    before = json.loads((lab.directory / "machine.json").read_text())
    bridges = lab_machine.engine_interfaces(lab.directory)
    assert bridges
    subprocess.run(["make", "lab-down"], cwd=lab.directory.parent, check=True, timeout=240)
    assert not lab.directory.exists()
    assert processes_naming(str(lab.directory)) == []
    links = {link["ifname"] for link in json.loads(lab_machine.run("ip", "-json", "link"))}
    assert links & bridges == set()
    settings = before.pop("settings")
    assert kernel_settings.running(settings) == settings
    assert lab_machine.snapshot() == before
    assert lab_machine.remove_groups(check=True) == []
    mounts = Path("/proc/mounts").read_text()
    assert str(lab.directory) not in mounts


def test_lab_down_again_is_quiet() -> None:
    done = subprocess.run(
        ["make", "lab-down"],
        cwd=Path(__file__).resolve().parents[2],
        check=True,
        timeout=240,
        capture_output=True,
        text=True,
    )
    assert "changed=0" in done.stdout
