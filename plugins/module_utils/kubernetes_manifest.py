# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set of declared objects: proved, put in order, and packed for the way to the host. Pure."""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SET_LABEL = "groundplane.onprem/set"
_SET = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?\Z")

CLUSTER_SCOPED = frozenset(
    {
        ("", "Namespace"),
        ("", "Node"),
        ("", "PersistentVolume"),
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ("apiregistration.k8s.io", "APIService"),
        ("certificates.k8s.io", "CertificateSigningRequest"),
        ("certificates.k8s.io", "ClusterTrustBundle"),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"),
        ("networking.k8s.io", "IPAddress"),
        ("networking.k8s.io", "IngressClass"),
        ("networking.k8s.io", "ServiceCIDR"),
        ("node.k8s.io", "RuntimeClass"),
        ("rbac.authorization.k8s.io", "ClusterRole"),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
        ("resource.k8s.io", "DeviceClass"),
        ("resource.k8s.io", "ResourceSlice"),
        ("scheduling.k8s.io", "PriorityClass"),
        ("storage.k8s.io", "CSIDriver"),
        ("storage.k8s.io", "CSINode"),
        ("storage.k8s.io", "StorageClass"),
        ("storage.k8s.io", "VolumeAttachment"),
        ("storage.k8s.io", "VolumeAttributesClass"),
    }
)
NAMESPACED_GROUPS = frozenset({"", "apps", "autoscaling", "batch", "coordination.k8s.io", "events.k8s.io", "policy"})
"""Groups of the API itself whose other kinds are all in namespaces."""
BUILT_IN_GROUPS = NAMESPACED_GROUPS | {group for group, _kind in CLUSTER_SCOPED}

ORDER = (
    "Namespace",
    "CustomResourceDefinition",
    "PriorityClass",
    "RuntimeClass",
    "StorageClass",
    "CSIDriver",
    "IngressClass",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ResourceQuota",
    "LimitRange",
    "NetworkPolicy",
    "ConfigMap",
    "Secret",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Service",
    "PodDisruptionBudget",
    "DaemonSet",
    "Deployment",
    "StatefulSet",
    "Job",
    "CronJob",
    "HorizontalPodAutoscaler",
    "APIService",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
)
"""What others depend on comes first: names and definitions, rights, what a pod needs to start, pods, and what judges
others at the end. Objects of other kinds, the custom ones, come last."""
_RANK = {kind: rank for rank, kind in enumerate(ORDER)}


class ManifestError(Exception):
    """A set that contradicts itself; the text says which file and object, and never holds a value of a Secret."""


class Identity(NamedTuple):
    """What makes an object the same one, whatever version of its kind states it."""

    group: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        """As people say it, such as `Deployment data/cache`."""
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"

    @property
    def rank(self) -> int:
        """Its place in the order in which objects are applied."""
        return _RANK.get(self.kind, len(ORDER)) if self.group in BUILT_IN_GROUPS else len(ORDER)


@dataclass(frozen=True)
class Declared:
    """One object as its file states it, labelled with its set."""

    file: str
    body: dict[str, Any]

    @property
    def api_version(self) -> str:
        """Group and version."""
        return str(self.body["apiVersion"])

    @property
    def identity(self) -> Identity:
        """Which object it is."""
        metadata = self.body["metadata"]
        group = self.api_version.rpartition("/")[0]
        return Identity(group, self.body["kind"], str(metadata.get("namespace") or ""), str(metadata["name"]))

    @property
    def checksum(self) -> str:
        """SHA-256 of what is declared. Values of a Secret are left out: a checksum could be guessed from."""
        body = {key: value for key, value in self.body.items() if key != "data"} if self.secret else self.body
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def secret(self) -> bool:
        """Whether it is a Secret."""
        return self.api_version == "v1" and self.body["kind"] == "Secret"


def check_set(name: str) -> None:
    """Refuse a name that could not be a label, or part of another name.

    Raises:
        ManifestError: it is not 1 to 40 lower-case letters, digits and inner hyphens.
    """
    if not _SET.match(name):
        raise ManifestError(f"set: {name!r} must be 1 to 40 lower-case letters, digits and hyphens between them")


def declare(documents: Iterable[tuple[str, Any]], name: str) -> list[Declared]:
    """Make the objects of a set out of the documents of its files.

    Args:
        documents: file and content of each document, in any order. Empty ones are left out, lists are taken apart.
        name: of the set.

    Returns:
        The objects in the order in which they are applied.

    Raises:
        ManifestError: a document is no object, an object stands twice or in the wrong place, or two contradict.
    """
    check_set(name)
    objects: dict[Identity, Declared] = {}
    for file, document in documents:
        for body in _items(file, document):
            declared = _declared(file, body, name)
            other = objects.get(declared.identity)
            if other is not None:
                where = f"twice in {file}" if file == other.file else f"in {other.file} and in {file}"
                raise ManifestError(f"{declared.identity} is declared {where}")
            objects[declared.identity] = declared
    _check_scopes(objects)
    _check_replicas(objects)
    return [objects[key] for key in sorted(objects, key=lambda one: (one.rank, one))]


def _items(file: str, document: Any) -> list[Any]:
    if document is None:
        return []
    if isinstance(document, dict) and str(document.get("kind", "")).endswith("List") and "items" in document:
        return [one for item in document["items"] or [] for one in _items(file, item)]
    return [document]


def _declared(file: str, body: Any, name: str) -> Declared:
    if not isinstance(body, dict):
        raise ManifestError(f"{file}: holds {type(body).__name__} where an object belongs")
    for key in ("apiVersion", "kind"):
        if not isinstance(body.get(key), str) or not body[key]:
            raise ManifestError(f"{file}: an object without {key}")
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str) or not metadata["name"]:
        raise ManifestError(f"{file}: a {body['kind']} without metadata.name")
    body = copy.deepcopy(body)
    # What generators print and nobody declares: the API would take an empty one for an opinion.
    body.pop("status", None)
    body["metadata"].pop("creationTimestamp", None)
    title = f"{file}: {body['kind']} {metadata['name']}"
    for key in ("labels", "annotations"):
        if not isinstance(body["metadata"].get(key) or {}, dict):
            raise ManifestError(f"{title}: metadata.{key} is not a mapping")
    labels = dict(body["metadata"].get("labels") or {})
    if labels.setdefault(SET_LABEL, name) != name:
        raise ManifestError(
            f"{title}: carries the label {SET_LABEL}={labels[SET_LABEL]}, and belongs to the set {name}"
        )
    body["metadata"]["labels"] = labels
    declared = Declared(file, body)
    if declared.secret:
        _plain_secret(body, title)
    return declared


def _plain_secret(body: dict[str, Any], title: str) -> None:
    """Keep one notation of a Secret: what `stringData` held cannot be compared, because it is never read back."""
    data = dict(body.get("data") or {})
    for key, value in (body.pop("stringData", None) or {}).items():
        if not isinstance(value, str):
            raise ManifestError(f"{title}: stringData.{key} is not text; quote it")
        data[key] = base64.b64encode(value.encode()).decode("ascii")
    for key, value in data.items():
        try:
            # Line breaks of a folded text are no part of the value.
            data[key] = base64.b64encode(base64.b64decode("".join(str(value or "").split()), validate=True)).decode()
        except (binascii.Error, ValueError) as error:
            raise ManifestError(f"{title}: data.{key} is not base64") from error
    if data:
        body["data"] = data


def namespaced(identity: Identity, objects: Iterable[Declared] = ()) -> bool | None:
    """Whether objects of that kind are in namespaces; None when neither the API itself nor the set defines the kind."""
    if (identity.group, identity.kind) in CLUSTER_SCOPED:
        return False
    for one in objects:
        spec = one.body.get("spec") or {}
        if one.body["kind"] == "CustomResourceDefinition" and (
            spec.get("group") == identity.group and (spec.get("names") or {}).get("kind") == identity.kind
        ):
            return bool(spec.get("scope") == "Namespaced")
    return True if identity.group in BUILT_IN_GROUPS else None


def check_scope(declared: Declared, scope: bool | None) -> None:
    """Refuse an object in no namespace whose kind has them, and the other way round.

    Raises:
        ManifestError: so it is.
    """
    identity = declared.identity
    if scope is True and not identity.namespace:
        raise ManifestError(f"{declared.file}: {identity} names no namespace")
    if scope is False and identity.namespace:
        raise ManifestError(f"{declared.file}: {identity} names a namespace, and its kind is in none")


def _check_scopes(objects: dict[Identity, Declared]) -> None:
    definitions = [one for one in objects.values() if one.body["kind"] == "CustomResourceDefinition"]
    for declared in objects.values():
        check_scope(declared, namespaced(declared.identity, definitions))


def _check_replicas(objects: dict[Identity, Declared]) -> None:
    """Refuse two that would set the same number, one after the other, for ever."""
    for declared in objects.values():
        if declared.body["kind"] != "HorizontalPodAutoscaler":
            continue
        target = (declared.body.get("spec") or {}).get("scaleTargetRef") or {}
        group = str(target.get("apiVersion") or "").rpartition("/")[0]
        namespace = declared.identity.namespace
        other = objects.get(Identity(group, str(target.get("kind")), namespace, str(target.get("name"))))
        if other is not None and "replicas" in (other.body.get("spec") or {}):
            raise ManifestError(
                f"{other.file}: {other.identity} declares spec.replicas, which {declared.identity} sets: leave it out"
            )


# ------------------------------------------------------------------------------------------------- the way to the host


def pack(objects: Iterable[Declared]) -> str:
    """The objects as one text: JSON, compressed, in base64. Definitions of a megabyte become a tenth of that."""
    text = json.dumps([[one.file, one.body] for one in objects], separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")


def unpack(stream: str) -> list[Declared]:
    """Read what `pack` wrote.

    Raises:
        ManifestError: it did not arrive whole.
    """
    try:
        return [
            Declared(file, body) for file, body in json.loads(zlib.decompress(base64.b64decode(stream, validate=True)))
        ]
    except (binascii.Error, zlib.error, ValueError, TypeError) as error:
        raise ManifestError("the objects did not arrive whole") from error
