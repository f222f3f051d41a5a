# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What preflight needs to know of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_state
short_description: Memory, disks, clock, time daemons, addresses and Kubernetes versions of a host
version_added: 0.1.0
description:
  - Reports what the action M(groundplane.onprem.preflight) looks at. Reads only.
  - On the controller an action plugin of the same name fills in O(paths), O(records) and O(probes) from the service
    contracts and the inventory, measures the clock, and asks hosts of the group C(kubernetes) by
    M(groundplane.onprem.kubernetes_node_state) what they run.
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
options:
  paths:
    description: Directories of services. They need not exist yet.
    type: list
    elements: str
    default: []
  records:
    description: Files in JSON in which roles keep what a service was formed with. They need not exist.
    type: list
    elements: str
    default: []
  probes:
    description: Addresses that are asked for by ARP on the link of an address of this host (RFC 5227). Needs root.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: The address that is asked for.
        type: str
        required: true
      source:
        description: The address of this host that shows which interface to ask on.
        type: str
        required: true
seealso:
  - module: groundplane.onprem.kubernetes_node_state
author:
  - groundplane.onprem contributors
"""

EXAMPLES = r"""
- name: The state of each host is known
  groundplane.onprem.host_state:
  register: __preflight_host_state
"""

RETURN = r"""
memory_mb:
  description: Memory that the host may use, in MiB; a control group's limit counts.
  type: int
  returned: always
filesystems:
  description: >-
    For each path the file system it is on, or will be on: C(mount), C(device), C(size_gb), C(free_gb) (GiB, free to
    all users), and C(populated), whether the path exists and is not empty.
  type: dict
  returned: always
records:
  description: For each of O(records) its content; null where there is none, or none that is JSON.
  type: dict
  returned: always
addresses:
  description: All addresses of the host, or null where they cannot be read.
  type: list
  elements: str
  returned: always
hardware:
  description: The hardware addresses of the host's Ethernet interfaces.
  type: list
  elements: str
  returned: always
answering:
  description: >-
    The hardware address that answers for each probed address, an empty text where none does, null where one cannot ask.
  type: dict
  returned: always
time_daemons:
  description: The daemons that set the clock and are running.
  type: list
  elements: str
  returned: always
clock:
  description: The least and the greatest number of seconds by which the host's clock can be ahead of the controller's.
  type: dict
  contains:
    minimum: {description: At least., type: float}
    maximum: {description: At most., type: float}
  returned: always
kubernetes:
  description: >-
    Of M(groundplane.onprem.kubernetes_node_state), C(joined), C(kubelet_version) and C(manifest_version); null where a
    file of the node cannot be read.
  type: dict
  returned: for hosts of the group C(kubernetes)
"""

import json
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

TIME_DAEMONS = {
    "chronyd": "chrony",
    "ntpd": "ntpd",
    "openntpd": "openntpd",
    "ptp4l": "ptp4l",
    "systemd-timesyn": "systemd-timesyncd",  # the kernel keeps 15 characters of a name
}
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
GIB = 2**30
MIB = 2**20
ARP_WAIT = 0.3
"""Seconds to wait for an answer; neighbours of one link need a few milliseconds."""
ARP_TRIES = 2

_ETHERTYPE_ARP = 0x0806
_ARP_REPLY = 2


def memory_mb(meminfo: str, limits: list[str]) -> int:
    """The memory that may be used, in MiB.

    Args:
        meminfo: content of /proc/meminfo (proc(5)).
        limits: contents of the control group's limit files: bytes, or `max`.
    """
    total = next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemTotal:"))
    numbers = [int(limit) for limit in limits if limit.strip().isdigit()]
    return int(min([total, *numbers]) // MIB)


def filesystem_of(path: Path) -> dict[str, Any]:
    """The file system that a path is on, or will be on when it is made."""
    there = path
    while not there.exists():
        there = there.parent
    device = there.stat().st_dev
    mount = there
    while mount != mount.parent and mount.parent.stat().st_dev == device:
        mount = mount.parent
    numbers = os.statvfs(there)
    return {
        "mount": str(mount),
        "device": device,
        "size_gb": round(numbers.f_blocks * numbers.f_frsize / GIB, 2),
        "free_gb": round(numbers.f_bavail * numbers.f_frsize / GIB, 2),
        "populated": path.is_dir() and next(path.iterdir(), None) is not None,
    }


def record_of(path: Path) -> Any:
    """What a file in JSON holds; None where there is no such file, or it holds something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def time_daemons(processes: Path = Path("/proc")) -> list[str]:
    """The time daemons among the running processes of this process's own PID namespace."""
    found = set()
    for comm in processes.glob("[0-9]*/comm"):
        try:
            name = comm.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue  # it has ended meanwhile
        if name in TIME_DAEMONS:
            found.add(TIME_DAEMONS[name])
    return sorted(found)


def interfaces_of(listing: list[dict[str, Any]]) -> dict[str, str]:
    """Each address and its interface, from what `ip -json address show` lists."""
    return {
        str(entry["local"]): str(interface["ifname"])
        for interface in listing
        for entry in interface.get("addr_info", [])
        if "local" in entry
    }


def arp_request(address: str, hardware: bytes) -> bytes:
    """An Ethernet frame that asks who has an address, from nobody (an ARP probe, RFC 5227, 2.1.1)."""
    head = b"\xff" * 6 + hardware + struct.pack("!H", _ETHERTYPE_ARP)
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return head + fixed + hardware + b"\0" * 4 + b"\0" * 6 + socket.inet_aton(address)


def arp_reply_from(frame: bytes) -> tuple[str, str] | None:
    """The address and the hardware address that an ARP reply announces; None for any other frame."""
    if len(frame) < 42 or frame[12:14] != struct.pack("!H", _ETHERTYPE_ARP):  # noqa: PLR2004 - header and body
        return None
    if struct.unpack("!H", frame[20:22])[0] != _ARP_REPLY:
        return None
    return socket.inet_ntoa(frame[28:32]), frame[22:28].hex(":")


def who_has(address: str, interface: str) -> str | None:
    """The hardware address that answers on the link for an IPv4 address, or none; None without the right to ask."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE_ARP)) as link:
            link.bind((interface, _ETHERTYPE_ARP))
            hardware = link.getsockname()[4]
            for _ in range(ARP_TRIES):
                link.send(arp_request(address, hardware))
                deadline = time.monotonic() + ARP_WAIT
                while (left := deadline - time.monotonic()) > 0:
                    link.settimeout(left)
                    try:
                        frame = link.recv(2048)
                    except TimeoutError:
                        break
                    reply = arp_reply_from(frame)
                    if reply is not None and reply[0] == address:
                        return reply[1]
    except OSError:
        return None
    return ""


def probe(wanted: list[dict[str, str]], interfaces: dict[str, str] | None) -> dict[str, str | None]:
    """Ask for each address on the interface of its source."""
    results: dict[str, str | None] = {}
    for one in wanted:
        interface = (interfaces or {}).get(one["source"])
        possible = interface is not None and ":" not in one["address"]
        results[one["address"]] = who_has(one["address"], str(interface)) if possible else None
    return results


def main() -> None:
    """Report."""
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "default": []},
            "records": {"type": "list", "elements": "str", "default": []},
            "probes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "address": {"type": "str", "required": True},
                    "source": {"type": "str", "required": True},
                },
            },
        },
        supports_check_mode=True,
    )
    ip = module.get_bin_path("ip")
    links = None
    if ip:
        code, listing, _ = module.run_command([ip, "-json", "address", "show"])
        links = json.loads(listing) if code == 0 else None
    interfaces = None if links is None else interfaces_of(links)
    limits = [Path(path).read_text(encoding="ascii") for path in CGROUP_LIMITS if Path(path).is_file()]
    module.exit_json(
        changed=False,
        memory_mb=memory_mb(Path("/proc/meminfo").read_text(encoding="ascii"), limits),
        filesystems={path: filesystem_of(Path(path)) for path in module.params["paths"]},
        records={path: record_of(Path(path)) for path in module.params["records"]},
        addresses=None if interfaces is None else sorted(interfaces),
        hardware=sorted({link["address"] for link in links or [] if link.get("link_type") == "ether"}),
        answering=probe(module.params["probes"], interfaces),
        time_daemons=time_daemons(),
    )


if __name__ == "__main__":
    main()
