#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has of a cluster, without asking the cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kubernetes_node_state
short_description: What of a Kubernetes cluster is on a host
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Reports what kubeadm has left on a host, so that a role knows whether the host is to be formed, joined, refused or
    left alone. Reads files and asks no API, so that it works before there is a cluster and after one was lost.
options:
  directory:
    description: Where kubeadm keeps its files.
    type: path
    default: /etc/kubernetes
  etcd_directory:
    description: Data directory of the etcd member.
    type: path
    default: /var/lib/kubernetes-etcd
  kubelet_directory:
    description: Directory of the kubelet, below which it keeps its client certificate.
    type: path
    default: /var/lib/kubelet
attributes:
  check_mode:
    description: It changes nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: It changes nothing.
    support: full
notes:
  - Needs nothing beyond Python's standard library on the host.
"""

EXAMPLES = r"""
- name: What is there of a cluster is known
  groundplane.onprem.kubernetes_node_state:
  register: __kubernetes_control_plane_state
"""

RETURN = r"""
formed:
  description: Whether the mark file C(formed) says that this host was once part of a cluster.
  type: bool
  returned: success
has_etcd_data:
  description: Whether the etcd member on this host has data.
  type: bool
  returned: success
joined:
  description: Whether the kubelet has its credentials, C(kubelet.conf).
  type: bool
  returned: success
control_plane:
  description: Whether the host has a manifest of the API server.
  type: bool
  returned: success
admin:
  description: Whether C(admin.conf) is there.
  type: bool
  returned: success
kubelet_version:
  description: Version of the kubelet that is installed, without the C(v); empty when there is none.
  type: str
  returned: success
  sample: 1.34.4
manifest_version:
  description: Version of the API server in its manifest, without the C(v); empty when there is none.
  type: str
  returned: success
  sample: 1.34.4
manifests:
  description: Name of each static pod to the tag of its first image.
  type: dict
  returned: success
  sample: {kube-apiserver: v1.34.4, etcd: 3.6.5-0}
rules_lost:
  description:
    - Those of C(kube-proxy) and C(cilium-agent) which run here and of whose rules the kernel has none, because somebody
      removed all. Without them addresses of services lead nowhere, and policies take the node for a stranger.
    - Each writes its own anew when it is started.
  type: list
  elements: str
  returned: success
  sample: [kube-proxy]
certificates:
  description:
    - File of each certificate of kubeadm, authorities and clients in kubeconfig files included, to the seconds that it
      still lives. Negative once it has expired.
  type: dict
  returned: success
  sample: {/etc/kubernetes/pki/apiserver.crt: 31535000, /etc/kubernetes/admin.conf: 31535000}
"""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import CertificateError, read_pem
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_config import ConfigError, load
from ansible_collections.groundplane.onprem.plugins.module_utils.process import oldest

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMED = "formed"
API_SERVER = "kube-apiserver"
CLIENTS = ("admin", "super-admin", "controller-manager", "scheduler")
"""The kubeconfig files with a certificate in them. The kubelet's names a file, which it replaces by itself."""
KUBELET_CERTIFICATE = "pki/kubelet-client-current.pem"
RULES = {"kube-proxy": "table ip kube-proxy {", "cilium-agent": "chain CILIUM_"}
"""Programs that keep rules in the kernel, and how a list of all chains begins a line about theirs."""
FIRST_RULES = 60.0
"""Seconds in which a program that was just started may still be without rules."""
_IMAGE = re.compile(r"^\s*(?:- )?image:\s*[\"']?(?P<image>[^\s\"']+)", re.MULTILINE)
_VERSION = re.compile(r"v?(\d+\.\d+\.\d+\S*)\s*\Z")


def version(text: str) -> str:
    """The version that a text ends in, such as `Kubernetes v1.34.4`, without the `v`; empty when there is none."""
    match = _VERSION.search(text)
    return match[1] if match else ""


def image_tag(manifest: str) -> str:
    """Tag of the first image of a static pod's manifest; empty when it has none."""
    match = _IMAGE.search(manifest)
    name = match["image"].rpartition("/")[2].partition("@")[0] if match else ""
    return name.partition(":")[2]


def manifests(directory: Path) -> dict[str, str]:
    """Name of each static pod to the tag of its first image."""
    return {
        path.stem: image_tag(path.read_text(encoding="utf-8", errors="replace"))
        for path in sorted(directory.glob("*.yaml"))
    }


def rules_lost(ages: Mapping[str, float], chains: str | None) -> list[str]:
    """The programs that should have rules and have none.

    Args:
        ages: program to the seconds for which it runs; 0 when it does not.
        chains: what `nft list chains` says; None when it cannot be asked.
    """
    if chains is None:
        return []
    lines = [line.strip() for line in chains.splitlines()]
    return [
        program
        for program, age in ages.items()
        if age >= FIRST_RULES and not any(line.startswith(RULES[program]) for line in lines)
    ]


def certificates(directory: Path, kubelet: Path, now: float) -> dict[str, int]:
    """File of each certificate to the seconds that it still lives.

    Raises:
        CertificateError: a file that should hold a certificate holds none; names it.
        ConfigError: the same of a kubeconfig.
    """
    found: dict[str, int] = {}
    pki = directory / "pki"
    texts = {path: path.read_text(encoding="utf-8") for path in sorted([*pki.glob("*.crt"), *pki.glob("etcd/*.crt")])}
    for path in (directory / f"{name}.conf" for name in CLIENTS):
        if path.is_file():
            texts[path] = load(str(path)).certificate
    current = kubelet / KUBELET_CERTIFICATE
    if current.is_file():
        texts[current] = current.read_text(encoding="utf-8")
    for path, text in texts.items():
        try:
            found[str(path)] = int(read_pem(text)[0].not_after - now)
        except CertificateError as error:
            raise CertificateError(f"{path}: {error}") from error
    return found


def main() -> None:
    """Look and answer."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "default": "/etc/kubernetes"},
            "etcd_directory": {"type": "path", "default": "/var/lib/kubernetes-etcd"},
            "kubelet_directory": {"type": "path", "default": "/var/lib/kubelet"},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["directory"])
    program = module.get_bin_path("kubelet", opt_dirs=["/usr/local/bin"])
    said = module.run_command([program, "--version"])[1] if program else ""
    pods = manifests(directory / "manifests")
    nft = module.get_bin_path("nft")
    asked, chains, _ = module.run_command([nft, "list", "chains"]) if nft else (1, "", "")
    try:
        module.exit_json(
            changed=False,
            formed=(directory / FORMED).exists(),
            has_etcd_data=(Path(module.params["etcd_directory"]) / "member").is_dir(),
            joined=(directory / "kubelet.conf").exists(),
            control_plane=API_SERVER in pods,
            admin=(directory / "admin.conf").exists(),
            kubelet_version=version(said),
            manifest_version=version(pods.get(API_SERVER, "")),
            manifests=pods,
            rules_lost=rules_lost({program: oldest(program) for program in RULES}, None if asked else chains),
            certificates=certificates(directory, Path(module.params["kubelet_directory"]), time.time()),
        )
    except (CertificateError, ConfigError) as error:
        module.fail_json(msg=f"kubernetes_node_state: {error}")


if __name__ == "__main__":
    main()
