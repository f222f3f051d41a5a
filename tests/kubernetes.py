# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster as tests see it: kubectl on a host of its control plane, objects as plain data, HTTPS from any host."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import subprocess

    from tests.lab import Lab

Plain = dict[str, Any]

KUBECONFIG = "/etc/kubernetes/admin.conf"
SITE_CA = "/etc/groundplane/pki/ca.crt"
ETCD_TLS = "/etc/kubernetes/pki/etcd"
RESTRICTED: Plain = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 65534,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What PodSecurity's level `restricted` wants of a container."""

# Asks once over TLS and prints [status, body], or the error's text. Standard library only, as on every host.
ASK = """
import http.client, json, socket, ssl, sys
asked = json.loads(sys.stdin.read())
context = ssl.create_default_context(cafile=asked["ca"])
if asked["newest"]:
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = getattr(ssl.TLSVersion, asked["newest"])
    context.set_ciphers("ALL:@SECLEVEL=0")
try:
    plain = socket.create_connection((asked["address"], asked["port"]), 5)
    connection = http.client.HTTPConnection(asked["address"])
    connection.sock = context.wrap_socket(plain, server_hostname=asked["name"])
    connection.request("GET", asked["path"], headers={"Host": asked["name"], **asked["headers"]})
    answer = connection.getresponse()
    print(json.dumps([answer.status, answer.read().decode(errors="replace")]))
except OSError as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""


@dataclass
class Cluster:
    """The lab's Kubernetes."""

    lab: Lab

    @cached_property
    def control_plane(self) -> list[str]:
        """Hosts of the control plane."""
        return self.lab.groups["kubernetes_control_plane"]

    @cached_property
    def workers(self) -> list[str]:
        """Hosts that run workloads only."""
        return [host for host in self.lab.groups["kubernetes_worker"] if host not in self.control_plane]

    @property
    def nodes(self) -> list[str]:
        """All hosts of the cluster."""
        return [*self.control_plane, *self.workers]

    @cached_property
    def domain(self) -> str:
        """The site's domain."""
        return str(self.lab.hostvars[self.control_plane[0]]["site_domain"])

    @property
    def gateway(self) -> tuple[str, int, str]:
        """Where applications are published: the public address, its port, and the name that is vouched for there."""
        return self.lab.vip("public"), 443, f"gateway.kubernetes_platform.{self.domain}"

    @property
    def api(self) -> tuple[str, int, str]:
        """The API's virtual address, its port, and the name that the site's authority vouches for there."""
        return self.lab.vip("private"), 6443, f"api.kubernetes_control_plane.{self.domain}"

    @cached_property
    def registry(self) -> str:
        """The one place that images come from."""
        return f"{self.lab.groups['mirror'][0]}.{self.domain}"

    # -------------------------------------------------------------------------------------------------------- objects

    def kubectl(
        self, *arguments: str, host: str = "", stdin: str = "", check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Kubectl as the cluster's administrator, on the first host of the control plane or another."""
        command = shlex.join(["kubectl", "--kubeconfig", KUBECONFIG, *arguments])
        return self.lab.run(host or self.control_plane[0], command, stdin=stdin, check=check, timeout=timeout)

    def get(self, *arguments: str, host: str = "") -> Any:
        """An object or a list, as the API has it."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json", host=host).stdout)

    def raw(self, path: str) -> Any:
        """What the API answers at a path."""
        return json.loads(self.kubectl("get", "--raw", path).stdout)

    def apply(self, *objects: Plain) -> None:
        """Create or change objects."""
        self.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def refusal(self, *objects: Plain) -> str:
        """Why the API would not take objects; nothing when it would. It does not take them."""
        done = self.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(objects), check=False)
        return "" if done.returncode == 0 else done.stderr

    def wait(self, what: str, condition: str, namespace: str, seconds: int = 120) -> None:
        """Wait for a condition of objects, such as `condition=Ready`."""
        self.kubectl("wait", what, f"--for={condition}", "-n", namespace, f"--timeout={seconds}s", timeout=seconds + 30)

    def execute(self, namespace: str, pod: str, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell script in a pod made by `pod`."""
        return self.kubectl("exec", "-n", namespace, pod, "--", "/bin/sh", "-c", script, check=check)

    @cached_property
    def shell_image(self) -> str:
        """An image of the site's registry that has a shell: the one that prepares local volumes."""
        maps = [item.get("data", {}) for item in self.get("configmaps", "-n", "local-path-storage")["items"]]
        helper = yaml.safe_load(next(data["helperPod.yaml"] for data in maps if "helperPod.yaml" in data))
        return str(helper["spec"]["containers"][0]["image"])

    def pod(self, name: str, namespace: str, script: str, *, node: str = "", claim: str = "", **spec: Any) -> Plain:
        """A pod that runs a shell script under the level `restricted`.

        Args:
            name: its name, and the value of its label `app`.
            namespace: where.
            script: what it runs.
            node: the node that it must be on.
            claim: a volume claim, mounted at /data; without it there is an empty directory.
            spec: more of the pod's specification.
        """
        volume: Plain = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
        container = {
            "name": "main",
            "image": self.shell_image,
            "command": ["/bin/sh", "-c", script],
            "securityContext": RESTRICTED,
            "resources": {
                "requests": {"cpu": "10m", "memory": "16Mi"},
                "limits": {"cpu": "200m", "memory": "64Mi"},
            },
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {
                "containers": [container],
                "volumes": [{"name": "data", **volume}],
                "securityContext": {"fsGroup": 65534},
                "terminationGracePeriodSeconds": 1,
                **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
                **spec,
            },
        }

    # -------------------------------------------------------------------------------------------------------- network

    def ask(
        self,
        host: str,
        address: str,
        port: int,
        name: str,
        path: str,
        *,
        ca: str = SITE_CA,
        headers: dict[str, str] | None = None,
        newest: str = "",
    ) -> tuple[int, str]:
        """Status and body of one HTTPS request from a host; 0 and the error when there is none.

        Args:
            host: who asks.
            address: whom.
            port: where.
            name: what the certificate must carry; sent as SNI and as Host.
            path: what for.
            ca: who must have signed the certificate, a path on the host.
            headers: more of them; they reach the host by standard input.
            newest: the newest protocol that is offered, such as TLSv1_1.
        """
        asked = {
            "address": address,
            "port": port,
            "name": name,
            "path": path,
            "ca": ca,
            "headers": headers or {},
            "newest": newest,
        }
        done = self.lab.run(host, f"python3 -c {shlex.quote(ASK)}", stdin=json.dumps(asked))
        answer = json.loads(done.stdout)
        return (0, answer) if isinstance(answer, str) else (answer[0], answer[1])

    # --------------------------------------------------------------------------------------------------------- health

    def unready(self, host: str = "") -> list[str]:
        """What is not as it should be: nodes that are absent or not Ready, pods of the system that are not Ready."""
        done = self.kubectl("get", "nodes,pods", "--all-namespaces", "-o", "json", host=host, check=False)
        if done.returncode != 0:
            return [done.stderr.strip() or "no answer"]
        items = json.loads(done.stdout)["items"]
        ready = {
            (item["kind"], item["metadata"]["name"])
            for item in items
            for condition in item.get("status", {}).get("conditions", [])
            if condition["type"] == "Ready" and condition["status"] == "True"
        }
        lacking = [f"node {name}" for name in self.nodes if ("Node", name) not in ready]
        for item in items:
            name = item["metadata"]["name"]
            ended = item.get("status", {}).get("phase") in ("Succeeded", "Failed")
            if item["kind"] == "Pod" and not ended and ("Pod", name) not in ready:
                lacking.append(f"pod {item['metadata']['namespace']}/{name}")
        return lacking

    def wait_until_sound(self, seconds: float = 300, host: str = "") -> float:
        """Wait until every node and every pod is Ready, and give the seconds that it took."""
        start = time.monotonic()
        while lacking := self.unready(host):
            assert time.monotonic() < start + seconds, f"after {seconds} s still not Ready: {lacking}"
            time.sleep(2)
        return time.monotonic() - start

    # ----------------------------------------------------------------------------------------------------------- etcd

    def etcdctl(self, arguments: str, host: str = "", *, suffix: str = "") -> str:
        """What etcdctl in the static pod of a host answers, of all members when the arguments say so.

        Args:
            arguments: words of etcdctl's command line.
            host: whose member is asked, the first one by default.
            suffix: what the host's shell does with the answer, such as `| head -c 8`.
        """
        host = host or self.control_plane[0]
        own = f"{ETCD_TLS}/healthcheck-client"
        tls = f"--cacert={ETCD_TLS}/ca.crt --cert={own}.crt --key={own}.key"
        where = f"kubectl --kubeconfig {KUBECONFIG} --namespace kube-system exec etcd-{host} --container etcd --"
        return self.lab.out(host, f"{where} etcdctl --endpoints=https://127.0.0.1:2379 {tls} {arguments} {suffix}")

    def etcd_leader(self) -> str:
        """The member that leads; nothing when there is none that all agree on."""
        told = self.etcdctl("endpoint status --cluster --write-out=json", suffix="|| :")  # It fails while one is away.
        states = json.loads(told or "[]")
        leaders = {item["Status"]["leader"] for item in states}
        if len(states) != len(self.control_plane) or len(leaders) != 1:
            return ""
        listed = json.loads(self.etcdctl("member list --write-out=json"))["members"]
        return next((str(item["name"]) for item in listed if {item["ID"]} == leaders), "")
