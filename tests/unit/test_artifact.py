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
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
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
    with pytest.raises(library.ArtifactError, match=r"tool 1\.3: has the name of tool 1\.2, tool"):
        library.parse([UPSTREAM, {**UPSTREAM, "version": "1.3", "destination": "files/b"}])
    with pytest.raises(
        library.ArtifactError, match=r"other 1\.2: has the destination of tool 1\.2, files/tool/1\.2/tool"
    ):
        library.parse([UPSTREAM, {**UPSTREAM, "name": "other"}])


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
    assert list(library.accepted_sums(both, {"tool": "b" * 64}, ["upstream", "modules"]).items()) == [
        ("upstream", SHA256),
        ("modules", "b" * 64),
    ]
    assert list(library.accepted_sums(both, {"tool": "b" * 64}, ["modules", "upstream"])) == ["modules", "upstream"]
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
            **options,
        }
        return self.play({"groundplane.onprem.artifact_publish": task}, *flags)

    def install(self, *flags: str) -> dict[str, Any]:
        """Install on the host."""
        task = {
            "name": "tool",
            "dest": str(self.installed),
            "mirror": self.mirror_url,
            "ca_path": str(self.ca),
            "owner": str(os.getuid()),
            "group": str(os.getgid()),
        }
        return self.play({"groundplane.onprem.artifact": task}, *flags)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Keep the test's output clean."""


def serve(root: Path, certificate: Path) -> http.server.ThreadingHTTPServer:
    """Serve a directory by HTTPS on a port of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(root)))
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
