# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Artifacts: what is declared, and that one flipped byte anywhere on the way stops the run with the artifact's name.

The ways are walked for real: a bundle, two HTTPS servers with a CA of their own, and plays that publish and install.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import ssl
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "lab/artifacts"))

import oci

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
CONTENT = b"\x7fELF the program\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
UPSTREAM = {
    "name": "tool",
    "version": "1.2",
    "destination": "files/tool/1.2/tool",
    "url": "https://x.test/tool",
    "sha256": SHA256,
}
BUILT = {"name": "tool", "version": "1.2", "destination": "files/tool/1.2/tool", "path": "tool-1.2"}


def flip(path: Path) -> None:
    """Flip one bit in the middle, without touching size or time."""
    times = (path.stat().st_atime, path.stat().st_mtime)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, times)


# --------------------------------------------------------------------------------------------------------- declarations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "artifacts[0]: has no name"),
        ({"version": None}, "tool: has no version"),
        ({"sha": SHA256}, "tool: unknown key sha; known are destination, name, path, sha256, url, version"),
        ({"url": None}, "tool 1.2: has neither a url nor a path, so there is no origin to take it from"),
        ({"url": "ftp://x.test/tool"}, "tool 1.2: ftp://x.test/tool is not http or https"),
        ({"sha256": None}, "tool 1.2: sha256 of its url must be 64 hexadecimal digits, not ''"),
        ({"sha256": SHA256[:-1]}, f"tool 1.2: sha256 of its url must be 64 hexadecimal digits, not '{SHA256[:-1]}'"),
        ({"destination": "files"}, "tool 1.2: destination files is no plain path below files/ or wheels/"),
        ({"destination": "/files/x"}, "tool 1.2: destination /files/x is no plain path below files/ or wheels/"),
        ({"destination": "files/../x"}, "tool 1.2: destination files/../x is no plain path below files/ or wheels/"),
        ({"destination": "v2/x"}, "tool 1.2: destination v2/x is no plain path below files/ or wheels/"),
        ({"destination": "images/Tool:1.2"}, "tool 1.2: destination images/Tool:1.2 is not images/REPOSITORY:TAG"),
        ({"destination": "images/a/../b:1"}, "tool 1.2: destination images/a/../b:1 is not images/REPOSITORY:TAG"),
        ({"destination": "images/a/b"}, "tool 1.2: destination images/a/b is not images/REPOSITORY:TAG"),
        ({"destination": "files/SHA256SUMS"}, "tool 1.2: destination files/SHA256SUMS is the name of an index"),
        (
            {"destination": "wheels/My_Tool/x.whl"},
            "tool 1.2: destination must be wheels/PROJECT/FILE, PROJECT as PEP 503 has it",
        ),
        (
            {"path": "../outside"},
            "tool 1.2: path ../outside is no plain path below the bundle",
        ),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(library.ArtifactError) as caught:
        library.parse([{**UPSTREAM, **change}])
    assert str(caught.value) == message


def test_two_artifacts_are_not_one() -> None:
    with pytest.raises(library.ArtifactError, match=r"tool 1\.2: is declared twice"):
        library.parse([UPSTREAM, {**UPSTREAM, "destination": "files/b"}])
    with pytest.raises(
        library.ArtifactError, match=r"other 1\.2: has the destination of tool 1\.2, files/tool/1\.2/tool"
    ):
        library.parse([UPSTREAM, {**UPSTREAM, "name": "other"}])


def test_of_several_versions_a_task_says_which() -> None:
    declared = library.parse([UPSTREAM, {**UPSTREAM, "version": "1.3", "destination": "files/b"}])
    assert library.choose(declared, "tool", "1.3").destination == "files/b"
    assert library.choose(declared[:1], "tool").version == "1.2"
    with pytest.raises(
        library.ArtifactError, match=r"tool \(of no version\): mirror_artifacts has the versions 1\.2, 1\.3"
    ):
        library.choose(declared, "tool")
    with pytest.raises(library.ArtifactError, match=r"tool 1\.4: mirror_artifacts has the versions 1\.2, 1\.3"):
        library.choose(declared, "tool", "1.4")


@pytest.mark.parametrize(
    ("destination", "image"),
    [
        ("images/kubernetes/etcd:3.6.5-0", ("kubernetes/etcd", "3.6.5-0")),
        ("images/a__b/c-d.e:v1", ("a__b/c-d.e", "v1")),
        ("files/kubernetes/etcd:1", None),
    ],
)
def test_an_image_is_told_by_its_destination(destination: str, image: tuple[str, str] | None) -> None:
    assert library.image_of(destination) == image


def test_a_file_is_read_again_when_its_inode_says_that_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_TICK_NS", 0)
    read: list[str] = []
    digest = library.file_digest
    monkeypatch.setattr(library, "file_digest", lambda path: read.append(path) or digest(path))
    file, kept = tmp_path / "file", tmp_path / "state/record.json"
    file.write_bytes(CONTENT)
    record = library.Record(str(kept))
    assert record.digest(str(file)) == SHA256
    record.save()
    again = library.Record(str(kept))
    assert again.digest(str(file)) == SHA256
    assert len(read) == 1
    flip(file)
    assert again.digest(str(file)) not in ("", SHA256)
    assert len(read) == 2
    file.unlink()
    assert again.digest(str(file)) == ""
    kept.write_text("cut o")
    assert library.Record(str(kept)).digest(str(tmp_path / "absent")) == ""


def test_a_file_that_changed_this_moment_is_not_kept(tmp_path: Path) -> None:
    file, kept = tmp_path / "file", tmp_path / "record.json"
    file.write_bytes(CONTENT)
    record = library.Record(str(kept))
    assert record.digest(str(file)) == SHA256
    record.save()
    assert not kept.exists()


@given(st.dictionaries(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), st.binary(max_size=9)))
def test_lists_of_checksums_read_what_they_wrote(files: dict[str, bytes]) -> None:
    sums = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    assert library.parse_sums(library.format_sums(sums), "list") == sums


@pytest.mark.parametrize("line", ["abc  file", f"{SHA256[:-1]}  file", f"{SHA256}file", f"{SHA256}  a\n{SHA256}  a"])
def test_a_list_of_checksums_is_read_strictly(line: str) -> None:
    with pytest.raises(library.ArtifactError, match=r"list: line [12] is not a checksum"):
        library.parse_sums(line, "list")


def test_sha256sum_reads_the_list(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(CONTENT)
    (tmp_path / "SHA256SUMS").write_text(library.format_sums({"a b": SHA256}))
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True)


@given(st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", fullmatch=True))
def test_a_projects_normal_name_is_stable(name: str) -> None:
    normal = library.project_name(name)
    assert library.project_name(normal) == normal
    assert not set(normal) & set("._ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_origins_are_tried_in_the_order_given() -> None:
    both = library.parse([{**UPSTREAM, "path": "tool"}])[0]
    bundled = {"tool 1.2": "b" * 64}
    assert list(library.accepted_sums(both, bundled, ["upstream", "modules"]).items()) == [
        ("upstream", SHA256),
        ("modules", "b" * 64),
    ]
    assert list(library.accepted_sums(both, bundled, ["modules", "upstream"])) == ["modules", "upstream"]
    with pytest.raises(library.ArtifactError, match=r"tool 1\.2: is in none of the origins modules"):
        library.accepted_sums(both, {}, ["modules"])


# ------------------------------------------------------------------------------------------------------------ real ways


class Site:
    """A bundle, an upstream and a mirror with HTTPS, and a host to install on."""

    def __init__(self, directory: Path, ca: Path, certificate: Path) -> None:
        self.directory = directory
        self.ca = ca
        self.bundle = directory / "bundle"
        self.upstream = directory / "upstream"
        self.mirror = directory / "mirror"
        self.installed = directory / "host/tool"
        for path in (self.bundle, self.upstream, self.mirror, self.installed.parent):
            path.mkdir()
        self.servers = [serve(root, certificate) for root in (self.upstream, self.mirror)]
        self.upstream_url, self.mirror_url = (
            f"https://localhost:{server.server_address[1]}" for server in self.servers
        )
        (self.upstream / "tool").write_bytes(CONTENT)
        (self.bundle / "tool-1.2").write_bytes(CONTENT)
        (self.bundle / "SHA256SUMS").write_text(f"{SHA256}  tool-1.2\n")
        self.variables: dict[str, Any] = {
            "mirror_artifacts": [BUILT],
            "mirror_bundle_directory": str(self.bundle),
            "ansible_python_interpreter": sys.executable,
        }

    def release(self, sha256: str = SHA256) -> dict[str, Any]:
        """The artifact as a release of upstream."""
        return {**UPSTREAM, "url": f"{self.upstream_url}/tool", "sha256": sha256}

    def play(self, task: dict[str, Any], *flags: str) -> dict[str, Any]:
        """Run one task on this machine; its result."""
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": self.variables,
            "tasks": [task],
        }
        (self.directory / "play.yml").write_text(yaml.safe_dump([play]))
        (self.directory / "ansible.cfg").touch()
        done = subprocess.run(
            [PLAYBOOK, "-i", "localhost,", "play.yml", *flags],
            cwd=self.directory,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(self.directory / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
                "SSL_CERT_FILE": str(self.ca),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        result: dict[str, Any] = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]["localhost"]
        return result

    def publish(self, *flags: str, **options: Any) -> dict[str, Any]:
        """Publish on the mirror."""
        task = {
            "root": str(self.mirror),
            "artifacts": "{{ mirror_artifacts }}",
            "bundle": "{{ mirror_bundle_directory }}",
            "record": str(self.directory / "published.json"),
            "ca_path": str(self.ca),
            **options,
        }
        return self.play({"groundplane.onprem.artifact_publish": task}, *flags)

    def install(self, *flags: str, **options: Any) -> dict[str, Any]:
        """Install on the host."""
        task = {
            **({} if "artifacts" in options else {"name": "tool", "dest": str(self.installed)}),
            "mirror": self.mirror_url,
            "ca_path": str(self.ca),
            "record": str(self.directory / "installed.json"),
            "owner": str(os.getuid()),
            "group": str(os.getgid()),
            **options,
        }
        return self.play({"groundplane.onprem.artifact": task}, *flags)


class Images(http.server.BaseHTTPRequestHandler):
    """A registry in memory, as far as the distribution protocol is used here."""

    protocol_version = "HTTP/1.1"
    blobs: ClassVar[dict[str, bytes]] = {}
    tags: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Keep the test's output clean."""

    def handle_one_request(self) -> None:
        """Answer any method with one function."""
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        self.asked.append(f"{self.command} {path}")
        status, headers = self.answer(path, query, body)
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, path: str, query: str, body: bytes) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if path.endswith("/blobs/uploads/"):
            return 202, {"Location": f"{path}one?_state=x"}
        if "/blobs/uploads/" in path:
            self.blobs[digest] = body
            return (201 if f"digest={digest.replace(':', '%3A')}" in query else 400), {}
        if "/blobs/" in path:
            return (200 if path.rpartition("/")[2] in self.blobs else 404), {}
        if self.command == "PUT":
            self.tags[path] = body
            return 201, {}
        if path not in self.tags:
            return 404, {}
        return 200, {"Docker-Content-Digest": f"sha256:{hashlib.sha256(self.tags[path]).hexdigest()}"}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Keep the test's output clean."""


def serve(root: Path, certificate: Path) -> http.server.ThreadingHTTPServer:
    """Serve a directory by HTTPS on a port of this machine."""
    return serve_by(functools.partial(QuietHandler, directory=str(root)), certificate)


def serve_by(handler: Any, certificate: Path) -> http.server.ThreadingHTTPServer:
    """Serve by HTTPS on a port of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    extension = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([*command.split(), *extension], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def site(tmp_path: Path, certificate: Path) -> Iterator[Site]:
    """A site to publish and install in."""
    made = Site(tmp_path, Path(f"{certificate}.crt"), certificate)
    yield made
    for server in made.servers:
        server.shutdown()
        server.server_close()


def test_from_the_bundle_to_the_host(site: Site) -> None:
    checked = site.publish("--check")
    assert checked["changed"] is True
    assert not list(site.mirror.iterdir())
    published = site.publish()
    assert published["published"] == ["files/tool/1.2/tool"]
    assert published["origins"] == {"files/tool/1.2/tool": "modules"}
    assert (site.mirror / "files/SHA256SUMS").read_text() == f"{SHA256}  tool/1.2/tool\n"
    assert [path.name for path in (site.mirror / "files/tool/1.2").iterdir()] == ["tool"]
    assert site.publish()["changed"] is False

    assert site.install("--check")["changed"] is True
    assert not site.installed.exists()
    assert site.install()["sha256"] == SHA256
    assert site.installed.read_bytes() == CONTENT
    assert site.installed.stat().st_mode & 0o7777 == 0o755
    assert site.install()["changed"] is False
    assert site.install("--check", "--diff")["changed"] is False


def test_upstream_comes_first_and_the_bundle_stands_in(site: Site) -> None:
    other = b"built here\n"
    (site.bundle / "tool-1.2").write_bytes(other)
    (site.bundle / "SHA256SUMS").write_text(f"{hashlib.sha256(other).hexdigest()}  tool-1.2\n")
    site.variables["mirror_artifacts"] = [{**site.release(), "path": "tool-1.2"}]
    assert site.publish()["origins"] == {"files/tool/1.2/tool": "upstream"}

    (site.mirror / "files/tool/1.2/tool").unlink()
    (site.upstream / "tool").unlink()
    assert site.publish()["origins"] == {"files/tool/1.2/tool": "modules"}
    # Consumers take either, because both are what the inventory says.
    assert site.install()["sha256"] == hashlib.sha256(other).hexdigest()


def test_a_flipped_byte_in_the_bundle_stops_the_run(site: Site) -> None:
    flip(site.bundle / "tool-1.2")
    result = site.publish("--check")
    assert result["failed"]
    assert result["msg"].startswith("tool 1.2: ")
    assert f"not {SHA256}" in result["msg"]
    assert not list(site.mirror.iterdir())


def test_a_flipped_byte_upstream_stops_the_run_and_is_not_passed_over(site: Site) -> None:
    site.variables["mirror_artifacts"] = [{**site.release(), "path": "tool-1.2"}]
    flip(site.upstream / "tool")
    result = site.publish()
    assert result["failed"]
    assert result["msg"].startswith(f"tool 1.2: {site.upstream_url}/tool has SHA-256 ")
    assert list((site.mirror / "files/tool/1.2").iterdir()) == []


def test_a_flipped_byte_on_the_mirror_is_never_installed(site: Site) -> None:
    site.publish()
    flip(site.mirror / "files/tool/1.2/tool")
    result = site.install()
    assert result["failed"]
    assert result["msg"].startswith(f"tool 1.2: {site.mirror_url}/files/tool/1.2/tool has SHA-256 ")
    assert list(site.installed.parent.iterdir()) == []
    assert site.publish()["published"] == ["files/tool/1.2/tool"]
    assert site.install()["sha256"] == SHA256


def test_a_flipped_byte_on_the_host_is_replaced(site: Site) -> None:
    site.publish()
    site.install()
    flip(site.installed)
    assert site.install("--check")["changed"] is True
    assert site.install()["changed"] is True
    assert site.installed.read_bytes() == CONTENT


def test_a_mirror_of_another_authority_is_not_believed(site: Site, tmp_path: Path) -> None:
    site.publish()
    other = tmp_path / "other.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost -out"
    subprocess.run([*command.split(), str(other), "-keyout", "/dev/null"], check=True, capture_output=True)
    site.ca = other
    result = site.install()
    assert result["failed"]
    assert result["msg"].startswith("tool 1.2: ")
    assert "CERTIFICATE_VERIFY_FAILED" in result["msg"]


def test_an_artifact_that_nobody_declared_is_named(site: Site) -> None:
    site.variables["mirror_artifacts"] = []
    assert "tool: is not in mirror_artifacts; declared are: none" in site.install()["msg"]


def test_many_are_installed_in_one_call(site: Site) -> None:
    other = b"another\n"
    (site.bundle / "tool-1.3").write_bytes(other)
    (site.bundle / "SHA256SUMS").write_text(f"{SHA256}  tool-1.2\n{hashlib.sha256(other).hexdigest()}  tool-1.3\n")
    newer = {**BUILT, "version": "1.3", "destination": "files/tool/1.3/tool", "path": "tool-1.3"}
    site.variables["mirror_artifacts"] = [BUILT, newer]
    site.publish()
    old, new = str(site.installed), str(site.installed.with_name("new"))
    wanted = [
        {"name": "tool", "version": "1.2", "dest": old},
        {"name": "tool", "version": "1.3", "dest": new, "mode": "0644"},
    ]
    result = site.install(artifacts=wanted)
    assert result["changed_paths"] == [old, new]
    assert result["installed"] == {old: SHA256, new: hashlib.sha256(other).hexdigest()}
    assert Path(new).stat().st_mode & 0o7777 == 0o644
    again = site.install(artifacts=wanted)
    assert again["changed"] is False
    assert again["changed_paths"] == []
    assert "one of the options name and artifacts" in site.install(artifacts=wanted, name="tool")["msg"]
    assert "unknown option destination; known are" in site.install(artifacts=[{"destination": "x"}])["msg"]


def offer_archive(site: Site) -> str:
    """The tool as an archive of two files; its SHA-256."""
    archive = site.bundle / "tool-1.2"
    with tarfile.open(archive, "w") as opened:
        for name, text in (("libs/a.jar", "a"), ("libs/b.jar", "b")):
            oci._add(opened, oci.text_entry(f"/{name}", text))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    (site.bundle / "SHA256SUMS").write_text(f"{sha256}  tool-1.2\n")
    return sha256


def test_an_archive_becomes_a_directory_and_stays_as_it_was_unpacked(site: Site) -> None:
    sha256 = offer_archive(site)
    site.publish()
    checked = site.install("--check", "--diff", unpack=True)
    assert not site.installed.exists()
    done = site.install("--diff", unpack=True)
    for result in (checked, done):
        assert result["changed_paths"] == [str(site.installed)]
        assert result["sha256"] == sha256
        assert [(diff["before"], diff["after"]) for diff in result["diff"]] == [
            ("sha256 absent\n", f"sha256 {sha256}\n")
        ]
    assert (site.installed / "libs/b.jar").read_text() == "b"
    assert site.install(unpack="yes")["changed"] is False

    (site.installed / "libs/b.jar").write_text("c")
    checked = site.install("--check", "--diff", unpack=True)
    mended = site.install("--diff", artifacts=[{"name": "tool", "dest": str(site.installed), "unpack": True}])
    assert checked["diff"] == mended["diff"]
    assert mended["diff"][0]["before"] == f"sha256 {sha256}\nchanged libs/b.jar\n"
    assert (site.installed / "libs/b.jar").read_text() == "b"
    assert sorted(path.name for path in site.installed.parent.iterdir()) == ["tool", "tool.manifest"]


def test_an_archive_is_verified_before_it_is_unpacked(site: Site) -> None:
    offer_archive(site)
    site.publish()
    flip(site.mirror / "files/tool/1.2/tool")
    assert "nothing was installed" in site.install(unpack=True)["msg"]
    assert list(site.installed.parent.iterdir()) == []
    assert "the option unpack is true or false, not 'perhaps'" in site.install(unpack="perhaps")["msg"]
    assert "with unpack, mode is that of directories" in site.install(unpack=True, mode="0644")["msg"]


@pytest.fixture
def registry(site: Site, certificate: Path) -> Iterator[str]:
    """An empty registry, and an image of two layers for it in the bundle."""
    for kept in (Images.blobs, Images.tags, Images.asked):
        kept.clear()
    layers = [oci.write_layer([oci.text_entry("/file", text)], site.directory / text) for text in ("one", "two")]
    image = oci.Image(name="probe", tag="1", user="0")
    archive = site.bundle / "probe.oci.tar"
    oci.write_archive(archive, oci.config_of(image, layers, "amd64"), layers, "test/probe", "1")
    (site.bundle / "SHA256SUMS").write_text(f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  probe.oci.tar\n")
    site.variables["mirror_artifacts"] = [
        {"name": "test/probe", "version": "1", "destination": "images/test/probe:1", "path": "probe.oci.tar"}
    ]
    server = serve_by(Images, certificate)
    yield f"https://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_image_is_pushed_once_and_again_when_its_tag_moved(site: Site, registry: str) -> None:
    assert site.publish("--check", registry=registry)["published"] == ["images/test/probe:1"]
    assert Images.tags == {}
    assert site.publish(registry=registry)["origins"] == {"images/test/probe:1": "modules"}
    manifest = json.loads(Images.tags["/v2/test/probe/manifests/1"])
    assert {manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])} == set(Images.blobs)
    Images.asked.clear()
    assert site.publish(registry=registry)["changed"] is False
    assert Images.asked == ["HEAD /v2/test/probe/manifests/1"]
    Images.tags["/v2/test/probe/manifests/1"] = b"another"
    Images.asked.clear()
    assert site.publish(registry=registry)["changed"] is True
    assert not [asked for asked in Images.asked if asked.startswith("POST")]


def test_an_altered_image_is_never_pushed(site: Site, registry: str) -> None:
    flip(site.bundle / "probe.oci.tar")
    assert site.publish(registry=registry)["msg"].startswith("test/probe 1: ")
    assert Images.asked == []


def test_an_archive_that_holds_no_single_image_is_refused_by_name(site: Site, registry: str) -> None:
    archive = site.bundle / "probe.oci.tar"
    index = oci.text_entry("/index.json", json.dumps({"manifests": [{}, {}]}))
    with tarfile.open(archive, "w") as opened:
        oci._add(opened, index)
    (site.bundle / "SHA256SUMS").write_text(f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  probe.oci.tar\n")
    assert site.publish(registry=registry)["msg"] == "test/probe 1: its archive holds 2 images, or lists of them, not 1"
    archive.write_bytes(CONTENT)
    (site.bundle / "SHA256SUMS").write_text(f"{SHA256}  probe.oci.tar\n")
    assert site.publish(registry=registry)["msg"].startswith("test/probe 1: is no OCI archive of an image: ")


def test_a_registry_that_does_not_answer_is_named(site: Site, registry: str) -> None:
    nobody = "https://localhost:1"
    assert site.publish("--check", registry=nobody)["changed"] is True
    assert site.publish(registry=nobody)["msg"] == f"test/probe 1: {nobody}: [Errno 111] Connection refused"


def test_pip_installs_from_the_index(site: Site) -> None:
    """A wheel made by hand, fetched by pip through the index with its checksum, and refused when flipped."""
    name = "gp_probe-1.0-py3-none-any.whl"
    script = (
        "import zipfile, sys\n"
        "with zipfile.ZipFile(sys.argv[1], 'w') as wheel:\n"
        "    wheel.writestr('gp_probe.py', 'VALUE = 1\\n')\n"
        "    info = 'gp_probe-1.0.dist-info/'\n"
        "    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: gp-probe\\nVersion: 1.0\\n')\n"
        "    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "    wheel.writestr(info + 'RECORD', '')\n"
    )
    wheel = site.bundle / name
    subprocess.run([sys.executable, "-c", script, str(wheel)], check=True)
    (site.bundle / "SHA256SUMS").write_text(f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {name}\n")
    site.variables["mirror_artifacts"] = [
        {"name": "gp-probe", "version": "1.0", "destination": f"wheels/gp-probe/{name}", "path": name}
    ]
    assert site.publish()["published"] == [f"wheels/gp-probe/{name}"]

    def pip() -> subprocess.CompletedProcess[str]:
        # Requests prefers these to what its caller says.
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "REQUESTS_", "CURL_"))}
        return subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--no-deps",
                    "--no-cache-dir",
                    "--disable-pip-version-check",
                ),
                *("--index-url", f"{site.mirror_url}/wheels/", "--cert", str(site.ca), "--retries", "0"),
                *("--dest", str(site.directory / "got"), "gp-probe==1.0"),
            ],
            env={**clean, "PIP_CONFIG_FILE": os.devnull},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    fetched = pip()
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert (site.directory / "got" / name).read_bytes() == wheel.read_bytes()
    (site.directory / "got" / name).unlink()
    flip(site.mirror / f"wheels/gp-probe/{name}")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in pip().stderr
