# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real clients of the Kubernetes API, and of what the cluster publishes, for drills under load.

    with ApiWriter(lab, account) as writer, ApiReader(lab, account) as reader:
        with frozen(lab, holder):
            writer.watch(5)
    writer.outcome()                               # acknowledged, lost, ghosts, gap, in_order

A writer creates a ConfigMap every 100 ms on one session through the virtual address; a reader lists them. Both give
each step two seconds and open a new session after an error. A write that failed is not tried again: its name is read
back like all others, and may be there (a ghost) or not.
A host runs this file after `drill.py`: what runs there needs only the standard library.
"""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import ssl
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.faults.drill import ACTIONS, HostProbe, Outcome, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.drill import Record
    from tests.kubernetes import Cluster
    from tests.lab import Lab

# ------------------------------------------------------------------------------------------------------- on the client

CA = "/etc/groundplane/pki/ca.crt"
PATIENCE = 2.0
"""Seconds that a client gives each step: to connect, to agree on keys, to be answered."""


class Session:
    """HTTPS to one address under one name."""

    def __init__(self, address: str, port: int, name: str, patience: float = PATIENCE) -> None:
        """Connect.

        Raises:
            OSError: nobody answers in time, or it is not who it should be.
        """
        plain = socket.create_connection((address, port), patience)
        try:
            context = ssl.create_default_context(cafile=CA)
            self._connection = http.client.HTTPConnection(name, port)
            self._connection.sock = context.wrap_socket(plain, server_hostname=name)
        except BaseException:
            plain.close()
            raise

    def ask(self, method: str, path: str, *, token: str = "", body: str = "") -> str:
        """The body of a good answer.

        Raises:
            ConnectionError: it was not a good one.
            OSError: there was none in time.
            http.client.HTTPException: it was none of HTTP.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._connection.request(method, path, body or None, headers)
        answer = self._connection.getresponse()
        said = answer.read().decode(errors="replace")
        if not 200 <= answer.status < 300:
            raise ConnectionError(f"{answer.status}: {said[:200]}")
        return said

    def close(self) -> None:
        self._connection.close()


def _kept(address: str, port: str, name: str, step: Callable[[Session, str, int], str]) -> Callable[[int], str]:
    """Do a step on a session that is kept until it fails; the answer ends in the address of the API server behind it.

    The token is a line of standard input.
    """
    token = sys.stdin.readline().strip()
    sessions: list[Session] = []
    servers: list[str] = []

    def act(turn: int) -> str:
        try:
            if not sessions:
                sessions.append(Session(address, int(port), name))
                told = json.loads(sessions[0].ask("GET", "/api", token=token))
                servers[:] = [told["serverAddressByClientCIDRs"][0]["serverAddress"].rpartition(":")[0]]
            return f"{step(sessions[0], token, turn)} {servers[0]}"
        except (OSError, http.client.HTTPException):
            while sessions:
                sessions.pop().close()
            raise

    return act


def create(address: str, port: str, name: str, namespace: str, run: str) -> Callable[[int], str]:
    """Create ConfigMaps; the answer is the resource version of each."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"

    def step(session: Session, token: str, turn: int) -> str:
        meta = {"name": f"{run}-{turn:06}", "labels": {"run": run}}
        body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
        made = json.loads(session.ask("POST", path, token=token, body=body))
        return str(made["metadata"]["resourceVersion"])

    return _kept(address, port, name, step)


def listing(address: str, port: str, name: str, namespace: str) -> Callable[[int], str]:
    """List ConfigMaps, as new as there are; the answer is the resource version of the list."""
    path = f"/api/v1/namespaces/{namespace}/configmaps?limit=1"

    def step(session: Session, token: str, _: int) -> str:
        return str(json.loads(session.ask("GET", path, token=token))["metadata"]["resourceVersion"])

    return _kept(address, port, name, step)


def fetch(address: str, port: str, name: str, path: str, patience: str = "2") -> Callable[[int], None]:
    """Ask for a page without a secret, each time on a new connection."""

    def ask(_: int) -> None:
        session = Session(address, int(port), name, float(patience))
        try:
            session.ask("GET", path)
        finally:
            session.close()

    return ask


ACTIONS |= {"create": create, "listing": listing, "fetch": fetch}

# ---------------------------------------------------------------------------------------------------- on the controller


@dataclass(frozen=True, slots=True)
class Account:
    """A service account of a namespace made for drills, which may do nothing but handle ConfigMaps there."""

    cluster: Cluster
    client: str
    namespace: str
    token: str


def drill_accounts(cluster: Cluster, client: str) -> Iterator[Account]:
    """Make an account, give it, and take it away."""
    namespace = f"drill-{uuid.uuid4().hex[:8]}"
    meta = {"name": "drill", "namespace": namespace}
    rights = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get", "list"]}]
    group = "rbac.authorization.k8s.io"
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, "automountServiceAccountToken": False},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": rights},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "drill"},
            "subjects": [{"kind": "ServiceAccount", "name": "drill", "namespace": namespace}],
        },
    )
    token = cluster.kubectl("create", "token", "drill", "--namespace", namespace, "--duration=12h").stdout.strip()
    yield Account(cluster, client, namespace, token)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


@dataclass(frozen=True, slots=True)
class ApiOutcome(Outcome):
    """And how the API answered meanwhile."""

    errors_for: float
    """Seconds from the first failed attempt to the last."""
    in_order: bool
    """Whether each acknowledged write has a newer resource version than the one before."""


def errors_for(record: Record) -> float:
    """Seconds from the start of the first failed attempt to the start of the last; 0 without any."""
    times = [attempt.sent for attempt in record.failed]
    return round(max(times) - min(times), 3) if times else 0.0


def in_order(record: Record, *, strictly: bool) -> bool:
    """Whether resource versions only grow, in the order in which one client was answered."""
    answers = sorted(record.acknowledged, key=lambda attempt: attempt.sent)
    versions = [int(attempt.answer.split()[0]) for attempt in answers]
    return all(b > a or (b == a and not strictly) for a, b in itertools.pairwise(versions))


class ApiClient:
    """A client on a host of the site. Each `with` is a run of its own."""

    ACTION = ""
    INTERVAL = 0.1

    def __init__(self, lab: Lab, account: Account) -> None:
        self._lab = lab
        self.account = account
        self.run = ""
        self._probe: HostProbe | None = None

    def arguments(self) -> list[str]:
        """What the action is made with, besides the way to the API."""
        return [self.account.namespace]

    @property
    def record(self) -> Record:
        assert self._probe
        return self._probe.record

    def __enter__(self) -> Self:
        self.run = f"w{uuid.uuid4().hex[:12]}"
        self._probe = HostProbe(
            self._lab,
            self.account.client,
            self.ACTION,
            *map(str, self.account.cluster.api),
            *self.arguments(),
            interval=self.INTERVAL,
            program=Path(__file__),
            secret=self.account.token + "\n",
        ).start()
        wait_for(lambda: len(self.record.acknowledged) >= 10, 60, "the API answers")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._probe
        self._probe.stop()

    @property
    def server(self) -> str:
        """The address of the API server that answered last."""
        return self.record.acknowledged[-1].answer.split()[-1]

    def watch(self, seconds: float) -> None:
        """Let it go on."""
        time.sleep(seconds)


class ApiReader(ApiClient):
    """Lists."""

    ACTION = "listing"


class ApiWriter(ApiClient):
    """Creates, and reads all back."""

    ACTION = "create"

    def arguments(self) -> list[str]:
        return [self.account.namespace, self.run]

    def outcome(self) -> ApiOutcome:
        """Read all back. What was written goes with the namespace: kubectl removes one object after the other."""
        where = ("--namespace", self.account.namespace, "--selector", f"run={self.run}")
        cluster = self.account.cluster
        listed: Any = wait_for(
            lambda: cluster.kubectl("get", "configmaps", *where, "-o", "name", check=False), 60, "the API answers"
        )
        assert listed.returncode == 0, listed.stderr
        there = {int(name.rsplit("-", 1)[1]) for name in listed.stdout.split()}
        return ApiOutcome(
            **asdict(self.record.outcome(there)),
            errors_for=errors_for(self.record),
            in_order=in_order(self.record, strictly=True),
        )


def fetcher(
    lab: Lab, client: str, url: tuple[str, int, str, str], *, interval: float, patience: float = PATIENCE
) -> HostProbe:
    """A client that opens a connection for each page it asks for, and keeps its pace whatever the answers do.

    Args:
        lab: where the hosts are.
        client: where it runs.
        url: address, port, name and path.
        interval: seconds from one question to the next.
        patience: seconds for each step of one.
    """
    words = [*map(str, url), str(patience)]
    return HostProbe(lab, client, "fetch", *words, interval=interval, workers=40, program=Path(__file__))
