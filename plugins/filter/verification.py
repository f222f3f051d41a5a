# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of playbooks/verify.yml over the pure functions of module_utils/verification.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils import verification

if TYPE_CHECKING:
    from collections.abc import Callable


class FilterModule:
    """The filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return each filter by its name."""
        return {
            "probe_targets": verification.targets,
            "probe_identities": verification.identities,
            "endpoint_targets": verification.endpoint_targets,
            "contract_breaches": lambda answers, host, listens: verification.breaches(host, listens, answers),
            "site_summary": lambda answers, site, domain, members, endpoints: verification.summary(
                site, domain, members, endpoints, answers
            ),
        }
