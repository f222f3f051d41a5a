# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Kubernetes API of this machine's own: the built etcd and kube-apiserver as processes on loopback, over TLS."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import ipaddress
import json
import re
import socket
import subprocess
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import (
    MERGE_PATCH,
    Api,
    ApiError,
    Resource,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_config import load
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / ".lab/bundle"
START_SECONDS = 120.0
"""In which the API must be ready; a busy machine of two cores takes a quarter of it."""


class MissingProgramError(Exception):
    """A program that was to be started has not been built."""


class Program(Protocol):
    """One process, or several that belong together."""

    def start(self) -> object:
        """Start, and wait until it serves."""

    def stop(self) -> object:
        """End it."""


P = TypeVar("P", bound=Program)


@contextlib.contextmanager
def running(started: P) -> Iterator[P]:
    """A program while tests need it; a test fails, and does not skip, where it has not been built."""
    try:
        started.start()
        yield started
    except MissingProgramError as error:
        pytest.fail(str(error))
    finally:
        started.stop()


def program(name: str, directory: Path) -> Path:
    """A program out of the newest image of its name in the bundle, put into a directory.

    Raises:
        MissingProgramError: there is none; says how to come by it.
    """
    images = BUNDLE.glob(f"{name}-*.oci.tar")
    found = {path: re.fullmatch(rf"{re.escape(name)}-v?(\d+[\d.-]*)\.oci\.tar", path.name) for path in images}
    versions = {path: [int(part) for part in re.findall(r"\d+", match[1])] for path, match in found.items() if match}
    if not versions:
        raise MissingProgramError(f"{BUNDLE} holds no image of {name}: run lab/artifacts/build.py {BUNDLE} first")
    with tarfile.open(max(versions, key=lambda path: versions[path])) as image:
        manifest = _blob(image, json.load(_file(image, "index.json"))["manifests"][0])
        for layer in json.load(manifest)["layers"]:
            with tarfile.open(fileobj=_blob(image, layer)) as files:
                member = next((one for one in files if one.isfile() and Path(one.name).name == name), None)
                if member is not None:
                    path = directory / name
                    path.write_bytes(_file(files, member).read())
                    path.chmod(0o755)
                    return path
    raise MissingProgramError(f"{BUNDLE}: the image of {name} holds no such program")


def _file(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> IO[bytes]:
    found = archive.extractfile(member)
    assert found is not None
    return found


def _blob(image: tarfile.TarFile, descriptor: dict[str, Any]) -> IO[bytes]:
    return _file(image, f"blobs/{descriptor['digest'].replace(':', '/')}")


def free_port() -> int:
    """A TCP port of loopback that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Authority:
    """A certificate authority in memory, which puts leaves into a directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.key = directory, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = self._builder(self.name, self.key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), True
        )
        self.certificate = builder.add_extension(usage, True).sign(self.key, hashes.SHA256())
        self.path = directory / "ca.crt"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(self.name, subject, key.public_key(), x509.random_serial_number())
        return builder.not_valid_before(now - dt.timedelta(minutes=5)).not_valid_after(now + dt.timedelta(days=1))

    def issue(self, name: str, organisation: str = "", address: str = "127.0.0.1") -> tuple[Path, Path]:
        """Files of a leaf and its key, good for server and client on loopback, or on an address of this machine."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organisation:
            attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(address))]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        leaf = (
            self._builder(x509.Name(attributes), key)
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(x509.ExtendedKeyUsage(usages), False)
            .sign(self.key, hashes.SHA256())
        )
        crt, pem = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        crt.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        pem.touch(mode=0o600)
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return crt, pem


def encoded(path: Path) -> str:
    """A file's content in base64."""
    return base64.b64encode(path.read_bytes()).decode()


@dataclass
class Cluster:
    """etcd and kube-apiserver, without any controller: what they would write, tests write by hand."""

    directory: Path
    port: int = field(default_factory=free_port)
    etcd_port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start both and wait until the API is ready.

        Raises:
            MissingProgramError: one has not been built.
            AssertionError: one ended, or is not ready in time; holds the end of its log.
        """
        etcd, server = program("etcd", self.directory), program("kube-apiserver", self.directory)
        self.authority = Authority(self.directory, "kubernetes")
        crt, key = self.authority.issue("server")
        self.write_kubeconfig("admin", "system:masters")
        client, peer = f"https://127.0.0.1:{self.etcd_port}", f"https://127.0.0.1:{free_port()}"
        tls = [f"--{kind}{name}={path}" for kind in ("", "peer-") for name, path in
               (("cert-file", crt), ("key-file", key), ("trusted-ca-file", self.authority.path))]  # fmt: skip
        self._spawn(
            "etcd", etcd, f"--data-dir={self.directory}/data", f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}", "--client-cert-auth", "--unsafe-no-fsync", *tls,
        )  # fmt: skip
        self._spawn(
            "kube-apiserver", server, f"--etcd-servers={client}", f"--etcd-cafile={self.authority.path}",
            f"--etcd-certfile={crt}", f"--etcd-keyfile={key}", "--bind-address=127.0.0.1", f"--secure-port={self.port}",
            f"--tls-cert-file={crt}", f"--tls-private-key-file={key}", f"--client-ca-file={self.authority.path}",
            "--authorization-mode=Node,RBAC", "--anonymous-auth=false", "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://localhost", f"--service-account-key-file={crt}",
            f"--service-account-signing-key-file={key}", "--disable-admission-plugins=ServiceAccount",
            f"--cert-dir={self.directory}", "--allow-privileged", "--max-requests-inflight=100", "--v=1",
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        api = self.api(patience=0)
        while True:
            for process in self.processes:
                assert process.poll() is None, self.log(Path(str(process.args[0])).name)  # type: ignore[index]
            try:
                api.request("GET", "/readyz")
                api.request("GET", "/api/v1/namespaces/kube-system")
            except ApiError:
                assert time.monotonic() < deadline, self.log("kube-apiserver")
                time.sleep(0.3)
            else:
                return

    def _spawn(self, name: str, *command: str | Path) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes.append(subprocess.Popen([*command], stdout=log, stderr=log))

    def log(self, name: str) -> str:
        """The end of a program's log."""
        return (self.directory / f"{name}.log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End both."""
        for process in reversed(self.processes):
            process.kill()
            process.wait()

    def write_kubeconfig(self, name: str, organisation: str = "", server: str = "") -> Path:
        """A kubeconfig as kubeadm writes it, for a new user."""
        crt, key = self.authority.issue(name, organisation)
        whole = {
            "apiVersion": "v1",
            "clusters": [
                {
                    "cluster": {
                        "certificate-authority-data": encoded(self.authority.path),
                        "server": server or f"https://127.0.0.1:{self.port}",
                    },
                    "name": "kubernetes",
                }
            ],
            "contexts": [{"context": {"cluster": "kubernetes", "user": name}, "name": f"{name}@kubernetes"}],
            "current-context": f"{name}@kubernetes",
            "kind": "Config",
            "preferences": {},
            "users": [
                {"name": name, "user": {"client-certificate-data": encoded(crt), "client-key-data": encoded(key)}}
            ],
        }
        path = self.directory / f"{name}.conf"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(whole))
        return path

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.directory / "admin.conf"

    def api(self, servers: Sequence[str] = (), patience: float = 20) -> Api:
        """A new connection as the administrator."""
        return Api(load(str(self.kubeconfig)), servers, patience=patience)


class Hands:
    """Does to objects what people and controllers do, under other names than ours."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api, self.namespace = api, namespace

    def resource(self, kind: str, api_version: str = "v1") -> Resource:
        """Where a kind is."""
        found = self.api.resource(api_version, kind)
        assert found is not None, f"no {kind} of {api_version}"
        return found

    def get(self, kind: str, name: str, api_version: str = "v1") -> dict[str, Any]:
        """An object, which must be there."""
        return self.api.get(self.resource(kind, api_version), self.namespace, name)

    def find(self, kind: str, name: str, api_version: str = "v1") -> dict[str, Any] | None:
        """An object or None."""
        return self.api.find(self.resource(kind, api_version), self.namespace, name)

    def edit(
        self, kind: str, name: str, patch: dict[str, Any], api_version: str = "v1", who: str = "kubectl-edit"
    ) -> None:
        """Change an object as a person does."""
        self.api.patch(self.resource(kind, api_version), self.namespace, name, patch, manager=who)

    def status(self, kind: str, name: str, status: dict[str, Any], api_version: str = "v1") -> None:
        """Report an object's state as its controller does."""
        path = self.resource(kind, api_version).path(self.namespace, name, "status")
        query = {"fieldManager": "controller"}
        self.api.request("PATCH", path, query=query, body={"status": status}, content_type=MERGE_PATCH)

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object as a person does."""
        return self.api.create(self.resource(body["kind"], body["apiVersion"]), body)
