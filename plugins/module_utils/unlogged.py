# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module whose calls are not written to the host's journal."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule


class UnloggedModule(AnsibleModule):  # type: ignore[misc]
    """For calls that are long, and whose parts say more than the journal should know, such as the hash of a secret.

    `no_log=True` of `AnsibleModule` does not do it: what the task says of `no_log` takes its place before the call is
    logged.
    """

    def _log_invocation(self) -> None:
        """Write nothing."""
