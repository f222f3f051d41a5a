# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of the Kubernetes API against a server of the test's own, which answers as told."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import kubernetes_api
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import Profile
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import (
    NODES,
    PODS,
    Api,
    ApiError,
    BusyError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    Resource,
    TimedOutError,
    UnreachableError,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_config import KubeConfig

from tests.unit.pki_site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SITE = Site()


@dataclass
class Server:
    """Answers each request with the next of its answers, the last one for ever."""

    answers: list[tuple[int, Any]] = field(default_factory=lambda: [(200, {})])
    seen: list[tuple[str, str, Any]] = field(default_factory=list)
    connections: int = 0
    keep: bool = True
    url: str = ""

    def next(self) -> tuple[int, Any]:
        """What to answer now."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def serving(directory: Path, site: Site = SITE, **given: Any) -> Iterator[Server]:
    server = Server(**given)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            server.connections += 1
            super().setup()

        def handle_any(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            server.seen.append((self.command, self.path, body))
            status, answer = server.next()
            if answer == "hang":
                time.sleep(1.5)
            text = json.dumps(answer).encode() if isinstance(answer, dict) else str(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            if not server.keep:
                # As a server does that was restarted: the client is not told.
                self.wfile.flush()
                self.connection.close()
                self.close_connection = True

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    chain, key = site.issue(Profile(common_name="api", usages=frozenset({"server"}), ip=frozenset({"127.0.0.1"})))
    (directory / "tls.pem").write_bytes(chain.encode() + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "tls.pem")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    server.url = f"https://127.0.0.1:{httpd.server_address[1]}"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


def api(server: Server | str, *others: str, patience: float = 10, timeout: float = 5) -> Api:
    url = server if isinstance(server, str) else server.url
    return Api(KubeConfig("test.conf", url, SITE.anchors, token="t"), others, patience=patience, timeout=timeout)


def status(code: int, message: str = "m", reason: str = "", **details: Any) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "reason": reason, "message": message, "details": details}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "PAUSE", 0.05)


def test_one_connection_serves_all_requests(server: Server) -> None:
    client = api(server)
    for _ in range(3):
        client.get(NODES, "", "a")
    assert (server.connections, client.requests) == (1, 3)


def test_a_connection_that_the_server_dropped_is_opened_again(server: Server) -> None:
    server.keep = False
    client = api(server, patience=0)
    for _ in range(3):
        client.get(NODES, "", "a")
        time.sleep(0.1)
    assert [path for _method, path, _body in server.seen] == ["/api/v1/nodes/a"] * 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, InvalidError),
        (401, ForbiddenError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, ConflictError),
        (418, ApiError),
        (422, InvalidError),
        (500, ApiError),
    ],
)
def test_each_refusal_has_its_type(server: Server, code: int, kind: type[ApiError]) -> None:
    server.answers = [status(code, "no", "Word", kind="pods", causes=[{"field": "f", "message": "m", "reason": "r"}])]
    with pytest.raises(ApiError, match="no") as caught:
        api(server).get(NODES, "", "a")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.reason, error.kind, error.causes[0].field) == (code, "Word", "pods", "f")
    assert len(server.seen) == 1


def test_a_refusal_that_is_no_object_is_told_as_it_is(server: Server) -> None:
    server.answers = [(502, "<html>Bad Gateway</html>")]
    with pytest.raises(ApiError, match="Bad Gateway"):
        api(server).get(NODES, "", "a")


@pytest.mark.parametrize(
    "passing",
    [
        status(503, "apiserver is shutting down", "ServiceUnavailable"),
        status(500, "etcdserver: leader changed"),
        status(504, "Timeout: request did not complete", "Timeout"),
        status(429, "too many requests", "TooManyRequests", retryAfterSeconds=0),
    ],
)
def test_what_passes_is_waited_for(server: Server, passing: tuple[int, Any]) -> None:
    server.answers = [passing, passing, (200, {"ok": 1})]
    assert api(server).get(NODES, "", "a") == {"ok": 1}
    server.answers = [passing]
    with pytest.raises(ApiError):
        api(server, patience=0.2).get(NODES, "", "a")


def test_the_time_that_a_server_asks_for_is_given(server: Server) -> None:
    server.answers = [status(429, retryAfterSeconds=1), (200, {})]
    started = time.monotonic()
    api(server).get(NODES, "", "a")
    assert time.monotonic() - started > 0.9


def test_a_budget_that_allows_no_eviction_is_the_caller_s_to_wait_for(server: Server) -> None:
    server.answers = [status(429, causes=[{"reason": "DisruptionBudget", "message": "needs 1"}])]
    with pytest.raises(BusyError):
        api(server).create(PODS, {"metadata": {"namespace": "n"}}, name="a", subresource="eviction")
    assert server.seen[0][:2] == ("POST", "/api/v1/namespaces/n/pods/a/eviction")


def test_the_next_server_is_asked_when_one_does_not_answer(server: Server, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"https://127.0.0.1:{closed.getsockname()[1]}"
        client = api(dead, server.url)
        for _ in range(2):
            assert client.get(NODES, "", "a") == {}
        assert client.requests == 2
        with pytest.raises(UnreachableError, match=f"{dead}: connection refused"):
            api(dead, patience=0.2).get(NODES, "", "a")
    directory = tmp_path / "other"
    directory.mkdir()
    with serving(directory, answers=[(200, "hang")]) as hung:
        assert api(hung, server.url, timeout=0.3).get(NODES, "", "a") == {}
        with pytest.raises(TimedOutError, match="no answer in time"):
            api(hung, patience=0.2, timeout=0.3).get(NODES, "", "a")


def test_a_server_that_another_authority_vouches_for_is_not_asked(tmp_path: Path) -> None:
    with serving(tmp_path, Site()) as stranger:
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="its certificate was not accepted"):
            api(stranger).get(NODES, "", "a")
        assert time.monotonic() - started < 5, "another time would not make it valid"
        assert stranger.seen == []


def test_the_name_of_a_server_is_checked(server: Server) -> None:
    config = KubeConfig("test.conf", server.url, SITE.anchors, server_name="elsewhere")
    with pytest.raises(UnreachableError, match="not accepted"):
        Api(config, patience=0).get(NODES, "", "a")


def page(*names: str, token: str = "") -> tuple[int, dict[str, Any]]:
    return 200, {"metadata": {"continue": token}, "items": [{"metadata": {"name": name}} for name in names]}


def test_a_list_is_read_page_by_page_and_from_the_start_when_its_beginning_is_history(server: Server) -> None:
    expired = status(410, "too old", "Expired")
    server.answers = [page("a", token="1"), page("b", token="2"), expired, page("a", "b", "c")]
    found = api(server).list(PODS, "n", labels="x=y")
    assert [item["metadata"]["name"] for item in found] == ["a", "b", "c"]
    paths = [path for _method, path, _body in server.seen]
    assert paths[0] == "/api/v1/namespaces/n/pods?labelSelector=x%3Dy&limit=500"
    assert paths[1].endswith("&limit=500&continue=1")
    assert paths[3] == "/api/v1/namespaces/n/pods?labelSelector=x%3Dy"


def resources(*names: tuple[str, str, bool]) -> tuple[int, dict[str, Any]]:
    return 200, {"resources": [{"name": name, "kind": kind, "namespaced": scope} for name, kind, scope in names]}


def test_what_was_discovered_is_known_and_what_was_not_is_asked_for_again(server: Server) -> None:
    server.answers = [
        resources(("deployments", "Deployment", True), ("deployments/scale", "Scale", True)),
        resources(("deployments", "Deployment", True)),
        status(404),
    ]
    client = api(server)
    found = client.resource("apps/v1", "Deployment")
    assert found == Resource("apps", "v1", "Deployment", "deployments", namespaced=True)
    assert client.resource("apps/v1", "Deployment") is found
    assert client.requests == 1
    assert client.resource("apps/v1", "Scale") is None
    assert client.resource("x.example.org/v1", "X") is None
    assert [path for _method, path, _body in server.seen] == ["/apis/apps/v1"] * 2 + ["/apis/x.example.org/v1"]


def test_a_kind_whose_version_is_gone_is_found_under_another(server: Server) -> None:
    group = {
        "preferredVersion": {"groupVersion": "x/v2"},
        "versions": [{"groupVersion": "x/v3"}, {"groupVersion": "x/v2"}],
    }
    server.answers = [(200, group), resources(), resources(("xs", "X", False))]
    found = api(server).preferred("x", "X")
    assert found == Resource("x", "v3", "X", "xs", namespaced=False)
    server.answers = [status(404)]
    assert api(server).preferred("y", "Y") is None


def test_an_apply_says_who_applies_and_refuses_unknown_fields(server: Server) -> None:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a:b", "namespace": "n"}}
    client = api(server)
    client.apply(PODS, body, manager="m")
    client.apply(PODS, body, manager="m", dry_run=True)
    path = "/api/v1/namespaces/n/pods/a%3Ab?fieldManager=m&force=true&fieldValidation=Strict"
    assert server.seen == [("PATCH", path, body), ("PATCH", f"{path}&dryRun=All", body)]


def test_a_delete_is_of_one_object_and_one_that_is_gone_is_no_error(server: Server) -> None:
    server.answers = [(200, {}), status(404), status(409)]
    client = api(server)
    client.delete(PODS, "n", "a", uid="1")
    client.delete(PODS, "n", "a")
    with pytest.raises(ConflictError):
        client.delete(PODS, "n", "a", uid="1")
    assert server.seen[0][2]["preconditions"] == {"uid": "1"}
    assert "preconditions" not in server.seen[1][2]
