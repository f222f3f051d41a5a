# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time changes the cluster: a Lease that a run holds while it works on a member.

Tasks are processes of their own, so nothing renews a lease between them: a run takes it for longer than any step lasts,
and again before each step. Who holds it says on which kernel and in which process its run lives, so that a controller
can tell that a run of its own is dead. Source: the Lease of coordination.k8s.io/v1.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import (
    ConflictError,
    NotFoundError,
    Resource,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.process import kernel, started

if TYPE_CHECKING:
    from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import Api

LEASES = Resource("coordination.k8s.io", "v1", "Lease", "leases", namespaced=True)
NAMESPACE = "kube-system"
HOLDER = "groundplane.onprem/run"
_TRIES = 5
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


class LeaseHeldError(Exception):
    """Another run holds the lease.

    Attributes:
        run: that run.
    """

    def __init__(self, run: Run, until: datetime) -> None:
        """Say who, since when and for how long at most."""
        self.run = run
        super().__init__(
            f"{run.user} on {run.controller} changes the cluster, at {run.member}, with process {run.process}, "
            f"and at most until {until:%H:%M:%S} UTC: wait for that run"
        )


@dataclass(frozen=True, slots=True)
class Run:
    """A run of ansible.

    Attributes:
        user: who runs it.
        controller: where.
        kernel: the boot and the namespace in which `process` means something; empty where that is not known.
        process: the id of its process.
        started: when that process was started, in ticks since the boot.
        member: what it works on.
    """

    user: str
    controller: str
    kernel: str
    process: int
    started: int
    member: str = ""

    @classmethod
    def parse(cls, text: str) -> Run:
        """Read what `text` wrote; tolerate what somebody else wrote."""
        try:
            value = json.loads(text)
            return cls(**value)
        except (ValueError, TypeError):
            return cls("somebody", "an unknown host", "", 0, 0, "an unknown member")

    def text(self) -> str:
        """As stored."""
        return json.dumps(asdict(self))

    @property
    def name(self) -> str:
        """What tells it from every other run, whatever member it is at."""
        return f"{self.controller}/{self.kernel}/{self.process}/{self.started}"


def ended(run: Run) -> bool:
    """Whether a run is known to be over: it was one of this machine's, and its process is gone."""
    return bool(run.kernel) and run.kernel == kernel() and started(run.process) != run.started


def held_until(lease: dict[str, Any]) -> datetime | None:
    """Until when a lease is held; None when nobody holds it."""
    spec = lease.get("spec") or {}
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        return None
    renewed = datetime.strptime(str(spec["renewTime"]), _TIME).replace(tzinfo=UTC)
    return renewed + timedelta(seconds=int(spec.get("leaseDurationSeconds") or 0))


def holder(lease: dict[str, Any]) -> Run:
    """The run that a lease names."""
    annotations = (lease.get("metadata") or {}).get("annotations") or {}
    return Run.parse(str(annotations.get(HOLDER, "")))


def taken(lease: dict[str, Any], run: Run, seconds: int, now: datetime, *, name: str, over: str = "") -> dict[str, Any]:
    """The lease as it is when a run has taken it.

    Args:
        lease: as it is now; empty when there is none.
        run: who takes it.
        seconds: for how long at most.
        now: this moment.
        name: of the lease.
        over: the `name` of a run that is known to have ended.

    Raises:
        LeaseHeldError: another run has it.
    """
    spec = lease.get("spec") or {}
    until = held_until(lease)
    ours = spec.get("holderIdentity") == run.name
    if until is not None and until > now and not ours and spec["holderIdentity"] != over:
        raise LeaseHeldError(holder(lease), until)
    metadata = lease.get("metadata") or {"name": name, "namespace": NAMESPACE}
    moment = now.strftime(_TIME)
    return {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": {**metadata, "annotations": {**(metadata.get("annotations") or {}), HOLDER: run.text()}},
        "spec": {
            "holderIdentity": run.name,
            "leaseDurationSeconds": seconds,
            "acquireTime": spec["acquireTime"] if ours else moment,
            "renewTime": moment,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (not ours),
        },
    }


class ClusterLease:
    """The lease of that name in one cluster."""

    def __init__(self, api: Api, name: str) -> None:
        """Ask nothing yet."""
        self._api, self._name = api, name

    def read(self) -> dict[str, Any]:
        """It, or an empty mapping when nobody ever took it.

        Raises:
            ApiError: nobody answers.
        """
        return self._api.find(LEASES, NAMESPACE, self._name) or {}

    def take(self, run: Run, seconds: int, over: str = "") -> None:
        """Hold it, or hold it for longer.

        A request that arrived twice finds what it wrote itself, and is content.

        Raises:
            LeaseHeldError: another run has it.
            ApiError: nobody answers, or not everybody may do this.
        """
        for last in (False,) * (_TRIES - 1) + (True,):
            lease = self.read()
            wanted = taken(lease, run, seconds, datetime.now(UTC), name=self._name, over=over)
            try:
                if lease:
                    self._api.request("PUT", LEASES.path(NAMESPACE, self._name), body=wanted)
                else:
                    self._api.request("POST", LEASES.path(NAMESPACE), body=wanted)
            except (ConflictError, NotFoundError):
                if last:
                    raise
                continue
            return

    def let_go(self, run: Run) -> bool:
        """Nobody holds it any more, if this run did; whether it did.

        Raises:
            ApiError: nobody answers, or not everybody may do this.
        """
        lease = self.read()
        if (lease.get("spec") or {}).get("holderIdentity") != run.name:
            return False
        spec = {key: value for key, value in lease["spec"].items() if key == "leaseTransitions"}
        try:
            self._api.request("PUT", LEASES.path(NAMESPACE, self._name), body={**lease, "spec": spec})
        except ConflictError:
            return False
        return True
