# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has of a cluster."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import Profile
from ansible_collections.groundplane.onprem.plugins.modules import kubernetes_node_state

from tests.unit.pki_site import Site

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = {
    "apiVersion": "v1",
    "kind": "Pod",
    "spec": {
        "containers": [
            {
                "name": "kube-apiserver",
                "command": ["kube-apiserver", "--advertise-address=10.0.0.1"],
                "image": "mirror.lab.internal:5000/kubernetes/kube-apiserver:v1.34.4",
            }
        ]
    },
}


@pytest.mark.parametrize(
    ("image", "tag"),
    [
        ("registry:5000/kubernetes/etcd:3.6.5-0", "3.6.5-0"),
        ("registry:5000/kubernetes/etcd", ""),
        ("registry:5000/a/etcd:3.6@sha256:00", "3.6"),
        ("", ""),
    ],
)
def test_tag_of_an_image(image: str, tag: str) -> None:
    assert kubernetes_node_state.image_tag(f"spec:\n  containers:\n  - image: {image}\n" if image else "a: b\n") == tag


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Kubernetes v1.34.4\n", "1.34.4"), ("v1.35.0-rc.1", "1.35.0-rc.1"), ("", ""), ("command not found", "")],
)
def test_version(text: str, expected: str) -> None:
    assert kubernetes_node_state.version(text) == expected


def state(directory: Path) -> dict[str, Any]:
    """What the module answers as Ansible runs it."""
    arguments = {
        "directory": str(directory / "kubernetes"),
        "etcd_directory": str(directory / "etcd"),
        "kubelet_directory": str(directory / "kubelet"),
    }
    done = subprocess.run(
        [sys.executable, kubernetes_node_state.__file__],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={"PYTHONPATH": str(ROOT / "collections"), "PATH": f"{directory}/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_nothing_is_there(tmp_path: Path) -> None:
    answer = state(tmp_path)
    answer.pop("invocation")
    assert answer == {
        "changed": False,
        "formed": False,
        "has_etcd_data": False,
        "joined": False,
        "control_plane": False,
        "admin": False,
        "kubelet_version": "",
        "manifest_version": "",
        "manifests": {},
        "rules_lost": [],
        "certificates": {},
    }


OURS = "table inet groundplane {\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n"
PROXYS = "table ip kube-proxy {\n\tchain services {\n\t}\n}\n"
OTHER = PROXYS.replace("ip ", "ip6 ")
AGENTS = "table ip mangle {\n\tchain CILIUM_PRE_mangle {\n\t}\n}\n"


@pytest.mark.parametrize(
    ("proxy", "agent", "chains", "lost"),
    [
        (3600.0, 3600.0, OURS + PROXYS + AGENTS, []),
        (3600.0, 3600.0, OURS + AGENTS, ["kube-proxy"]),
        (3600.0, 3600.0, OURS + OTHER + AGENTS, ["kube-proxy"]),
        (3600.0, 3600.0, OURS + PROXYS, ["cilium-agent"]),
        (3600.0, 3600.0, "", ["kube-proxy", "cilium-agent"]),
        (3600.0, 3600.0, None, []),
        (5.0, 3600.0, OURS, ["cilium-agent"]),
        (0.0, 0.0, OURS, []),
    ],
)
def test_who_runs_for_a_while_has_rules(proxy: float, agent: float, chains: str | None, lost: list[str]) -> None:
    assert kubernetes_node_state.rules_lost({"kube-proxy": proxy, "cilium-agent": agent}, chains) == lost


def test_a_control_plane(tmp_path: Path) -> None:
    site = Site()
    chain, key = site.issue(Profile(common_name="kubernetes-admin", usages=frozenset({"client"})), life=1000)
    kubernetes, pki = tmp_path / "kubernetes", tmp_path / "kubernetes/pki"
    (pki / "etcd").mkdir(parents=True)
    (kubernetes / "manifests").mkdir()
    (tmp_path / "etcd/member").mkdir(parents=True)
    (tmp_path / "kubelet/pki").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kubelet").write_text("#!/bin/sh\necho Kubernetes v1.34.4\n")
    (tmp_path / "bin/kubelet").chmod(0o755)
    (kubernetes / "manifests/kube-apiserver.yaml").write_text(yaml.safe_dump(MANIFEST))
    (kubernetes / "formed").touch()
    (kubernetes / "other.conf").write_text("not a kubeconfig: [1]\n")
    (kubernetes / "kubelet.conf").touch()
    (pki / "apiserver.crt").write_text(chain)
    (pki / "etcd/server.crt").write_text(chain)
    (tmp_path / "kubelet/pki/kubelet-client-current.pem").write_text(chain + key.decode())
    (kubernetes / "admin.conf").write_text(
        yaml.safe_dump(
            {
                "clusters": [
                    {
                        "name": "k",
                        "cluster": {
                            "server": "https://a:6443",
                            "certificate-authority-data": base64.b64encode(site.anchors.encode()).decode(),
                        },
                    }
                ],
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "current-context": "c",
                "users": [
                    {"name": "u", "user": {"client-certificate-data": base64.b64encode(chain.encode()).decode()}}
                ],
            }
        )
    )
    answer = state(tmp_path)
    assert [answer[key] for key in ("formed", "has_etcd_data", "joined", "control_plane", "admin")] == [True] * 5
    assert (answer["kubelet_version"], answer["manifest_version"]) == ("1.34.4", "1.34.4")
    assert answer["manifests"] == {"kube-apiserver": "v1.34.4"}
    left = {str(Path(path).relative_to(tmp_path)): seconds for path, seconds in answer["certificates"].items()}
    assert set(left) == {
        "kubelet/pki/kubelet-client-current.pem",
        "kubernetes/admin.conf",
        "kubernetes/pki/apiserver.crt",
        "kubernetes/pki/etcd/server.crt",
    }
    assert all(600 < seconds <= 1000 for seconds in left.values())
    (pki / "apiserver.crt").write_text("nothing")
    assert "pki/apiserver.crt: no certificate in the text" in state(tmp_path)["msg"]
