# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The witness of service rules reads slices and the kernel's table alike."""

from __future__ import annotations

import re
from typing import Any

from tests.service_rules import declared, written

TABLE = """table ip kube-proxy {
\tmap service-ips {
\t\ttype ipv4_addr . inet_proto . inet_service : verdict
\t\tcomment "ClusterIP, ExternalIP and LoadBalancer IP traffic"
\t\telements = { 10.96.0.10 . udp . 53 : goto service-ABCDEF-kube-system/kube-dns/udp/dns,
\t\t\t     10.96.52.250 . tcp . 443 : goto service-GHIJKL-data/empty/tcp/ }
\t}

\tchain services {
\t\tip daddr . meta l4proto . th dport vmap @service-ips
\t}

\tchain service-ABCDEF-kube-system/kube-dns/udp/dns {
\t\tip daddr 10.96.0.10 udp dport 53 ip saddr != 10.244.0.0/16 jump mark-for-masquerade
\t\tnumgen random mod 2 vmap { 0 : goto endpoint-A-kube-system/kube-dns/udp/dns__10.244.0.79/53, \
1 : goto endpoint-B-kube-system/kube-dns/udp/dns__10.244.1.79/53 }
\t}

\tchain endpoint-A-kube-system/kube-dns/udp/dns__10.244.0.79/53 {
\t\tmeta l4proto udp dnat to 10.244.0.79:53
\t}

\tchain service-GHIJKL-data/empty/tcp/ {
\t}
}
"""


def slice_of(addresses: dict[str, bool]) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "ports": [{"name": "dns", "protocol": "UDP", "port": 53}],
        "endpoints": [{"addresses": [one], "conditions": {"ready": ready}} for one, ready in addresses.items()],
    }


def test_a_table_says_where_services_lead() -> None:
    assert written(TABLE)["kube-system/kube-dns/udp/dns"] == {"10.244.0.79/53", "10.244.1.79/53"}
    assert "services" not in written(TABLE)


def test_an_address_that_no_map_knows_leads_nowhere() -> None:
    """What a proxy leaves that takes its own entries for another's."""
    lost = re.sub(r"\t\telements = \{[^}]*\}\n", "", TABLE)
    assert written(lost) == {"kube-system/kube-dns/udp/dns": set()}


def test_slices_of_one_service_are_taken_together_and_only_what_is_ready_counts() -> None:
    slices = [slice_of({"10.244.0.79": True, "10.244.2.2": False}), slice_of({"10.244.1.79": True})]
    assert declared(slices) == written(TABLE.partition("\tchain service-GHIJKL")[0])
