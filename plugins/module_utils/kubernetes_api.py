# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Kubernetes API over one kept-alive connection, by the standard library alone.

Servers are always verified. A request that a server did not answer is sent again, to the next server if there is one:
everything sent from here may arrive twice without harm (reads, server-side apply, deletes of one UID, evictions).
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode, urlsplit

from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import cause, origin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_config import KubeConfig

CONNECT = 3.0
"""Seconds in which a server must take a connection."""
TIMEOUT = 30.0
"""Seconds in which it must answer; the API server itself gives up a write after 34 (`--request-timeout` aside)."""
PATIENCE = 60.0
"""Seconds after which a request that no server answered is given up."""
CHECK_PATIENCE = 10.0
"""The same in check mode, where the cluster may not be there yet."""
PAUSE = 0.5
"""Seconds between two rounds over the servers."""
PAGE = 500
"""Objects that one answer to a list holds at most."""
API_ARGUMENTS: dict[str, dict[str, Any]] = {
    "kubeconfig": {"type": "path", "default": "/etc/kubernetes/admin.conf"},
    "servers": {"type": "list", "elements": "str", "default": []},
}
"""Options of a module that asks the API, documented by the fragment `kubernetes_api`."""

JSON = "application/json"
APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

_PASSING = ("etcdserver:", "leader changed", "apiserver is shutting down", "starting up", "storage is (re)initializing")
_BUSY, _SERVER_ERROR = 429, 500


@dataclass(frozen=True)
class Cause:
    """One of the reasons of a refusal."""

    field: str
    reason: str
    message: str


class ApiError(Exception):
    """The API refused a request, or nobody answered it.

    Attributes:
        status: HTTP status; 0 without an answer.
        reason: the API's word for it, such as `Invalid`.
        message: its sentence.
        causes: the fields that it names.
        kind: resource that the refusal is about, such as `namespaces`.
        retry_after: seconds that it asks to wait; 0 when it does not.
    """

    def __init__(self, message: str, status: int = 0, answer: Mapping[str, Any] | None = None) -> None:
        """Read the API's Status object, if there is one."""
        answer = answer or {}
        details = answer.get("details") or {}
        self.status = status
        self.reason = str(answer.get("reason") or "")
        self.message = str(answer.get("message") or message)
        self.kind = str(details.get("kind") or "")
        self.retry_after = float(details.get("retryAfterSeconds") or 0)
        self.causes = tuple(
            Cause(str(one.get("field") or ""), str(one.get("reason") or ""), str(one.get("message") or ""))
            for one in details.get("causes") or []
        )
        super().__init__(self.message)


class UnreachableError(ApiError):
    """No server took the connection, or none that could be verified."""


class TimedOutError(ApiError):
    """A server took the connection and did not answer in time."""


class ForbiddenError(ApiError):
    """Who we are may not do this."""


class NotFoundError(ApiError):
    """The object, its kind or its namespace does not exist."""


class ConflictError(ApiError):
    """The object is not what it was when it was read, or already exists."""


class InvalidError(ApiError):
    """The object is not valid; `causes` names the fields."""


class BusyError(ApiError):
    """Not now: too many requests, or a disruption budget that allows no eviction."""


_ERRORS: dict[int, type[ApiError]] = {
    400: InvalidError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    422: InvalidError,
    _BUSY: BusyError,
}


@dataclass(frozen=True, order=True)
class Resource:
    """Where objects of a kind are. The core group is empty text."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """As an object states it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of an object, of all of a namespace, or of all."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [self.plural, *([name] if name else []), *([subresource] if subresource else [])]
        return "/" + "/".join(quote(part, safe="") for part in parts)


NODES = Resource("", "v1", "Node", "nodes", namespaced=False)
PODS = Resource("", "v1", "Pod", "pods", namespaced=True)
CONFIG_MAPS = Resource("", "v1", "ConfigMap", "configmaps", namespaced=True)
EVENTS = Resource("", "v1", "Event", "events", namespaced=True)


class _Connection(http.client.HTTPSConnection):
    """Connects in its own time, and checks the certificate for another name than the URL's when told to."""

    def __init__(self, url: str, context: ssl.SSLContext, server_name: str) -> None:
        parts = urlsplit(url)
        super().__init__(str(parts.hostname), parts.port, context=context, timeout=TIMEOUT)
        self._tls, self._server_name = context, server_name

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), CONNECT)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = self._tls.wrap_socket(plain, server_hostname=self._server_name or self.host)
        except BaseException:
            plain.close()
            raise


class Api:
    """The API of one cluster."""

    def __init__(
        self,
        config: KubeConfig,
        servers: Sequence[str] = (),
        *,
        timeout: float = TIMEOUT,
        patience: float = PATIENCE,
    ) -> None:
        """Connect nothing yet.

        Args:
            config: who we are, whom we trust, and the first server.
            servers: URLs of other servers of the same cluster, for when the first does not answer.
            timeout: seconds for one answer.
            patience: seconds for one request over all servers and tries.

        Raises:
            ConfigError: the certificates of the configuration cannot be used.
        """
        self.requests = 0
        self._context = config.context()
        self._token, self._server_name = config.token, config.server_name
        self._servers = list(dict.fromkeys(origin(url) for url in [config.server, *servers]))
        self._timeout, self._patience = timeout, patience
        self._connection: _Connection | None = None
        self._discovered: dict[str, dict[str, Resource]] = {}

    # ------------------------------------------------------------------------------------------------------- requests

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> dict[str, Any]:
        """The answer to one request.

        Args:
            method: GET, PATCH, POST, PUT or DELETE.
            path: from `/`, quoted.
            query: parameters; those that are empty are left out.
            body: sent as JSON unless None.
            content_type: what the body is.
            accept: what the answer may be.

        Raises:
            ApiError: the API refused, or nobody answered; the subclass says which.
        """
        given = {key: value for key, value in (query or {}).items() if value}
        target = f"{path}?{urlencode(given)}" if given else path
        headers = {"Accept": accept}
        payload = None
        if body is not None:
            payload = json.dumps(body, separators=(",", ":")).encode()
            headers["Content-Type"] = content_type
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        deadline = time.monotonic() + self._patience
        while True:
            status, text = self._answer(method, target, payload, headers, deadline)
            answer = _object(text)
            if status < 300:  # noqa: PLR2004 - what is 2xx
                return answer
            error = _error(f"{method} {path}: HTTP status {status}", status, answer)
            if not _passes(error) or time.monotonic() + error.retry_after > deadline:
                raise error
            time.sleep(max(error.retry_after, PAUSE))

    def _answer(
        self, method: str, target: str, payload: bytes | None, headers: dict[str, str], deadline: float
    ) -> tuple[int, bytes]:
        """Status and body of the first server that answers."""
        problems: dict[str, str] = {}
        while True:
            server = self._servers[0]
            kept = self._connection is not None
            try:
                return self._exchange(server, method, target, payload, headers)
            except (http.client.HTTPException, OSError) as error:
                self.close()
                if kept and isinstance(error, ConnectionError | http.client.RemoteDisconnected):
                    continue  # a server may close a connection that was idle
                again = server in problems or len(self._servers) == 1
                problems[server] = cause(error)
                # Another time does not make a certificate valid; another server may have one that is.
                hopeless = isinstance(error, ssl.SSLCertVerificationError) and len(problems) == len(self._servers)
                if hopeless or time.monotonic() + PAUSE > deadline:
                    kind = TimedOutError if isinstance(error, TimeoutError) else UnreachableError
                    raise kind("; ".join(f"{url}: {cause}" for url, cause in problems.items())) from error
                self._servers.append(self._servers.pop(0))
                if again:
                    time.sleep(PAUSE)

    def _exchange(
        self, server: str, method: str, target: str, payload: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = _Connection(server, self._context, self._server_name)
            self._connection.connect()
        self._connection.sock.settimeout(self._timeout)
        self.requests += 1
        self._connection.request(method, target, payload, headers)
        response = self._connection.getresponse()
        answer = response.status, response.read()
        if response.will_close:
            self.close()
        return answer

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ------------------------------------------------------------------------------------------------------- discovery

    def resource(self, api_version: str, kind: str) -> Resource | None:
        """Where objects of a kind are; None when this API has no such kind.

        What was found is kept, what was not found is asked for again: a definition may be on its way.

        Raises:
            ApiError: nobody answered.
        """
        known = self._discovered.get(api_version, {})
        if kind not in known:
            known = self._discovered[api_version] = self._discover(api_version)
        return known.get(kind)

    def preferred(self, group: str, kind: str) -> Resource | None:
        """The same for any version that is served, the group's preferred one first."""
        if not group:
            return self.resource("v1", kind)
        try:
            answer = self.request("GET", f"/apis/{quote(group, safe='')}")
        except NotFoundError:
            return None
        first = (answer.get("preferredVersion") or {}).get("groupVersion")
        versions = [item["groupVersion"] for item in answer.get("versions") or []]
        for version in dict.fromkeys([*([first] if first else []), *versions]):
            found = self.resource(version, kind)
            if found is not None:
                return found
        return None

    def _discover(self, api_version: str) -> dict[str, Resource]:
        group, _, version = api_version.rpartition("/")
        path = "/".join(quote(part, safe="") for part in (group, version) if part)
        try:
            answer = self.request("GET", f"/apis/{path}" if group else f"/api/{path}")
        except NotFoundError:
            return {}
        return {
            item["kind"]: Resource(group, version, item["kind"], item["name"], bool(item["namespaced"]))
            for item in answer.get("resources") or []
            if "/" not in item["name"]
        }

    # --------------------------------------------------------------------------------------------------------- objects

    def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        """One object.

        Raises:
            NotFoundError: there is none.
            ApiError: the API refused, or nobody answered.
        """
        return self.request("GET", resource.path(namespace, name))

    def find(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        """One object, or None when there is none."""
        try:
            return self.get(resource, namespace, name)
        except NotFoundError:
            return None

    def list(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> list[dict[str, Any]]:
        """All objects that the selectors take, page by page.

        Args:
            resource: their kind.
            namespace: empty for all namespaces.
            labels: label selector.
            fields: field selector.
            metadata_only: leave out all but the metadata.

        Raises:
            NotFoundError: there is no such kind.
            ApiError: the API refused, or nobody answered.
        """
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(PAGE)}
        accept = METADATA_ONLY if metadata_only else JSON
        found: list[dict[str, Any]] = []
        while True:
            try:
                answer = self.request("GET", resource.path(namespace), query=query, accept=accept)
            except ApiError as error:
                if error.reason != "Expired" or "continue" not in query:
                    raise
                # The list took so long that its beginning is history: from the start, in one piece.
                query = {key: value for key, value in query.items() if key not in ("continue", "limit")}
                found = []
                continue
            found += answer.get("items") or []
            token = (answer.get("metadata") or {}).get("continue")
            if not token:
                return found
            query["continue"] = str(token)

    def apply(self, resource: Resource, body: dict[str, Any], *, manager: str, dry_run: bool = False) -> dict[str, Any]:
        """Server-side apply, taking fields over from other managers; unknown fields are refused.

        Returns:
            The object as it is (or would be) afterwards.

        Raises:
            InvalidError: the object is not valid; `causes` names the fields.
            ApiError: the API refused otherwise, or nobody answered.
        """
        metadata = body["metadata"]
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        return self.request(
            "PATCH",
            resource.path(str(metadata.get("namespace") or ""), str(metadata["name"])),
            query={**query, "dryRun": "All" if dry_run else ""},
            body=body,
            content_type=APPLY_PATCH,
        )

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: dict[str, Any],
        *,
        manager: str,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """JSON merge patch (RFC 7386); a `metadata.resourceVersion` in it makes it conditional.

        Raises:
            ConflictError: the object is another version.
            ApiError: the API refused otherwise, or nobody answered.
        """
        query = {"fieldManager": manager, "fieldValidation": "Strict", "dryRun": "All" if dry_run else ""}
        return self.request("PATCH", resource.path(namespace, name), query=query, body=body, content_type=MERGE_PATCH)

    def create(
        self, resource: Resource, body: dict[str, Any], *, name: str = "", subresource: str = ""
    ) -> dict[str, Any]:
        """Create an object, or post to a subresource of the object `name`.

        Raises:
            ConflictError: it is there already.
            ApiError: the API refused otherwise, or nobody answered.
        """
        namespace = str((body.get("metadata") or {}).get("namespace") or "")
        return self.request("POST", resource.path(namespace, name, subresource), body=body)

    def delete(self, resource: Resource, namespace: str, name: str, *, uid: str = "") -> None:
        """Delete an object, and in the background what it owns. One that is gone is no error.

        Args:
            resource: its kind.
            namespace: empty for a kind that has none.
            name: its name.
            uid: delete only the object that has this one.

        Raises:
            ConflictError: it is another object of the same name.
            ApiError: the API refused otherwise, or nobody answered.
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self.request("DELETE", resource.path(namespace, name), body=options)
        except NotFoundError:
            return


def selector(spec: Mapping[str, Any]) -> str:
    """The label selector of a query for a `selector` of a workload's specification."""
    parts = [f"{key}={value}" for key, value in sorted((spec.get("matchLabels") or {}).items())]
    for one in spec.get("matchExpressions") or []:
        key, values = one["key"], ",".join(one.get("values") or [])
        words = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key}
        parts.append(words.get(one["operator"], f"!{key}"))
    return ",".join(parts)


def _error(message: str, status: int, answer: dict[str, Any]) -> ApiError:
    # A custom object with a field that its definition lacks is an internal error to the API server (1.34).
    invalid = status == _SERVER_ERROR and "typed patch object" in str(answer.get("message"))
    return (InvalidError if invalid else _ERRORS.get(status, ApiError))(message, status, answer)


def _passes(error: ApiError) -> bool:
    """Whether a refusal is one of a server that is busy or between two leaders."""
    if error.status == _BUSY:
        return not any(cause.reason == "DisruptionBudget" for cause in error.causes)
    return error.status >= _SERVER_ERROR and (
        error.reason in ("ServiceUnavailable", "ServerTimeout", "Timeout")
        or any(word in error.message for word in _PASSING)
    )


def _object(text: bytes) -> dict[str, Any]:
    """The object in a body; one with a message when it is something else, such as a proxy's page."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    return {"message": text.decode("utf-8", "replace").strip()[:300]}
