#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages are installed, or gone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Debian packages are installed, or gone
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - What M(ansible.builtin.apt) does for a role, in a third of its time when there is nothing to do, because dpkg is
    asked, and apt only when something is lacking.
  - Installs without recommended packages and keeps changed configuration files. No service is started by its package,
    so that none runs before it is configured.
  - Package lists are fetched when the sources changed after the last fetch, or when a package is not to be had with the
    lists on disk. That is read from the host, so an interrupted run is finished by the next.
options:
  names:
    description: Packages that are installed, each as C(name) or C(name=version). No virtual packages.
    type: list
    elements: str
    default: []
  absent:
    description: Packages that are gone, with their configuration.
    type: list
    elements: str
    default: []
  lists:
    description:
      - Whether package lists have to belong to the present sources even when nothing is lacking, because something else
        on this host asks apt. Fetching them is no change.
    type: bool
    default: false
attributes:
  check_mode:
    description: >-
      Names what would be installed. Whether the sources have it is asked only when there are lists that belong to them,
      because check mode fetches none.
    support: full
  diff_mode:
    description: Lists the packages that change.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: The packages of the mirror are installed
  groundplane.onprem.packages:
    names: [nginx, apt-cacher-ng, docker-registry]
"""

RETURN = r"""
installed:
  description: Packages that were installed or finished.
  type: list
  elements: str
  returned: success
removed:
  description: Packages that were removed.
  type: list
  elements: str
  returned: success
refreshed:
  description: Whether package lists were fetched.
  type: bool
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import debian_packages


def main() -> None:
    """Read the call, converge, answer."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "absent": {"type": "list", "elements": "str", "default": []},
            "lists": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    names, absent, lists = (module.params[name] for name in ("names", "absent", "lists"))
    try:
        declared = debian_packages.Declaration(tuple(names), tuple(absent), lists)
        module.exit_json(**debian_packages.bring(declared, check=module.check_mode))
    except debian_packages.PackagesError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
