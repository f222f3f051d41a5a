#!/usr/bin/python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's issuer: RFC 7030 `simplereenroll` and `cacerts` over mutual TLS.

A client that TLS has verified gets a new certificate for the identity it already has; all rules are in the collection's
`issuer.py`. Keys and certificates come as files that systemd has opened (`OpenFile=`), so that the service's user may
read none of them. Each answer is one JSON line in the journal.

No client can hold the service: a connection ends after `--deadline` however slowly it sends, bodies are short, and
connections are few in all and fewer for one address.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import collections
import contextlib
import http.server
import json
import os
import re
import signal
import socket
import ssl
import sys
import threading
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import (
    CertificateError,
    Profile,
    read,
    seconds,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.issuer import (
    Authority,
    Policy,
    RefusedError,
    certificates_only,
    granted,
    reenrol,
    serials,
)
from cryptography import x509

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

DEADLINE = 15.0  # seconds for a connection, from accept to close, unless told otherwise
FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
MAXIMUM_BODY = 16384  # bytes; a request with a hundred names is under 8 KiB
MAXIMUM_CONNECTIONS = 64
MAXIMUM_PER_ADDRESS = 8
PREFIX = "/.well-known/est"
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def audit(event: str, **details: object) -> None:
    """One line to the journal, in one write, so that lines of several threads do not run into each other."""
    os.write(sys.stdout.fileno(), f"{json.dumps({'event': event, **details})}\n".encode())


def files_given() -> dict[str, bytes]:
    """The content of the files that systemd opened for this process, by name (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    given = {}
    for descriptor, name in enumerate(names, start=FIRST_DESCRIPTOR):
        with os.fdopen(descriptor, "rb") as file:
            given[name] = file.read()
    return given


@contextlib.contextmanager
def in_memory(content: bytes) -> Iterator[str]:
    """The path of a file that is on no disk."""
    descriptor = os.memfd_create("given", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Settings:
    """All that the service was given."""

    policy: Policy
    anchors: list[x509.Certificate]
    grants: Path
    context: ssl.SSLContext

    @classmethod
    def load(cls, given: dict[str, bytes], grants: Path, life: int) -> Settings:
        """Take the files that were given: issuer.crt, issuer.key, tls.crt, tls.key, ca.crt, revoked.

        Raises:
            KeyError, OSError, RefusedError: one is missing or wrong; the service does not start without all.
        """
        issuer = Authority.load(given["issuer.crt"], given["issuer.key"])
        revoked = serials(given["revoked"].decode("utf-8"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.options |= ssl.OP_NO_TICKET  # each connection proves its identity anew
        context.load_verify_locations(cadata=given["ca.crt"].decode("ascii"))
        # OpenSSL wants this pair as files; a file in memory ends with the process.
        with in_memory(given["tls.crt"]) as certificate, in_memory(given["tls.key"]) as key:
            context.load_cert_chain(certificate, key)
        anchors = x509.load_pem_x509_certificates(given["ca.crt"])
        return cls(Policy(issuer, life, revoked), anchors, grants, context)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request of one client."""

    server: Service
    connection: ssl.SSLSocket
    server_version = "groundplane-issuer"
    sys_version = ""

    def do_GET(self) -> None:
        """The CAs in use (RFC 7030, 4.1)."""
        if self.path != f"{PREFIX}/cacerts":
            self.refuse(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        settings = self.server.settings
        self.deliver(certificates_only([*settings.anchors, settings.policy.issuer.certificate]))

    def do_POST(self) -> None:
        """A new certificate for an old one (RFC 7030, 4.2.2)."""
        if self.path != f"{PREFIX}/simplereenroll":
            self.refuse(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length):
            self.refuse(HTTPStatus.LENGTH_REQUIRED, "a request says how long it is")
            return
        if int(length) > MAXIMUM_BODY:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has {MAXIMUM_BODY} bytes at most")
            return
        try:
            body = base64.b64decode(b"".join(self.rfile.read(int(length)).split()), validate=True)
        except binascii.Error:
            self.refuse(HTTPStatus.BAD_REQUEST, "the body is not base64")
            return
        settings = self.server.settings
        presented = self.connection.getpeercert(binary_form=True) or b""
        try:
            new = reenrol(presented, body, settings.policy, self.grants(presented))
        except RefusedError as error:
            self.refuse(HTTPStatus.FORBIDDEN, str(error))
            return
        audit(
            "issued",
            address=self.client_address[0],
            presented=f"{read(presented).serial:x}",
            serial=f"{new.serial_number:x}",
            subject=new.subject.rfc4514_string(),
            not_after=new.not_valid_after_utc.isoformat(),
        )
        self.deliver(certificates_only([new, settings.policy.issuer.certificate]))

    def grants(self, presented: bytes) -> list[Profile]:
        """What the site lets the presenting host ask for besides its own certificate.

        The common name is a host's only when it is among the DNS names too; a service's name is not.
        """
        try:
            holder = read(presented)
        except CertificateError as error:
            raise RefusedError(f"the client's certificate cannot be read: {error}") from error
        name = holder.common_name
        if not _HOST.fullmatch(name) or name.lower() not in holder.dns:
            return []
        try:
            return granted(json.loads((self.server.settings.grants / f"{name}.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise RefusedError(f"the grant of {name} cannot be read: {error}") from error

    def deliver(self, der: bytes) -> None:
        """A certs-only answer (RFC 7030, 4.1.3)."""
        body = base64.encodebytes(der)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
        self.send_header("Content-Transfer-Encoding", "base64")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: HTTPStatus, reason: str) -> None:
        """A refusal that says why (RFC 7030, 4.2.3) and is remembered."""
        try:
            presented = f"{read(self.connection.getpeercert(binary_form=True) or b'').serial:x}"
        except CertificateError:
            presented = ""
        audit("refused", address=self.client_address[0], presented=presented, status=int(status), reason=reason)
        body = f"{reason}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.linger()

    def linger(self) -> None:
        """Take what the client still sends, within limits: closing before would reset the answer away from it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            for _ in range(16):
                if not self.connection.recv(MAXIMUM_BODY):
                    return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: `audit` has said it."""


class Service(http.server.ThreadingHTTPServer):
    """The listener; a thread for each connection, in which the handshake happens too."""

    daemon_threads = True
    request_queue_size = MAXIMUM_CONNECTIONS
    families: ClassVar[dict[bool, socket.AddressFamily]] = {True: socket.AF_INET6, False: socket.AF_INET}

    def __init__(self, address: tuple[str, int], settings: Settings, deadline: float) -> None:
        """Listen."""
        self.settings = settings
        self.deadline = deadline
        self.address_family = self.families[":" in address[0]]
        self._open: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        super().__init__(address, Handler)

    def verify_request(self, _request: Any, client_address: Any) -> bool:
        """Whether there is room for one more connection, from that address too."""
        with self._lock:
            room = self._open.total() < MAXIMUM_CONNECTIONS and self._open[client_address[0]] < MAXIMUM_PER_ADDRESS
            if room:
                self._open[client_address[0]] += 1
        return room

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handshake, one request, close; all of it before the deadline."""
        control = request.dup()  # TLS takes the descriptor over; this one is left to end the connection with
        clock = threading.Timer(self.deadline, cut, [control])
        clock.daemon = True
        clock.start()
        try:
            request.settimeout(self.deadline)
            with self.settings.context.wrap_socket(request, server_side=True) as wrapped:
                self.finish_request(wrapped, client_address)
        except (OSError, ValueError) as error:
            audit("dropped", address=client_address[0], reason=str(error))
        finally:
            clock.cancel()
            control.close()
            request.close()
            with self._lock:
                self._open[client_address[0]] -= 1
                self._open += collections.Counter()  # forget addresses at zero


def cut(connection: socket.socket) -> None:
    """End a connection whose time is over; the thread that reads it notices."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def ready() -> None:
    """Tell systemd that the service listens (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.connect(f"\0{path[1:]}" if path.startswith("@") else path)
            notify.send(b"READY=1")


def stop(_number: int, _frame: FrameType | None) -> None:
    """End without a trace; connections are short and clients ask again."""
    sys.exit(0)


def main(arguments: list[str] | None = None) -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="The site's issuer of certificates.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--life", required=True, help="of a certificate, such as 30d")
    parser.add_argument("--grants", type=Path, required=True, help="directory of what each host may ask for")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for a connection")
    options = parser.parse_args(arguments)
    try:
        settings = Settings.load(files_given(), options.grants, seconds(options.life))
    except (KeyError, OSError, ValueError) as error:
        sys.exit(f"not started: {error!r}")
    signal.signal(signal.SIGTERM, stop)
    with Service((options.address, options.port), settings, options.deadline) as service:
        audit("listening", address=options.address, port=service.server_address[1])
        ready()
        service.serve_forever()


if __name__ == "__main__":
    main()
