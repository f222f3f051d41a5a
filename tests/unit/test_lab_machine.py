# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab leaves behind on a machine is told apart from what was there and from what another lab needs."""

from __future__ import annotations

from ansible_collections.groundplane.onprem.plugins.modules import lab_machine

SAVED = """\
*filter
:FORWARD ACCEPT [0:0]
:NETAVARK_FORWARD - [0:0]
-A FORWARD -m comment --comment "netavark firewall plugin rules" -j NETAVARK_FORWARD
-A FORWARD -s 10.0.0.1/32 -j ACCEPT
-A NETAVARK_FORWARD -d 10.77.1.0/24 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A NETAVARK_FORWARD -s 10.77.1.0/24 -j ACCEPT
COMMIT
"""


def test_rules_of_finds_the_engines_chains_and_only_jumps_to_them() -> None:
    chains, rules = lab_machine.rules_of(SAVED)
    assert chains == ["NETAVARK_FORWARD"]
    assert rules == [("FORWARD", '-m comment --comment "netavark firewall plugin rules" -j NETAVARK_FORWARD')]


def test_foreign_names_another_labs_subnet_and_not_our_own() -> None:
    assert lab_machine.foreign(SAVED, ["10.77.1.0/24"]) == set()
    assert lab_machine.foreign(SAVED, ["10.78.1.0/24"]) == {"10.77.1.0/24"}


def test_overlapping_ignores_own_bridges_and_the_default_route() -> None:
    routes = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "10.77.1.0/24", "dev": "podman1"},
        {"dst": "10.77.0.0/16", "dev": "podman9"},
    ]
    assert lab_machine.overlapping(routes, ["10.77.1.0/24"], {"podman1"}) == [("10.77.1.0/24", "podman9")]
    assert lab_machine.overlapping(routes, ["10.99.1.0/24"], set()) == []
