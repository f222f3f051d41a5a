# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running cluster: who is in it, what it lets in and out, where its secrets, its images and its volumes are."""

from __future__ import annotations

import base64
import ipaddress
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests import results
from tests.faults.drill import wait_for
from tests.kubernetes import SITE_CA, Cluster, Plain
from tests.service_rules import written, wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.nodes

CLIENT = "bastion1"
"""May use the API by its virtual address, and the gateway as anybody may."""
SECONDS_FOR_POLICIES = 15
PROXY_STATE = 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:10256/healthz").read().decode())'
PORT = 8080
LEVELS = {
    f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")
}  # as the platform's namespaces have it
PLATFORM = ["gateway", "control", "schedulers", "data", "obsv", "ci-preview", "admin"]


def eventually(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.5)


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# ---------------------------------------------------------------------------------------------------------------- nodes


def test_all_nodes_are_ready_and_stand_where_the_inventory_says(cluster: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node for node in cluster.get("nodes")["items"]}
    assert sorted(nodes) == sorted(cluster.nodes)
    pods = ipaddress.IPv4Network("10.244.0.0/16")
    ready = []
    for host, node in nodes.items():
        labels, facts = node["metadata"]["labels"], cluster.lab.hostvars[host]
        conditions = {item["type"]: item for item in node["status"]["conditions"]}
        assert conditions["Ready"]["status"] == "True", host
        assert [name for name, item in conditions.items() if name != "Ready" and item["status"] != "False"] == []
        assert labels["topology.kubernetes.io/zone"] == facts["host_zone"]
        assert labels["groundplane.onprem/pool"] == facts.get("kubernetes_node_pool", "general")
        assert ("node-role.kubernetes.io/control-plane" in labels) == (host in cluster.control_plane)
        taints = {(taint["key"], taint["effect"]) for taint in node["spec"].get("taints", [])}
        own = {("node-role.kubernetes.io/control-plane", "NoSchedule")} if host in cluster.control_plane else set()
        assert taints == own, host
        assert node["status"]["nodeInfo"]["kubeletVersion"] == f"v{facts['kubernetes_version']}"
        assert {"type": "InternalIP", "address": cluster.lab.address(host)} in node["status"]["addresses"]
        assert ipaddress.IPv4Network(node["spec"]["podCIDR"]).subnet_of(pods)
        ready.append(moment(conditions["Ready"]["lastTransitionTime"]))
    began = moment(cluster.get("namespace", "kube-system")["metadata"]["creationTimestamp"])
    results.record("kubernetes_first_to_last_ready", {"seconds": round(max(ready) - began), "nodes": len(nodes)})


def test_the_api_is_known_by_the_virtual_address(cluster: Cluster) -> None:
    """Only who runs on a host of the control plane goes by the API server beside it."""
    for host in cluster.nodes:
        address = cluster.lab.address(host) if host in cluster.control_plane else cluster.lab.vip("private")
        known = cluster.lab.out(host, "grep -h ' server: ' /etc/kubernetes/kubelet.conf").strip()
        assert known == f"server: https://{address}:6443", host
    settings = cluster.get("configmap", "kubeadm-config", "-n", "kube-system")["data"]["ClusterConfiguration"]
    assert f"controlPlaneEndpoint: {cluster.lab.vip('private')}:6443" in settings


def test_everything_that_runs_came_from_the_sites_registry(cluster: Cluster) -> None:
    images = {
        container["image"]
        for pod in cluster.get("pods", "--all-namespaces")["items"]
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for container in pod["spec"].get(kind, [])
    }
    assert images
    assert {image for image in images if not image.startswith(f"{cluster.registry}/")} == set()


def test_the_load_of_every_node_is_known(cluster: Cluster) -> None:
    measured = cluster.raw("/apis/metrics.k8s.io/v1beta1/nodes")["items"]
    assert sorted(item["metadata"]["name"] for item in measured) == sorted(cluster.nodes)
    assert all(item["usage"]["memory"] != "0" for item in measured)
    pods = cluster.raw("/apis/metrics.k8s.io/v1beta1/namespaces/kube-system/pods")["items"]
    assert len(pods) >= len(cluster.nodes)


# -------------------------------------------------------------------------------------------------------------- the API


def api(cluster: Cluster, path: str, **more: Any) -> tuple[int, str]:
    """Ask the API by its virtual address."""
    return cluster.ask(CLIENT, *cluster.api, path, **more)


def test_the_api_proves_itself_by_the_sites_authority_at_the_virtual_address(cluster: Cluster) -> None:
    assert api(cluster, "/readyz") == (200, "ok")
    status, said = api(cluster, "/readyz", ca="/etc/ssl/certs/ca-certificates.crt")
    assert status == 0
    assert "certificate verify failed" in said


def test_the_api_speaks_no_old_protocol(cluster: Cluster) -> None:
    status, said = api(cluster, "/readyz", newest="TLSv1_1")
    assert status == 0
    assert "SSLError" in said or "alert" in said or "Reset" in said, said


@pytest.mark.parametrize(
    ("path", "status"),
    [("/readyz", 200), ("/livez", 200), ("/healthz", 200), ("/version", 401), ("/metrics", 401), ("/api", 401),
     ("/api/v1/namespaces/kube-public/configmaps/cluster-info", 401), ("/openapi/v3", 401)],
)  # fmt: skip
def test_who_says_nothing_of_himself_learns_whether_the_api_is_well_and_no_more(
    cluster: Cluster, path: str, status: int
) -> None:
    assert api(cluster, path)[0] == status


def test_a_made_up_token_is_refused(cluster: Cluster) -> None:
    assert api(cluster, "/api", headers={"Authorization": f"Bearer {uuid.uuid4().hex}"})[0] == 401


def test_secrets_are_unreadable_in_the_store(cluster: Cluster, space: str) -> None:
    canary = uuid.uuid4().hex
    cluster.kubectl("create", "-f", "-", stdin=json.dumps({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "canary", "namespace": space},
        "stringData": {"word": canary},
    }))  # fmt: skip
    cluster.kubectl("create", "configmap", "plain", "-n", space, "--from-literal=word=plain-text-is-found")
    key = f"/registry/secrets/{space}/canary"
    assert cluster.etcdctl(f"get {key} --print-value-only", suffix="| head -c 8") == "k8s:enc:"
    # The control: what is not secret is found by the same means, so that not to find the secret means something.
    plain = f"get /registry/configmaps/{space}/plain --print-value-only"
    assert cluster.etcdctl(plain, suffix="| grep -ac plain-text-is-found") == "1"
    for host in cluster.control_plane:
        found = cluster.lab.run(host, f"grep -ral {canary} /var/lib/kubernetes-etcd /var/log/kubernetes || :").stdout
        assert found == "", host


def test_every_secret_in_the_store_is_encrypted(cluster: Cluster) -> None:
    keys = cluster.etcdctl("get /registry/secrets/ --prefix --keys-only").split()
    assert keys
    values = cluster.etcdctl(
        "get /registry/secrets/ --prefix --print-value-only", suffix="| grep -ao '^k8s:enc:[a-z]*:v[0-9]:' | wc -l"
    )
    assert int(values) == len(keys)


def claims(token: str) -> Plain:
    body = token.split(".")[1]
    plain: Plain = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return plain


def test_tokens_of_service_accounts_live_as_long_as_they_say_and_not_longer_than_allowed(
    cluster: Cluster, space: str
) -> None:
    allowed = int(flag(cluster, "service-account-max-token-expiration").removesuffix("h0m0s").removesuffix("h")) * 3600
    token = claims(cluster.kubectl("create", "token", "default", "-n", space, "--duration=8760h").stdout)
    assert token["exp"] - token["iat"] == allowed <= 86400 * 2
    # A pod's own token is not silently extended to a year.
    cluster.apply(cluster.pod("identified", space, "sleep 600", automountServiceAccountToken=True))
    cluster.wait("pod/identified", "condition=Ready", space)
    mounted = cluster.execute(space, "identified", "cat /var/run/secrets/kubernetes.io/serviceaccount/token").stdout
    token = claims(mounted)
    assert token["exp"] - token["iat"] <= 3700
    assert api(cluster, "/api", headers={"Authorization": f"Bearer {mounted}"})[0] == 200
    cluster.kubectl("delete", "pod", "identified", "-n", space, "--wait")
    # It was bound to its pod, and goes with it.
    eventually(
        lambda: api(cluster, "/api", headers={"Authorization": f"Bearer {mounted}"})[0] == 401, 30, "the token is dead"
    )


def flag(cluster: Cluster, name: str) -> str:
    """A flag of the API server as its pod has it."""
    pod = cluster.get("pod", f"kube-apiserver-{cluster.control_plane[0]}", "-n", "kube-system")
    words = pod["spec"]["containers"][0]["command"]
    return next(str(word).split("=", 1)[1] for word in words if word.startswith(f"--{name}="))


# ----------------------------------------------------------------------------------------------------------- admission


@pytest.mark.parametrize("namespace", PLATFORM)
def test_a_privileged_pod_is_refused_with_the_reason(cluster: Cluster, namespace: str) -> None:
    pod = cluster.pod("privileged", namespace, "true")
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    pod["spec"]["hostPID"] = True
    said = cluster.refusal(pod)
    assert 'violates PodSecurity "restricted:' in said, said
    assert "privileged" in said
    assert "hostPID=true" in said


def test_what_keeps_the_rules_is_admitted(cluster: Cluster) -> None:
    assert cluster.refusal(cluster.pod("modest", "data", "true")) == ""


def test_a_quota_refuses_what_is_beyond_it(cluster: Cluster) -> None:
    """Containers as large as one may be, and one more of them than the quota has room for."""
    quotas = {item["metadata"]["namespace"] for item in cluster.get("resourcequotas", "--all-namespaces")["items"]}
    assert set(PLATFORM) <= quotas
    quota = cluster.get("resourcequotas", "-n", "data")["items"][0]["status"]["hard"]
    assert {"pods", "requests.cpu", "requests.memory"} <= set(quota)
    limits = [item for one in cluster.get("limitranges", "-n", "data")["items"] for item in one["spec"]["limits"]]
    largest = next((item["max"]["memory"] for item in limits if "memory" in item.get("max", {})), "1Gi")
    pod = cluster.pod("greedy", "data", "true")
    memory = {"requests": {"cpu": "1m", "memory": largest}, "limits": {"cpu": "100m", "memory": largest}}
    pod["spec"]["containers"] = [
        {**pod["spec"]["containers"][0], "name": f"main{number}", "resources": memory}
        for number in range(1 + amount(quota["requests.memory"]) // amount(largest))
    ]
    assert "exceeded quota" in cluster.refusal(pod)


def amount(text: str) -> int:
    """Bytes of a quantity such as 512Mi."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return int(text[:-2]) * units[text[-2:]] if text[-2:] in units else int(text)


# --------------------------------------------------------------------------------------------- pods and what they reach


@pytest.fixture(scope="module")
def space(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own at the level `restricted`, without any policy, gone at the end."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": LEVELS}})
    yield name
    cluster.kubectl("delete", "namespace", name, timeout=180)


@pytest.fixture(scope="module")
def pods(cluster: Cluster, space: str) -> dict[str, str]:
    """A server on one worker, a client beside it and one on the other worker; name to address."""
    here, there = cluster.workers[:2]
    serve = f"echo served > /data/index.html; exec busybox httpd -f -p {PORT} -h /data"
    placed = {"server": here, "beside": here, "across": there}
    cluster.apply(
        *(
            cluster.pod(
                name,
                space,
                serve if name == "server" else "sleep 3600",
                node=node,
                hostname=name,
                subdomain="hosts",
                automountServiceAccountToken=False,
            )
            for name, node in placed.items()
        ),
        service("web", space),
        service("hosts", space, clusterIP="None"),
    )
    for name in placed:
        cluster.wait(f"pod/{name}", "condition=Ready", space)
    found = cluster.get("pods", "-n", space)["items"]
    return {item["metadata"]["name"]: item["status"]["podIP"] for item in found if item["metadata"]["name"] in placed}


def service(name: str, namespace: str, **more: str) -> Plain:
    ports = [{"port": 80, "targetPort": PORT}]
    meta = {"name": name, "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {"selector": {"app": "server"}, "ports": ports, **more},
    }


def connections(cluster: Cluster, space: str, pod: str, *targets: tuple[str, int]) -> set[tuple[str, int]]:
    """The addresses and ports to which a connection from a pod comes about within two seconds, all tried at once."""
    tries = "".join(
        f"(busybox nc -w 2 {address} {port} </dev/null >/dev/null 2>&1 && echo {address} {port}) & "
        for address, port in targets
    )
    told = cluster.execute(space, pod, f"{tries}wait").stdout.splitlines()
    return {(address, int(port)) for address, port in (line.split() for line in told)}


def test_names_of_services_and_pods_are_resolved_in_a_pod(cluster: Cluster, space: str, pods: dict[str, str]) -> None:
    web = cluster.get("service", "web", "-n", space)["spec"]["clusterIP"]
    wanted = {
        "kubernetes.default.svc.cluster.local": "10.96.0.1",
        f"web.{space}.svc.cluster.local": web,
        f"server.hosts.{space}.svc.cluster.local": pods["server"],
    }
    for name, address in wanted.items():
        said = cluster.execute(space, "across", f"busybox nslookup -type=a {name}.").stdout
        assert f"Address: {address}" in said.replace("Address 1:", "Address:"), said


def test_a_service_is_reached_by_its_name_and_address_from_every_worker(
    cluster: Cluster, space: str, pods: dict[str, str]
) -> None:
    web = cluster.get("service", "web", "-n", space)["spec"]["clusterIP"]
    for client in ("beside", "across"):
        for address, port in ((web, 80), (pods["server"], PORT)):
            get = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 3 {address} {port}"
            assert "served" in cluster.execute(space, client, get).stdout, f"{client} {address}"


def policy(name: str, namespace: str, **spec: Any) -> Plain:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], **spec},
    }


def test_every_node_leads_to_the_endpoints_that_the_cluster_knows(cluster: Cluster) -> None:
    nodes = cluster.lab.groups["kubernetes"]
    assert written(cluster.lab.out(nodes[0], "nft list table ip kube-proxy")), "no service at all"
    wait_for(lambda: not wrong(cluster, nodes), 30, "rules as the cluster knows them")


def test_a_service_proxy_that_starts_anew_finds_its_own_rules(cluster: Cluster) -> None:
    """Twice: one that took its own entries for another's removed them, and the next wrote them again."""
    node = cluster.workers[0]

    def written_at() -> str:
        """When its proxy wrote rules last; nothing while it is away, and a time long ago while it has written none."""
        told = cluster.lab.run(node, f"python3 -c '{PROXY_STATE}'", check=False).stdout
        return str(json.loads(told)["status"]["IPv4"]["lastUpdated"]) if told else ""

    def start_anew() -> None:
        killed = cluster.lab.out(node, "pkill --exact kube-proxy; date --utc +%Y-%m-%dT%H:%M:%S")
        wait_for(lambda: written_at() > killed, 60, "a proxy that has written rules")
        assert wrong(cluster, [node]) == []

    start_anew()
    start_anew()


def test_a_policy_blocks_what_it_does_not_name_and_lets_through_what_it_does(
    cluster: Cluster, space: str, pods: dict[str, str]
) -> None:
    clients, server = ("across", "beside"), (pods["server"], PORT)

    def reached() -> list[str]:
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda name: connections(cluster, space, name, server), clients)
            return [name for name, found in zip(clients, made, strict=True) if found]

    assert reached() == ["across", "beside"], "the control: without a policy everybody reaches the server"
    try:
        cluster.apply(policy("nobody", space))
        eventually(lambda: reached() == [], SECONDS_FOR_POLICIES, "nobody reaches the server")
        allowed = {"from": [{"podSelector": {"matchLabels": {"app": "across"}}}], "ports": [{"port": PORT}]}
        cluster.apply(policy("across", space, podSelector={"matchLabels": {"app": "server"}}, ingress=[allowed]))
        eventually(lambda: reached() == ["across"], SECONDS_FOR_POLICIES, "only the one that is named reaches it")
        time.sleep(2)
        assert reached() == ["across"]
        cluster.apply(policy("nothing", space, policyTypes=["Egress"]))
        eventually(lambda: reached() == [], SECONDS_FOR_POLICIES, "nothing gets out")
    finally:
        cluster.kubectl("delete", "networkpolicy", "--all", "-n", space)
    eventually(lambda: reached() == ["across", "beside"], SECONDS_FOR_POLICIES, "without policies it is reached again")


@pytest.mark.parametrize("namespace", PLATFORM)
def test_the_platforms_namespaces_deny_by_default(cluster: Cluster, namespace: str) -> None:
    found = cluster.get("networkpolicies", "-n", namespace)["items"]
    every = [item for item in found if item["spec"]["podSelector"] == {} and not item["spec"].get("ingress")]
    assert any(set(item["spec"]["policyTypes"]) == {"Ingress", "Egress"} and not item["spec"].get("egress")
               for item in every), found  # fmt: skip


def test_a_pod_of_the_platform_gets_nowhere_that_nobody_allowed(
    cluster: Cluster, space: str, pods: dict[str, str]
) -> None:
    """In `data`: not to a pod elsewhere, not to a node, not to the API; and nobody from elsewhere gets in."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    listen = f"exec busybox httpd -f -p {PORT} -h /data"
    cluster.apply(cluster.pod(name, "data", listen, automountServiceAccountToken=False))
    try:
        cluster.wait(f"pod/{name}", "condition=Ready", "data")
        own = cluster.get("pod", name, "-n", "data")["status"]["podIP"]
        itself = ("127.0.0.1", PORT)
        elsewhere = [
            (pods["server"], PORT),
            (cluster.lab.address(cluster.workers[0]), 10250),
            (cluster.lab.vip("private"), 6443),
            ("10.96.0.1", 443),
        ]
        assert connections(cluster, "data", name, itself, *elsewhere) == {itself}, "the control: it listens"
        assert connections(cluster, space, "across", (own, PORT)) == set()
    finally:
        cluster.kubectl("delete", "pod", name, "-n", "data", "--wait=false")


def test_no_pod_reaches_the_store_or_what_is_the_control_planes_own(
    cluster: Cluster, space: str, pods: dict[str, str]
) -> None:
    assert pods
    hosts = [cluster.lab.address(host) for host in cluster.control_plane]
    api = (hosts[0], 6443)
    own = [(host, port) for host in hosts for port in (2379, 2380, 10255, 10257, 10259)]
    assert connections(cluster, space, "across", api, *own) == {api}, "the control: the API"


@pytest.mark.parametrize("path", ["/pods", "/configz", "/metrics", "/logs/", "/containerLogs/kube-system/etcd/etcd"])
def test_a_kubelet_answers_nobody_who_may_not_ask(cluster: Cluster, space: str, path: str) -> None:
    """A pod may reach its port, as the metrics server must; neither nobody nor a service account gets an answer."""
    host = cluster.workers[0]
    name = f"{host}.{cluster.domain}"
    asker = cluster.control_plane[0]
    assert cluster.ask(asker, cluster.lab.address(host), 10250, name, path)[0] == 401
    token = cluster.kubectl("create", "token", "default", "-n", space).stdout.strip()
    headers = {"Authorization": f"Bearer {token}"}
    assert cluster.ask(asker, cluster.lab.address(host), 10250, name, path, headers=headers)[0] == 403


# -------------------------------------------------------------------------------------------------------------- volumes


def test_what_is_on_a_local_volume_outlives_its_pod(cluster: Cluster, space: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "kept", "namespace": space},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "local",
            "resources": {"requests": {"storage": "16Mi"}},
        },
    }
    word = uuid.uuid4().hex
    cluster.apply(claim, cluster.pod("writer", space, f"echo {word} > /data/word && sleep 600", claim="kept"))
    cluster.wait("pod/writer", "condition=Ready", space, 180)
    eventually(
        lambda: word in cluster.execute(space, "writer", "cat /data/word", check=False).stdout, 20, "it is there"
    )
    first = cluster.get("pod", "writer", "-n", space)["spec"]["nodeName"]
    cluster.kubectl("delete", "pod", "writer", "-n", space, "--wait")
    cluster.apply(cluster.pod("reader", space, "sleep 600", claim="kept"))
    cluster.wait("pod/reader", "condition=Ready", space)
    assert cluster.execute(space, "reader", "cat /data/word").stdout.strip() == word
    assert cluster.get("pod", "reader", "-n", space)["spec"]["nodeName"] == first, "the pod goes to its data"
    # Neither world-writable nor executable by others, and gone with its claim.
    volume = cluster.get("pvc", "kept", "-n", space)["spec"]["volumeName"]
    path = cluster.get("pv", volume)["spec"]
    where = path.get("local", path.get("hostPath", {}))["path"]
    assert cluster.lab.run(first, f"test -e {where}", check=False).returncode == 0
    cluster.kubectl("delete", "pod", "reader", "-n", space, "--wait")
    cluster.kubectl("delete", "pvc", "kept", "-n", space, "--wait")
    eventually(lambda: cluster.lab.run(first, f"test -e {where}", check=False).returncode != 0, 90, "the data is gone")


# ---------------------------------------------------------------------------------------------------------- the gateway


@pytest.mark.parametrize("client", [CLIENT, "lb1", "lb2"])
def test_the_sample_application_is_reached_at_the_public_address(cluster: Cluster, client: str) -> None:
    status, body = cluster.ask(client, *cluster.gateway, "/")
    assert status == 200, body
    assert body


def test_the_gateway_speaks_no_old_protocol_and_proves_itself_by_the_sites_authority_alone(cluster: Cluster) -> None:
    status, said = cluster.ask(CLIENT, *cluster.gateway, "/", newest="TLSv1_1")
    assert status == 0
    assert "SSLError" in said or "alert" in said or "Reset" in said, said
    assert cluster.ask(CLIENT, *cluster.gateway, "/", newest="TLSv1_2")[0] == 200
    strangers = "/etc/ssl/certs/ca-certificates.crt"
    assert "certificate verify failed" in cluster.ask(CLIENT, *cluster.gateway, "/", ca=strangers)[1]


def test_the_sample_application_follows_the_conventions(cluster: Cluster) -> None:
    """Two zones, a budget of disruptions, an autoscaler, and nothing beyond `restricted`."""
    deployments = cluster.get("deployments", "--all-namespaces")["items"]
    (app,) = [item for item in deployments if item["metadata"]["name"] == "sample"]
    namespace = app["metadata"]["namespace"]
    budgets = cluster.get("poddisruptionbudgets", "-n", namespace)["items"]
    assert any(item["status"]["expectedPods"] >= 2 and item["status"]["disruptionsAllowed"] >= 1 for item in budgets)
    scalers = cluster.get("horizontalpodautoscalers", "-n", namespace)["items"]
    (scaler,) = [item for item in scalers if item["spec"]["scaleTargetRef"]["name"] == "sample"]
    assert {item["type"]: item["status"] for item in scaler["status"]["conditions"]}["ScalingActive"] == "True"
    labels = app["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    running = cluster.get("pods", "-n", namespace, "-l", selector)["items"]
    assert len({pod["spec"]["nodeName"] for pod in running}) >= 2
    assert {pod["status"]["phase"] for pod in running} == {"Running"}


def test_the_anchor_of_the_site_is_what_members_trust(cluster: Cluster) -> None:
    """API server and metrics server verify kubelets by the site's authority."""
    assert flag(cluster, "kubelet-certificate-authority") == SITE_CA
    (metrics,) = [
        item
        for item in cluster.get("deployments", "--all-namespaces")["items"]
        if item["metadata"]["name"] == "metrics-server"
    ]
    words = metrics["spec"]["template"]["spec"]["containers"][0].get("args", [])
    assert not any("insecure" in word for word in words), words
