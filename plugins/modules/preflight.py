# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action of the same name; it runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Refuse a run before anything is touched
version_added: 0.1.0
description:
  - Looks at the service contracts, at all variables of the inventory and at what M(groundplane.onprem.host_state)
    registered, and fails with every reason not to run at once, one sentence each.
  - Runs once for all hosts of the play. It changes nothing, and no value of a secret is in its result.
attributes:
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: It changes nothing.
  bypass_host_loop:
    support: full
    description: It runs once for all hosts of the play.
options:
  purpose:
    description:
      - What the run is for. With V(repair), what a cluster under repair cannot help (an even number of members, a dead
        one, less memory) is only warned of.
      - With V(upgrade), live nodes of Kubernetes are held against C(kubernetes_upgrade_version), which may be newer
        than what they run.
    type: str
    choices: [converge, repair, upgrade]
    default: converge
  state_variable:
    description: The variable in which M(groundplane.onprem.host_state) was registered.
    type: str
    default: __preflight_host_state
seealso:
  - module: groundplane.onprem.host_state
author:
  - groundplane.onprem contributors
"""

EXAMPLES = r"""
- name: Nothing speaks against a run
  groundplane.onprem.preflight:
    purpose: "{{ preflight_purpose | default('converge') }}"
"""

RETURN = r"""
rules:
  description: The names of the rules that refuse or warn; the sentences are in the message and in the warnings.
  type: list
  elements: str
  returned: always
"""
