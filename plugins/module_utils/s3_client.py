# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signed requests to an object store over one kept-alive TLS connection, by the standard library alone.

Certificates are always verified, and every request is signed whole, its body too.

Source: Amazon S3 API reference, "Authenticating Requests (AWS Signature Version 4)".
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import http.client
import json
import socket
import ssl
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import Answer, HttpsError, cause, origin
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_signature import (
    Credentials,
    Signable,
    canonical_path,
    canonical_query,
    signed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "AnswerError", "Credentials", "Request", "S3Client", "StoreError", "UnreachableError", "canonical_path",
    "canonical_query", "content_md5", "error_of", "parsed", "server_context", "signed_headers",
]  # fmt: skip
"""What others take from here, the words of `s3_signature` among it."""

TIMEOUT = 20.0
"""Seconds for one request, connect and answer each."""

_OK = range(200, 300)


class StoreError(Exception):
    """The store does not answer, or not as it should; the text says which server, what was asked, and what it said."""


class UnreachableError(StoreError):
    """None of the servers answers."""


class AnswerError(StoreError):
    """The store refused a request.

    Attributes:
        status: of HTTP.
        code: S3's name of the error, such as `NoSuchBucket`; empty when the answer has none.
        reason: in the store's words.
    """

    def __init__(self, what: str, status: int, code: str, reason: str) -> None:
        """Say what was asked, and what the store said."""
        self.status, self.code, self.reason = status, code, reason
        said = ": ".join(part for part in (code, reason) if part)
        super().__init__(f"{what}: the store answers {status}{f' {said}' if said else ''}")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked.

    Attributes:
        method: GET, PUT, POST, DELETE or HEAD.
        path: from `/`, not encoded.
        query: name to value, not encoded.
        body: its bytes.
        headers: beyond those that every request has; names in lower case.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """Path and query as they are sent."""
        query = canonical_query(self.query)
        return canonical_path(self.path) + (f"?{query}" if query else "")


def signed_headers(
    request: Request, host: str, credentials: Credentials, region: str, now: dt.datetime
) -> dict[str, str]:
    """The headers with which a request is sent.

    Args:
        request: what is asked.
        host: `host:port` as the client names the server.
        credentials: who asks.
        region: of the store.
        now: in UTC. A store takes a request for a quarter of an hour.
    """
    digest = hashlib.sha256(request.body).hexdigest()
    what = Signable(request.method, request.path, digest, request.query, request.headers)
    return signed(what, host, credentials, region, now)


def content_md5(body: bytes) -> dict[str, str]:
    """The header without which a store takes no lifecycle and no lock."""
    return {"content-md5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}


def parsed(answer: Answer, what: str) -> ET.Element:
    """The XML of an answer, its names without a namespace.

    Args:
        answer: from `S3Client.ask`.
        what: was asked, for the message.

    Raises:
        StoreError: it is no XML.
    """
    try:
        # Of a server whose certificate we have checked; expat itself bounds what entities may grow to.
        root = ET.fromstring(answer.body)  # noqa: S314
    except ET.ParseError as error:
        raise StoreError(f"{what}: the store answers what is no XML ({error})") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def error_of(answer: Answer) -> tuple[str, str]:
    """Code and reason of an answer that is an error: S3 tells it in XML, MinIO's administration in JSON."""
    told = answer.json()
    if told:
        return str(told.get("Code", "")), str(told.get("Message", ""))
    try:
        root = parsed(answer, "")
    except StoreError:
        return "", answer.text[:200]
    return root.findtext("Code") or "", root.findtext("Message") or ""


def server_context(ca: str) -> ssl.SSLContext:
    """A context that trusts one authority.

    Args:
        ca: its file, in PEM.

    Raises:
        HttpsError: the file is missing, unreadable or not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca)
    except OSError as error:  # ssl.SSLError is one
        raise HttpsError(ca, error.strerror or str(error)) from error
    return context


class S3Client:
    """A session with the first server that answers."""

    def __init__(
        self, servers: Sequence[str], context: ssl.SSLContext, credentials: Credentials, *, region: str
    ) -> None:
        """Connect to the first server that answers.

        Args:
            servers: as `https://host:port`.
            context: from `server_context`.
            credentials: who we are.
            region: of the store.

        Raises:
            UnreachableError: none answers.
        """
        self.credentials, self.region = credentials, region
        self.requests = 0
        self._context = context
        causes = []
        for server in servers:
            parts = urlsplit(server)
            if parts.scheme != "https" or not parts.hostname:
                raise UnreachableError(f"server {server} is no https URL: write https://host:port")
            self.url, self._host, self._port = origin(server), parts.hostname, parts.port or 443
            try:
                self._connection = self._connect()
            except OSError as error:
                causes.append(f"{self.url}: {cause(error)}")
            else:
                return
        raise UnreachableError("no server of the object store answers: " + "; ".join(causes or ["none is named"]))

    def _connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=TIMEOUT)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()

    def send(self, request: Request, credentials: Credentials | None = None) -> Answer:
        """Ask, whatever the answer is.

        Args:
            request: it is sent twice where the server closed the connection before it answered: each request of ours
                says what shall be, so that a second one does no harm.
            credentials: who asks, if not we.

        Raises:
            UnreachableError: there is no answer.
        """
        try:
            return self._exchange(request, credentials)
        except (ConnectionError, http.client.RemoteDisconnected):
            # Between two requests a server may close what was idle.
            self._connection.close()
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            raise UnreachableError(f"{self.url}: {request.method} {request.path}: {cause(error)}") from error
        try:
            self._connection = self._connect()
            return self._exchange(request, credentials)
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            raise UnreachableError(f"{self.url}: {request.method} {request.path}: {cause(error)}") from error

    def _exchange(self, request: Request, credentials: Credentials | None) -> Answer:
        who = credentials or self.credentials
        host = self.url.removeprefix("https://")
        headers = signed_headers(request, host, who, self.region, dt.datetime.now(dt.UTC))
        self.requests += 1
        self._connection.request(request.method, request.target, request.body or None, headers)
        response = self._connection.getresponse()
        return Answer(response.status, response.read())

    def ask(self, request: Request, credentials: Credentials | None = None) -> Answer:
        """Ask, and take only an answer that is none of an error.

        Args:
            request: see `send`.
            credentials: who asks, if not we.

        Raises:
            AnswerError: the store refuses.
            UnreachableError: there is no answer.
        """
        answer = self.send(request, credentials)
        if answer.status not in _OK:
            raise AnswerError(f"{self.url}: {request.method} {request.path}", answer.status, *error_of(answer))
        return answer

    def ask_json(self, request: Request) -> dict[str, object]:
        """Ask for an object in JSON.

        Args:
            request: see `send`.

        Raises:
            AnswerError: the store refuses.
            StoreError: it does not answer, or with something else.
        """
        answer = self.ask(request)
        try:
            value = json.loads(answer.body)
        except ValueError as error:
            raise StoreError(f"{self.url}: {request.method} {request.path}: the answer is no JSON") from error
        if not isinstance(value, dict):
            raise StoreError(f"{self.url}: {request.method} {request.path}: the answer is no object in JSON")
        return value
