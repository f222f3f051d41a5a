# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTPS client against a real TLS server on loopback: whom it trusts, what it proves, when it asks twice."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import (
    Clients,
    ClientTls,
    HttpsError,
    is_local,
    origin,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Server(ThreadingHTTPServer):
    """Counts connections and requests; can drop an idle connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.connections: list[socket.socket] = []
        self.requests: list[str] = []
        self.keys: list[str | None] = []

    def process_request(self, request: object, client_address: object) -> None:
        self.connections.append(request)  # type: ignore[arg-type]
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """A refused handshake is what some tests are about."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[assignment]
    answers: ClassVar[dict[str, tuple[int, bytes]]] = {
        "/ok": (200, b'{"answer": 42}'),
        "/stream": (200, b'{"result": {"TTL": "60"}}\n{"result": {}}\n'),
        "/refused": (503, b"no leader"),
    }

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {self.path} {body.decode()}".strip())
        self.server.keys.append(self.headers.get("api-key"))
        status, answer = self.answers[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET  # noqa: N815 - the base class's name

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


def authority(name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    return certificate(name, key, None, ca=True), key


def certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    *,
    address: str = "127.0.0.1",
    ca: bool = False,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signer = issuer[1] if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
    )
    return builder.sign(signer, hashes.SHA256())


def write(directory: Path, name: str, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    (directory / f"{name}.crt").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours.crt signs server, client and elsewhere (another address); theirs.crt signs stranger."""
    directory = tmp_path_factory.mktemp("tls")
    ours, theirs = authority("ours"), authority("theirs")
    write(directory, "ours", *ours)
    write(directory, "theirs", *theirs)
    for name, issuer, address in (
        ("server", ours, "127.0.0.1"),
        ("elsewhere", ours, "127.0.0.9"),
        ("client", ours, "127.0.0.1"),
        ("stranger", theirs, "127.0.0.1"),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        write(directory, name, certificate(name, key, issuer, address=address), key)
    return directory


def serve(files: Path, name: str) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / f"{name}.crt", files / f"{name}.key")
    context.load_verify_locations(files / "ours.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    server = Server(context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(files: Path) -> Iterator[Server]:
    yield from serve(files, "server")


@pytest.fixture
def elsewhere(files: Path) -> Iterator[Server]:
    yield from serve(files, "elsewhere")


def clients(files: Path, ca: str = "ours", cert: str = "client") -> Clients:
    return Clients(ClientTls(str(files / f"{ca}.crt"), str(files / f"{cert}.crt"), str(files / f"{cert}.key")))


def test_one_connection_serves_many_requests(files: Path, server: Server) -> None:
    client = clients(files)[server.url]
    assert client.request("GET", "/ok").json() == {"answer": 42}
    assert client.request("POST", "/stream", {"ID": "1"}).json() == {"result": {"TTL": "60"}}
    refused = client.request("GET", "/refused")
    assert (refused.status, refused.text, refused.json()) == (503, "no leader", {})
    assert len(server.connections) == 1
    assert server.requests == ["GET /ok", f"POST /stream {json.dumps({'ID': '1'})}", "GET /refused"]


def test_a_key_goes_with_each_request_of_each_client(files: Path, server: Server) -> None:
    tls = ClientTls(*(str(files / name) for name in ("ours.crt", "client.crt", "client.key")))
    made = Clients(tls, headers={"api-key": "k"})
    made[server.url].request("GET", "/ok")
    made[server.url].request("POST", "/stream", {"ID": "1"}, once=True)
    made.fresh(server.url, 5).request("GET", "/ok")
    clients(files)[server.url].request("GET", "/ok")
    assert server.keys == ["k", "k", "k", None]


def test_a_connection_that_the_server_closed_is_opened_again(files: Path, server: Server) -> None:
    client = clients(files)[server.url]
    client.request("GET", "/ok")
    server.connections[0].shutdown(socket.SHUT_RDWR)
    assert client.request("GET", "/ok").status == 200
    assert len(server.connections) == 2


@pytest.mark.parametrize(("ca", "cert"), [("theirs", "client"), ("ours", "stranger")])
def test_neither_trusts_a_certificate_of_another_authority(files: Path, server: Server, ca: str, cert: str) -> None:
    with pytest.raises(HttpsError) as caught:
        clients(files, ca, cert)[server.url].request("GET", "/ok")
    assert not caught.value.refused  # which proves nothing about the process
    assert server.requests == []
    if ca == "theirs":
        assert "certificate was not accepted" in str(caught.value)


def test_a_certificate_for_another_address_is_not_accepted(files: Path, elsewhere: Server) -> None:
    with pytest.raises(HttpsError, match="certificate was not accepted"):
        clients(files)[elsewhere.url].request("GET", "/ok")
    assert elsewhere.requests == []


def test_nobody_listening_is_told_apart_from_silence(files: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(HttpsError, match="connection refused") as caught:
            clients(files)[f"https://127.0.0.1:{port}"].request("GET", "/ok")
        assert caught.value.refused
        free.listen()  # accepts and never answers, as a frozen process does
        with pytest.raises(HttpsError, match="no answer in time") as caught:
            clients(files)[f"https://127.0.0.1:{port}"].request("GET", "/ok", timeout=0.2)
        assert not caught.value.refused


def test_files_that_are_missing_are_named(files: Path) -> None:
    with pytest.raises(HttpsError, match=r"nothing\.crt"):
        clients(files, cert="nothing")
    with pytest.raises(HttpsError, match=r"nothing\.crt: No such file"):
        clients(files, ca="nothing")


def test_origins_and_own_addresses() -> None:
    assert origin("https://10.0.0.1:8008/patroni") == "https://10.0.0.1:8008"
    assert origin("https://[fd00::1]:2379/") == "https://[fd00::1]:2379"
    assert is_local("https://127.0.0.1:2379")
    assert not is_local("https://192.0.2.1:2379")
