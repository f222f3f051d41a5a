# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel tells of processes, asked of real ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

from ansible_collections.groundplane.onprem.plugins.module_utils.process import kernel, oldest, started

if TYPE_CHECKING:
    from pathlib import Path


def test_a_process_keeps_its_start_and_is_known_by_its_name(tmp_path: Path) -> None:
    """Also by one that looks like the end of the field."""
    program = tmp_path / "a) b (c"
    program.symlink_to(str(shutil.which("sleep")))
    with subprocess.Popen([program, "60"]) as child:
        begun = time.monotonic()
        assert started(child.pid) >= started(os.getpid()) > 0
        time.sleep(0.3)
        assert abs(oldest(program.name) - (time.monotonic() - begun)) < 2
        child.kill()
    assert started(child.pid) == 0
    assert oldest(program.name) == 0


def test_the_kernel_is_the_same_for_all_of_its_processes() -> None:
    assert kernel()
    assert kernel() == kernel()
