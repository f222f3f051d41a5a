# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real issuer service on 127.0.0.1, and the real renewal program against it."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import json
import os
import shlex
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import (
    Wanted,
    certificates_of_pkcs7,
    pem_blocks,
    read,
    read_pem,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate_files import new_key, signing_request
from ansible_collections.groundplane.onprem.plugins.module_utils.issuer import Profile, grant

from tests.unit.pki_site import Site, item, now, want

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "roles/pki/templates/issuer/usr/local/lib/groundplane/issuer_service.py"
RENEW = ROOT / "roles/pki/templates/tree/usr/local/lib/groundplane/renew.py"
ENROL = "/.well-known/est/simplereenroll"
DAY = 86400


@dataclass
class Issuer:
    """The service in a process of its own, given its files as systemd gives them."""

    site: Site
    directory: Path
    revoked: str = ""
    port: int = 0
    deadline: float = 15
    process: subprocess.Popen[str] | None = field(default=None, init=False)

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "grants").mkdir(exist_ok=True)
        tls = want(self.directory / "tls", common_name="bastion1", dns=["bastion1"], ip=["127.0.0.1"])
        self.site.install(tls)
        (self.directory / "issuer.crt").write_text(self.site.issuer.certificate_pem())
        (self.directory / "issuer.key").write_bytes(self.site.issuer.key_pem())
        (self.directory / "ca.crt").write_text(self.site.anchors)
        (self.directory / "revoked").write_text(self.revoked)
        files = {
            "issuer.crt": self.directory / "issuer.crt",
            "issuer.key": self.directory / "issuer.key",
            "tls.crt": Path(f"{tls.path}.crt"),
            "tls.key": Path(f"{tls.path}.key"),
            "ca.crt": self.directory / "ca.crt",
            "revoked": self.directory / "revoked",
        }
        opened = " ".join(f"{number}<{shlex.quote(str(path))}" for number, path in enumerate(files.values(), 3))
        arguments = f"--address 127.0.0.1 --port {self.port} --life 30d --deadline {self.deadline}"
        arguments += f" --grants {self.directory}/grants"
        script = (
            f"export LISTEN_PID=$$ LISTEN_FDS={len(files)} LISTEN_FDNAMES={':'.join(files)}; "
            f"exec {sys.executable} {SERVICE} {arguments} {opened}"
        )
        self.process = subprocess.Popen(
            ["bash", "-c", script],
            env=os.environ | {"PYTHONPATH": str(ROOT / "collections")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first.startswith("{"), first + (self.process.stdout.read() if self.process.poll() else "")
        self.port = json.loads(first)["port"]

    def stop(self) -> list[dict[str, Any]]:
        """End it; what it wrote to the journal."""
        assert self.process is not None
        self.process.terminate()
        output, _ = self.process.communicate(timeout=60)
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@dataclass
class Host:
    """A host of the site with the settings that the role writes."""

    site: Site
    directory: Path
    url: str
    certificates: list[dict[str, Any]]

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "ca.crt").write_text(self.site.anchors)
        self.settings = self.directory / "certificates.json"
        plain = {
            "url": self.url,
            "trust_anchor": str(self.directory / "ca.crt"),
            "identity": str(self.directory / "pki/host"),
            "renew_before": "",
            "state_directory": str(self.directory / "state"),
            "certificates": self.certificates,
        }
        self.settings.write_text(json.dumps(plain))
        self.programs = self.directory / "bin"
        self.programs.mkdir(exist_ok=True)
        (self.programs / "systemctl").write_text(
            f'#!/bin/sh\necho "$@" >> {self.directory}/reloads\n[ "$1" != show ] || echo active\n'
        )
        (self.programs / "systemctl").chmod(0o755)

    def renew(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(RENEW), "--settings", str(self.settings), *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT / "collections"), "PATH": f"{self.programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def reloads(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "reloads").read_text().splitlines()
        return []


@pytest.fixture
def site() -> Site:
    return Site(age=dt.timedelta(days=60))


@pytest.fixture
def issuer(site: Site, tmp_path: Path) -> Iterator[Issuer]:
    service = Issuer(site, tmp_path / "issuer")
    service.start()
    yield service
    if service.process and service.process.poll() is None:
        service.stop()


def host_of(site: Site, issuer: Issuer, tmp_path: Path, *more: dict[str, Any]) -> Host:
    own = item(tmp_path / "data1/pki", reload=["a.service"])
    url = f"https://127.0.0.1:{issuer.port}{ENROL}"
    return Host(site, tmp_path / "data1", url, [own, *more])


def serial(wanted: Wanted) -> int:
    return read_pem(Path(f"{wanted.path}.crt").read_text())[0].serial


def ask(
    issuer: Issuer,
    identity: Wanted | None,
    body: bytes,
    path: str = ENROL,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    context = ssl.create_default_context(cadata=issuer.site.anchors)
    if identity:
        context.load_cert_chain(f"{identity.path}.crt", f"{identity.path}.key")
    connection = http.client.HTTPSConnection("127.0.0.1", issuer.port, timeout=30, context=context)
    try:
        connection.request("POST" if body else "GET", path, body=body or None, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def body_for(profile: Profile) -> bytes:
    return base64.encodebytes(pem_blocks(signing_request(new_key(), profile), "CERTIFICATE REQUEST")[0])


# ------------------------------------------------------------------------------------------------------------- renewal


def test_a_due_certificate_is_renewed_in_place_and_its_unit_reloaded(
    site: Site, issuer: Issuer, tmp_path: Path
) -> None:
    host = host_of(site, issuer, tmp_path)
    own = want(tmp_path / "data1/pki")
    site.install(own, at=now() - dt.timedelta(days=25))
    old, old_key = serial(own), Path(f"{own.path}.key").read_bytes()
    done = host.renew()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "renewed, serial" in done.stdout
    new = read_pem(Path(f"{own.path}.crt").read_text())
    assert new[0].serial != old
    assert Profile.of(new[0]) == own.profile
    assert new[1].authority
    assert Path(f"{own.path}.key").read_bytes() != old_key
    assert Path(f"{own.path}.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in Path(own.directory).iterdir()) == ["host.crt", "host.key"]
    assert "try-reload-or-restart a.service" in host.reloads
    assert "PRIVATE" not in done.stdout + done.stderr
    # the new pair is good for TLS, and a second look finds nothing to do
    assert ask(issuer, own, body_for(own.profile))[0] == 200
    again = host.renew()
    assert (again.returncode, again.stdout) == (0, "")
    assert [line["event"] for line in issuer.stop()] == ["issued", "issued"]


def test_what_is_not_due_is_left_alone_until_it_is_forced(site: Site, issuer: Issuer, tmp_path: Path) -> None:
    host = host_of(site, issuer, tmp_path)
    own = want(tmp_path / "data1/pki")
    site.install(own)
    old = serial(own)
    assert host.renew().returncode == 0
    assert serial(own) == old
    assert host.reloads == []
    assert host.renew("--force", "host").returncode == 0
    assert serial(own) != old
    assert host.renew("--force", "no-such").returncode == 1


def test_a_server_certificate_is_renewed_by_the_hosts_own(site: Site, issuer: Issuer, tmp_path: Path) -> None:
    plain = item(tmp_path / "data1/web", "web", usages=["server"], dns=["data1", "www.test.internal"])
    host = host_of(site, issuer, tmp_path, plain)
    own, web = (
        want(tmp_path / "data1/pki"),
        want(tmp_path / "data1/web", "web", **{k: plain[k] for k in ("usages", "dns")}),
    )
    site.install(own)
    site.install(web, at=now() - dt.timedelta(days=25))
    old = serial(web)
    refused = host.renew()
    assert refused.returncode == 1
    assert "403" in refused.stdout
    assert serial(web) == old
    (issuer.directory / "grants/data1.json").write_text(json.dumps(grant([own.profile, web.profile])))
    assert host.renew().returncode == 0
    assert serial(web) != old


def test_a_certificate_that_fails_keeps_the_old_pair_and_does_not_stop_the_others(
    site: Site, issuer: Issuer, tmp_path: Path
) -> None:
    expired = item(tmp_path / "data1/old", "old", common_name="old")
    host = host_of(site, issuer, tmp_path, expired, item(tmp_path / "data1/b", "b", common_name="b"))
    own, old, other = want(tmp_path / "data1/pki"), want(tmp_path / "data1/old", "old", common_name="old"), None
    other = want(tmp_path / "data1/b", "b", common_name="b")
    site.install(own)
    site.install(old, life=DAY, at=now() - dt.timedelta(days=2))
    site.install(other, at=now() - dt.timedelta(days=25))
    before = {path: path.read_bytes() for path in Path(old.directory).iterdir()}
    serials = serial(own), serial(other)
    done = host.renew()
    assert done.returncode == 1
    assert "old: not renewed" in done.stdout
    assert {path: path.read_bytes() for path in before} == before
    assert serial(own) == serials[0]
    assert serial(other) != serials[1]


def test_an_issuer_that_is_away_changes_nothing(site: Site, issuer: Issuer, tmp_path: Path) -> None:
    host = host_of(site, issuer, tmp_path)
    own = want(tmp_path / "data1/pki")
    site.install(own, at=now() - dt.timedelta(days=25))
    pair = Path(f"{own.path}.crt").read_bytes(), Path(f"{own.path}.key").read_bytes()
    issuer.stop()
    done = host.renew()
    assert done.returncode == 1
    assert "<3>" in done.stdout
    assert (Path(f"{own.path}.crt").read_bytes(), Path(f"{own.path}.key").read_bytes()) == pair
    issuer.start()
    assert host.renew().returncode == 0
    assert serial(own) != read_pem(pair[0].decode())[0].serial


def test_an_issuer_that_is_not_the_sites_is_not_believed(site: Site, issuer: Issuer, tmp_path: Path) -> None:
    host = host_of(site, issuer, tmp_path)
    site.install(want(tmp_path / "data1/pki"), at=now() - dt.timedelta(days=25))
    (host.directory / "ca.crt").write_text(Site().anchors)
    done = host.renew()
    assert done.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in done.stdout


# -------------------------------------------------------------------------------------------------- who is refused


def test_without_a_certificate_nobody_gets_an_answer(issuer: Issuer) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        ask(issuer, None, b"", "/.well-known/est/cacerts")


def test_a_stranger_an_expired_and_a_revoked_certificate_are_refused(
    site: Site, issuer: Issuer, tmp_path: Path
) -> None:
    own = want(tmp_path / "own")
    body = body_for(own.profile)
    site.install(own, life=DAY, at=now() - dt.timedelta(days=2))
    with pytest.raises((ssl.SSLError, OSError)):
        ask(issuer, own, body)
    Site().install(own)
    with pytest.raises((ssl.SSLError, OSError)):
        ask(issuer, own, body)
    site.install(own)
    assert ask(issuer, own, body)[0] == 200
    issuer.stop()
    issuer.revoked = f"{serial(own):x}\n"
    issuer.start()
    status, text = ask(issuer, own, body)
    assert (status, text) == (403, b"the client's certificate is revoked\n")
    assert [line["event"] for line in issuer.stop()] == ["refused"]


def test_other_names_are_refused_and_remembered(site: Site, issuer: Issuer, tmp_path: Path) -> None:
    own = want(tmp_path / "own")
    site.install(own)
    status, _ = ask(issuer, own, body_for(want(tmp_path, dns=["data1", "evil.test.internal"]).profile))
    assert status == 403
    (line,) = issuer.stop()
    assert line["event"] == "refused"
    assert line["presented"] == f"{serial(own):x}"
    assert "evil.test.internal" in line["reason"]


def test_a_services_name_is_not_taken_for_a_hosts(site: Site, issuer: Issuer, tmp_path: Path) -> None:
    """A certificate CN=etcd may not use what is granted to a host that happens to be called etcd."""
    service, other = want(tmp_path / "own", common_name="etcd"), want(tmp_path / "x", common_name="other")
    site.install(service)
    (issuer.directory / "grants/etcd.json").write_text(json.dumps(grant([other.profile])))
    assert ask(issuer, service, body_for(other.profile))[0] == 403


def test_the_cas_are_told_to_clients(site: Site, issuer: Issuer, tmp_path: Path) -> None:
    own = want(tmp_path / "own")
    site.install(own)
    status, body = ask(issuer, own, b"", "/.well-known/est/cacerts")
    found = [read(der) for der in certificates_of_pkcs7(base64.b64decode(body))]
    assert status == 200
    assert sorted(cert.common_name for cert in found) == ["test issuing CA", "test root CA"]


def test_what_is_no_request(site: Site, issuer: Issuer, tmp_path: Path) -> None:
    own = want(tmp_path / "own")
    site.install(own)
    assert ask(issuer, own, b"x", "/")[0] == 404
    assert ask(issuer, own, b"x", "/.well-known/est/simpleenroll")[0] == 404
    assert ask(issuer, own, b"")[0] == 404
    assert ask(issuer, own, b"!!!")[0] == 400
    assert ask(issuer, own, b"AAAA")[0] == 403
    assert ask(issuer, own, b"A" * 20000)[0] == 413
    assert ask(issuer, own, b"x", headers={"Content-Length": "-1"})[0] == 411


def test_old_tls_is_refused(issuer: Issuer) -> None:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{issuer.port}", "-tls1_1", "-cipher", "ALL@SECLEVEL=0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0


def test_clients_that_say_nothing_do_not_hold_the_service(site: Site, issuer: Issuer, tmp_path: Path) -> None:
    """One address may fill its own share only; a client from another one is served at once."""
    own = want(tmp_path / "own")
    site.install(own)
    idle = []
    for _ in range(70):  # more than the service takes in all
        silent = socket.create_connection(("127.0.0.1", issuer.port), source_address=("127.0.0.9", 0))
        idle.append(silent)
    began = time.monotonic()
    assert ask(issuer, own, body_for(own.profile))[0] == 200
    assert time.monotonic() - began < 5
    for silent in idle:
        silent.close()


def test_a_byte_now_and_then_does_not_keep_a_connection_open(issuer: Issuer) -> None:
    issuer.stop()
    issuer.deadline = 3
    issuer.start()
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="bastion1")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", issuer.port)) as slow:
        slow.settimeout(0.2)
        for octet in outgoing.read()[:100]:  # the beginning of a good handshake, 20 s of it
            try:
                slow.send(bytes([octet]))
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert 2.5 < time.monotonic() - began < 6
    # The client sees the end before the service has written it down: the line is waited for, not looked for.
    assert issuer.process is not None
    assert issuer.process.stdout is not None
    assert json.loads(issuer.process.stdout.readline())["event"] == "dropped"
    assert issuer.stop() == []
