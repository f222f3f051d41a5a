# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests of pure code have in common."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Seconds are the machine's, which builds a lab at the same time. What has to be fast is measured in tests/bench.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
