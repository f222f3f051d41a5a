# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe against real TLS ports: the site's own, and one for which another authority vouches."""

from __future__ import annotations

import contextlib
import ssl
import threading
from dataclasses import dataclass
from socket import create_server
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.pki_site import Site, want
from tests.unit.test_certificate_modules import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDRESS = "127.0.0.1"


@dataclass
class Port:
    """A port that wants a certificate of an authority, and says something to who has one."""

    number: int
    ca: str
    directory: Path


def files(directory: Path, name: str = "server") -> dict[str, str]:
    return {"certificate": str(directory / f"{name}.crt"), "key": str(directory / f"{name}.key")}


@contextlib.contextmanager
def port(directory: Path) -> Iterator[Port]:
    authority = Site()
    authority.install(want(directory, "server"))
    ca = directory / "ca.crt"
    ca.write_text(authority.anchors)
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca))
    trust.verify_mode = ssl.CERT_REQUIRED
    trust.maximum_version = ssl.TLSVersion.TLSv1_2  # A refusal is a part of the handshake.
    trust.load_cert_chain(directory / "server.crt", directory / "server.key")
    with create_server((ADDRESS, 0)) as listener:
        listener.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                with contextlib.suppress(OSError), listener.accept()[0] as raw:
                    raw.settimeout(2)
                    with trust.wrap_socket(raw, server_side=True) as session:
                        session.recv(256)
                        session.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Port(listener.getsockname()[1], str(ca), directory)
        finally:
            done.set()
            thread.join()


def outcomes(result: dict[str, Any]) -> dict[tuple[int, str], str]:
    return {(one["port"], one["identity"]): one["outcome"] for one in result["answers"]}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Port, Port]]:
    with port(tmp_path / "site") as own, port(tmp_path / "other") as other:
        yield own, other


def test_each_target_is_asked_under_the_authority_that_vouches_for_it(two: tuple[Port, Port]) -> None:
    own, other = two
    name = {"address": ADDRESS, "server_name": "data1"}
    result = run(
        "tls_probe",
        {
            "ca": own.ca,
            "identities": {"nobody": {}, "host": files(own.directory)},
            "targets": [
                {**name, "port": own.number},
                {**name, "port": other.number, "ca": other.ca, "identities": {"member": files(other.directory)}},
            ],
        },
    )
    assert outcomes(result) == {
        (own.number, "nobody"): "refused",
        (own.number, "host"): "accepted",
        (other.number, "nobody"): "refused",
        (other.number, "host"): "refused",
        (other.number, "member"): "accepted",
    }


def test_a_port_is_not_trusted_under_another_authority_nor_under_one_that_is_not_there(two: tuple[Port, Port]) -> None:
    own, other = two
    missing = str(other.directory / "nothing.crt")
    target = {"address": ADDRESS, "server_name": "data1", "port": other.number}
    result = run(
        "tls_probe",
        {"ca": own.ca, "identities": {"host": files(own.directory)}, "targets": [target, {**target, "ca": missing}]},
    )
    assert [one["outcome"] for one in result["answers"]] == ["untrusted", "untrusted"]
    assert missing in result["answers"][1]["detail"]


def test_a_port_that_says_nothing_is_silent_and_not_without_tls(tmp_path: Path) -> None:
    """As a server looks that is too busy to answer: the kernel takes the connection, and nobody reads it."""
    authority = Site()
    ca = tmp_path / "ca.crt"
    ca.write_text(authority.anchors)
    with create_server((ADDRESS, 0)) as listener:
        target = {"address": ADDRESS, "server_name": "data1", "port": listener.getsockname()[1]}
        result = run("tls_probe", {"ca": str(ca), "identities": {"nobody": {}}, "targets": [target], "timeout": 0.2})
    (answer,) = result["answers"]
    assert (answer["outcome"], answer["detail"]) == ("silent", "no answer to a handshake in 0.2 s")


def outcome_of(tmp_path: Path, said: bytes, **asked: Any) -> tuple[str, str, bytes]:
    """What is made of a server that reads once and says this, and what it read."""
    authority = Site()
    ca = tmp_path / "ca.crt"
    ca.write_text(authority.anchors)
    read = []
    with create_server((ADDRESS, 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            with listener.accept()[0] as raw:
                read.append(raw.recv(8))
                raw.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        target = {"address": ADDRESS, "server_name": "data1", "port": listener.getsockname()[1], **asked}
        (answer,) = run("tls_probe", {"ca": str(ca), "identities": {"nobody": {}}, "targets": [target]})["answers"]
        thread.join()
    return answer["outcome"], answer["detail"], read[0]


def test_a_port_that_talks_without_tls_is_told_from_one_that_is_slow(tmp_path: Path) -> None:
    outcome, _detail, read = outcome_of(tmp_path, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert (outcome, read[:2]) == ("plaintext", b"\x16\x03")


def test_a_database_is_asked_for_tls_as_its_clients_ask(tmp_path: Path) -> None:
    outcome, detail, read = outcome_of(tmp_path, b"N", starttls="postgres")
    assert (outcome, detail, read) == ("plaintext", "no TLS is offered", bytes.fromhex("0000000804d2162f"))
