# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON over HTTPS with a client certificate, by the standard library alone.

One `HttpsClient` is one kept-alive connection to one server. Certificates are always verified, names and addresses too.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")
R = TypeVar("R")

TIMEOUT = 3.0
"""Seconds for one request, connect and answer each, when the caller does not say."""


class HttpsError(Exception):
    """The server gave no HTTP answer.

    Attributes:
        refused: nothing listens there, so the process is not running (unlike a timeout or a bad certificate, which
            prove nothing about it).
    """

    def __init__(self, url: str, cause: str, *, refused: bool = False) -> None:
        """Name the server and the cause."""
        super().__init__(f"{url}: {cause}")
        self.url = url
        self.refused = refused


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Whom we trust and who we are, as files in PEM."""

    ca: str
    cert: str
    key: str

    def context(self) -> ssl.SSLContext:
        """A context that verifies the server and shows our certificate.

        Raises:
            HttpsError: a file is missing, unreadable or not what it should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(self.ca)
        except OSError as error:  # ssl.SSLError is one
            raise HttpsError(self.ca, error.strerror or str(error)) from error
        try:
            context.load_cert_chain(self.cert, self.key)
        except OSError as error:
            raise HttpsError(f"{self.cert} with {self.key}", error.strerror or str(error)) from error
        return context


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, whatever its status."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace").strip()

    def json(self) -> dict[str, Any]:
        """The first JSON object of the body; empty when there is none (grpc-gateway streams one object a line)."""
        try:
            value, _end = json.JSONDecoder().raw_decode(self.text)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class HttpsClient:
    """A kept-alive connection to one server."""

    def __init__(
        self, url: str, context: ssl.SSLContext, timeout: float = TIMEOUT, headers: Mapping[str, str] | None = None
    ) -> None:
        """Connect nothing yet.

        Args:
            url: `https://host:port`; a path is left out.
            context: from `ClientTls.context`.
            timeout: seconds for connect and for each answer.
            headers: of each request, such as a key.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise HttpsError(url, "is not an https URL")
        self.host, self.port = parts.hostname, parts.port or 443
        self.url = origin(url)
        self._lock = threading.Lock()
        self._context, self._timeout, self._headers = context, timeout, dict(headers or {})
        self._connection: http.client.HTTPSConnection | None = None

    def request(
        self, method: str, path: str, body: Any = None, *, timeout: float | None = None, once: bool = False
    ) -> Answer:
        """Ask, over the kept connection if there is one.

        Args:
            method: GET, POST, PATCH, ...
            path: from `/`.
            body: sent as JSON unless None.
            timeout: seconds for this request.
            once: the request must not be sent twice: use a new connection and no second try.

        Raises:
            HttpsError: no answer.
        """
        with self._lock:
            kept = self._connection is not None and not once
            try:
                return self._exchange(method, path, body, timeout, kept=kept)
            except (http.client.HTTPException, OSError) as error:
                self.close()
                # A server may close a connection that was idle; only then is a second try honest.
                idle = kept and isinstance(error, ConnectionError | http.client.RemoteDisconnected)
                if not idle:
                    raise HttpsError(self.url, cause(error), refused=_refused(error)) from error
            try:
                return self._exchange(method, path, body, timeout, kept=False)
            except (http.client.HTTPException, OSError) as error:
                self.close()
                raise HttpsError(self.url, cause(error), refused=_refused(error)) from error

    def _exchange(self, method: str, path: str, body: Any, timeout: float | None, *, kept: bool) -> Answer:
        wait = self._timeout if timeout is None else timeout
        if not kept or self._connection is None:
            self.close()
            self._connection = http.client.HTTPSConnection(self.host, self.port, context=self._context, timeout=wait)
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sock.settimeout(wait)
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if payload is not None else {}
        self._connection.request(method, path, payload, {**self._headers, **headers})
        response = self._connection.getresponse()
        answer = Answer(response.status, response.read())
        if response.will_close:
            self.close()
        return answer

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Clients:
    """One `HttpsClient` for each server, made when first needed."""

    def __init__(self, tls: ClientTls, timeout: float = TIMEOUT, headers: Mapping[str, str] | None = None) -> None:
        """Read the certificate files once.

        Args:
            tls: whom we trust, and who we are.
            timeout: seconds for connect and for each answer.
            headers: of each request to each server.

        Raises:
            HttpsError: they cannot be read.
        """
        self._context, self._timeout, self._headers = tls.context(), timeout, headers
        self._clients: dict[str, HttpsClient] = {}
        self._lock = threading.Lock()

    def __getitem__(self, url: str) -> HttpsClient:
        """The client for that server."""
        with self._lock:
            if url not in self._clients:
                self._clients[url] = HttpsClient(url, self._context, self._timeout, self._headers)
            return self._clients[url]

    def fresh(self, url: str, timeout: float) -> HttpsClient:
        """Another client for that server, for a request that takes long."""
        return HttpsClient(url, self._context, timeout, self._headers)


class Crew:
    """Threads that ask several servers at once: a frozen one costs one timeout and not one for each."""

    def __init__(self, size: int) -> None:
        """Start no thread yet."""
        self._pool = ThreadPoolExecutor(max_workers=max(size, 1), thread_name_prefix="ask")

    def map(self, ask: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The answers in the order of the items."""
        return list(self._pool.map(ask, items))


def origin(url: str) -> str:
    """`https://host:port` of a URL."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{parts.port or 443}"


def is_local(url: str) -> bool:
    """Whether the URL's host is an address of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(
                address
            )  # sends nothing: the kernel only picks the source, which is the address itself if ours
            return bool(probe.getsockname()[0] == address[0])
    except OSError:
        return False


def _refused(error: Exception) -> bool:
    return isinstance(error, ConnectionRefusedError)


def cause(error: Exception) -> str:
    """Why a server gave no answer, in words for a message."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was not accepted ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
