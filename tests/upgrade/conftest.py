# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Upgrades share the clients of fault drills."""

from __future__ import annotations

from tests.faults.conftest import drill_api, one_drill_at_a_time

__all__ = ["drill_api", "one_drill_at_a_time"]
