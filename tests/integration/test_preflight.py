# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The preflight playbook against the lab. What it refuses needs no lab: tests/programs/test_preflight.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab import Lab


def test_nothing_speaks_against_the_lab(lab: Lab) -> None:
    play = lab.play("preflight")
    assert play.returncode == 0, play.output
    assert play.changed == {}
    assert {counts["ok"] for counts in play.recap.values()} <= {1, 2}
