# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup of what the service contracts and the inventory together say."""

from __future__ import annotations

DOCUMENTATION = r"""
name: contract
author: groundplane.onprem contributors
short_description: What the service contracts say for a host of this inventory
description:
  - Reads C(meta/service.yml) of all roles, joins it with the inventory and returns one view of the result.
  - The answer depends only on the contracts, the inventory's groups, and the variables C(host_addresses),
    C(host_primary_network), C(host_zone), C(site_networks), C(site_vips), C(site_domain) and C(kubernetes_pod_subnet).
  - Roles of other collections take part when the variable C(site_role_paths) lists their roles directories.
options:
  _terms:
    description: >-
      The view: V(firewall) (a mapping of lists C(inbound), C(outbound), C(forward), C(pods)), V(endpoints),
      V(certificates), V(members) (a mapping of services to their hosts), V(secrets), V(services) or V(listens).
    required: true
    type: list
    elements: str
  host:
    description: The host that is looked at, when it is not the current one.
    type: str
  service:
    description: With V(members), return the list of that service alone.
    type: str
"""

EXAMPLES = r"""
- name: What may come in
  ansible.builtin.debug:
    msg: "{{ lookup('groundplane.onprem.contract', 'firewall').inbound }}"

- name: The etcd members that Patroni talks to
  ansible.builtin.debug:
    msg: "{{ lookup('groundplane.onprem.contract', 'members', service='etcd') | map(attribute='address') }}"
"""

RETURN = r"""
_raw:
  description: One view for each term; lists and mappings in a stable order.
  type: list
  elements: raw
"""

import multiprocessing
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.groundplane.onprem.plugins.module_utils.contract import (
    ContractError,
    discover,
    roles_directories,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.site import Site, SiteError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OF_A_HOST = ("firewall", "certificates", "services", "listens")
OF_THE_SITE = ("endpoints", "members", "secrets")

_READ: list[tuple[Any, str, Site]] = []
"""What this worker has read: all variables of all hosts, whose they were, and the site."""


class LookupModule(LookupBase):  # type: ignore[misc]
    """Thin: reads the variables and hands them to the library."""

    def run(self, terms: Sequence[str], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        """Return one view for each term."""
        if variables is None:
            raise AnsibleError("contract: there is no inventory to look at")
        self.set_options(var_options=variables, direct=kwargs)
        host = self.get_option("host") or variables["inventory_hostname"]
        try:
            site = _site(variables)
            return [self._view(site, term, host) for term in terms]
        except (ContractError, SiteError) as error:
            raise AnsibleError(f"contract: {error}") from error

    def _view(self, site: Site, view: str, host: str) -> Any:
        if view in OF_A_HOST:
            return getattr(site, view)(host)
        if view == "members":
            service = self.get_option("service")
            return site.members(service) if service else {name: site.members(name) for name in sorted(site.contracts)}
        if view in OF_THE_SITE:
            return getattr(site, view)()
        raise AnsibleError(f"contract: there is no view {view!r}, only {', '.join(sorted(OF_A_HOST + OF_THE_SITE))}")


def _site(variables: Mapping[str, Any]) -> Site:
    """The site as these variables say.

    A worker of Ansible lives for one task of one host, in which no variable of any host changes. Its templates ask many
    times, and the variables of all hosts take a tenth of a second each time: they are read once.

    Raises:
        ContractError: contracts are not as they should be.
        SiteError: the inventory lacks what every view needs.
    """
    here, hostvars = variables["inventory_hostname"], variables["hostvars"]
    for known, whose, site in _READ:
        if known is hostvars and whose == here:
            return site
    site = Site.from_hostvars(discover(roles_directories(hostvars[here])), variables["groups"], hostvars, here)
    if multiprocessing.parent_process() is not None:
        _READ.append((hostvars, here, site))
    return site
