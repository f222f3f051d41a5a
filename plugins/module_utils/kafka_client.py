# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection to a broker of Kafka over mutual TLS, by the standard library alone.

Any broker takes any request of administration: in KRaft it passes on to the controller what is the controller's.
"""

from __future__ import annotations

import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils import kafka_messages, kafka_scram, kafka_wire
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import cause

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CONNECT = 5.0
"""Seconds for a connection to be there."""

TIMEOUT = 60.0
"""Seconds for one answer; a controller writes thousands of partitions in a few."""

LARGEST = 100 * 1024 * 1024
"""Bytes of one answer that are taken; brokers refuse larger requests too (`socket.request.max.bytes`)."""

CLIENT = "groundplane-kafka-resources"
VERSION = "1"


class KafkaError(Exception):
    """No broker answers as one of Kafka 4 does; the text says who and why."""


class UnreachableError(KafkaError):
    """Nobody is there, or who is there does not want us; another broker may.

    Attributes:
        refused: nothing listens there, so the process does not run (unlike a timeout or a bad certificate, which prove
            nothing about it).
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        """Say whether it is proven that nothing runs."""
        super().__init__(message)
        self.refused = refused


class Connection:
    """An open connection."""

    def __init__(self, server: str, context: ssl.SSLContext, timeout: float = TIMEOUT) -> None:
        """Connect.

        Args:
            server: `host:port`.
            context: whom we trust and who we are.
            timeout: seconds for one answer, and for the connection no more than `CONNECT`.

        Raises:
            UnreachableError: nobody is there, or it is not who it should be.
        """
        self.server, self._count = server, 0
        host, _, port = server.rpartition(":")
        host = host.strip("[]")
        try:
            plain = socket.create_connection((host, int(port)), min(CONNECT, timeout))
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socket = context.wrap_socket(plain, server_hostname=host)
            except BaseException:
                plain.close()
                raise
        except (OSError, ValueError) as error:
            refused = isinstance(error, ConnectionRefusedError)
            raise UnreachableError(f"{server}: {_cause(error)}", refused=refused) from error
        self._socket.settimeout(timeout)

    def ask(self, api: kafka_wire.Api, message: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            UnreachableError: the broker ends the connection, as it does when it does not accept our certificate.
            KafkaError: it answers something else.
        """
        self._count += 1
        try:
            self._socket.sendall(kafka_wire.frame(api, self._count, CLIENT, message))
            size = struct.unpack(">i", self._receive(4))[0]
            if not 0 <= size <= LARGEST:
                raise KafkaError(f"{self.server}: answers something else than Kafka's protocol to {api.name}")
            data = self._receive(size)
        except OSError as error:
            raise UnreachableError(f"{self.server}: {_cause(error)}") from error
        try:
            return kafka_wire.answer(api, self._count, data)
        except kafka_wire.WireError as error:
            raise KafkaError(f"{self.server}: {error}") from error

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(min(count - len(data), 1 << 20))
            if not part:
                raise ConnectionResetError(0, "it ended the connection")
            data += part
        return bytes(data)

    def agree(self, needed: Sequence[kafka_wire.Api]) -> dict[str, int]:
        """Ask what the other side speaks, and what the cluster has switched on.

        Args:
            needed: requests that it must serve.

        Returns:
            Features of the whole cluster: name to level.

        Raises:
            KafkaError: it does not serve one.
        """
        client = {"client_software_name": CLIENT, "client_software_version": VERSION}
        answer = self.ask(kafka_messages.API_VERSIONS, client)
        served = {item["api_key"]: (item["min_version"], item["max_version"]) for item in answer["api_keys"]}
        lacking = lacking_apis(served, needed)
        if answer["error_code"] or lacking:
            what = ", ".join(lacking) or kafka_messages.words(answer["error_code"], None)
            raise KafkaError(f"{self.server}: is no broker of Kafka 4, or not open for us: {what}")
        return {item["name"]: item["maximum"] for item in answer.get("finalized_features", [])}

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def _cause(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError) and error.reason:
        # What the other side said in an alert, such as TLSV13_ALERT_CERTIFICATE_REQUIRED.
        return f"TLS failed ({error.reason.replace('_', ' ').lower()})"
    return cause(error)


class Client:
    """The cluster, through the first of its brokers that answers.

    Attributes:
        requests: how many were sent, logins not counted.
        logins: how many logins were tried.
        features: name to level of what the whole cluster has switched on.
    """

    def __init__(self, servers: Sequence[str], context: ssl.SSLContext) -> None:
        """Connect to the first broker that answers, and ask what it speaks.

        Args:
            servers: `host:port` of brokers.
            context: whom we trust and who we are.

        Raises:
            UnreachableError: none answers.
            KafkaError: it does not serve what we need.
        """
        self.requests = self.logins = 0
        self.features: dict[str, int] = {}
        self._context = context
        problems = []
        for server in servers:
            try:
                self._connection = Connection(server, context)
                try:
                    self.requests += 1
                    self.features = self._connection.agree(kafka_messages.ADMINISTRATION)
                except KafkaError:
                    self._connection.close()
                    raise
            except UnreachableError as error:
                problems.append(str(error))
            else:
                return
        raise UnreachableError(f"no broker answers ({'; '.join(problems)}): name in servers one that does")

    def ask(self, api: kafka_wire.Api, message: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request; errors in it are the caller's.

        Raises:
            KafkaError: see `Connection.ask`.
        """
        self.requests += 1
        return self._connection.ask(api, message)

    def accepts(self, servers: Sequence[str], user: str, mechanism: str, password: str) -> bool:
        """Whether a user can log in by this password, on a connection of its own.

        Args:
            servers: `host:port` of listeners that take logins.
            user: name.
            mechanism: such as `SCRAM-SHA-512`.
            password: in plain text; it is not sent.

        Raises:
            KafkaError: no listener takes logins by this mechanism.
        """
        self.logins += 1
        problems = []
        for server in servers:
            try:
                connection = Connection(server, self._context)
                try:
                    return _log_in(connection, user, mechanism, password)
                finally:
                    connection.close()
            except UnreachableError as error:
                problems.append(str(error))
        raise UnreachableError(
            f"no listener takes the login of {user} ({'; '.join(problems)}): name in scram_servers one that does"
        )

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def lacking_apis(
    served: Mapping[int, tuple[int, int]], needed: Iterable[kafka_wire.Api] = kafka_messages.ADMINISTRATION
) -> list[str]:
    """Names of what we need and a node does not serve in our version.

    Args:
        served: number of a request to its first and last version.
        needed: what we need.
    """
    return [
        f"{api.name} {api.version}"
        for api in needed
        if not served.get(api.key, (0, -1))[0] <= api.version <= served.get(api.key, (0, -1))[1]
    ]


def _log_in(connection: Connection, user: str, mechanism: str, password: str) -> bool:
    offer = connection.ask(kafka_messages.SASL_HANDSHAKE, {"mechanism": mechanism})
    if offer["error_code"]:
        there = ", ".join(offer["mechanisms"]) or "none"
        raise KafkaError(
            f"{connection.server}: takes no logins by {mechanism} but by {there}: name another of scram_servers"
        )

    def exchange(message: bytes) -> bytes | None:
        answer = connection.ask(kafka_messages.SASL_AUTHENTICATE, {"auth_bytes": message})
        code = answer["error_code"]
        if code == kafka_messages.AUTHENTICATION_FAILED:
            return None
        if code:
            raise KafkaError(f"{connection.server}: {kafka_messages.words(code, answer['error_message'])}")
        found: bytes = answer["auth_bytes"]
        return found

    try:
        return kafka_scram.log_in(mechanism, user, password, exchange)
    except kafka_scram.ScramError as error:
        raise KafkaError(f"{connection.server}: user {user}: {error}") from error


def errors_of(answers: Iterable[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Code and words of each answer, 0 where there is no error."""
    return [
        (answer["error_code"], kafka_messages.words(answer["error_code"], answer["error_message"]))
        for answer in answers
    ]
