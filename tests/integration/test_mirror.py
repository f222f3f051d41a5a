# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mirror of the running lab: what it serves, to whom, and that nobody has to trust it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab

MIRROR = "bastion1"
CLIENT = "data1"
INSTALLED = "/root/artifact-of-a-test"
CA = "/etc/groundplane/pki/ca.crt"
OWN = "/etc/groundplane/pki/host"

# Answers [status, length of the body], or the error's text. Standard library only, as on every host.
ASK = """python3 - <<'END'
import http.client, json, ssl, sys
context = ssl.create_default_context(cafile={ca!r})
{setup}
connection = http.client.HTTPSConnection({name!r}, 443, timeout=60, context=context)
try:
    connection.request({method!r}, {path!r}, headers={{"Accept": "application/vnd.oci.image.manifest.v1+json, */*"}})
    answer = connection.getresponse()
    print(json.dumps([answer.status, len(answer.read())]))
except OSError as error:
    print(json.dumps(str(error)))
END"""


def name_of(lab: Lab, host: str) -> str:
    """The host's name below the site's domain."""
    return f"{host}.{lab.hostvars[host]['site_domain']}"


def ask(lab: Lab, host: str, path: str, method: str = "GET", *, setup: str = "") -> Any:
    """Ask the mirror from a host."""
    command = ASK.format(ca=CA, setup=setup, name=name_of(lab, MIRROR), method=method, path=path)
    return json.loads(lab.out(host, command))


def update(lab: Lab, host: str, *options: str) -> str:
    """Fetch package lists on a host; output with an exit code at its end."""
    flags = " ".join(f"-o {option}" for option in ("APT::Update::Error-Mode=any", "Acquire::Retries=0", *options))
    return lab.run(host, f"apt-get update {flags} 2>&1; echo exit $?", timeout=300, check=False).stdout


def test_only_nginx_listens_to_the_network(lab: Lab) -> None:
    listening = lab.out(MIRROR, "ss -Hlntp")
    sockets = re.findall(r"LISTEN\s+\d+\s+\d+\s+(\S+):(\d+)\s.*?\(\(\"([^\"]+)\"", listening)
    assert {
        (address, port) for address, port, process in sockets if process in ("apt-cacher-ng", "docker-registry")
    } == {
        ("127.0.0.1", "3142"),
        ("127.0.0.1", "5000"),
    }
    address = lab.hostvars[MIRROR]["host_addresses"]["mgmt"]
    assert {(at, port) for at, port, process in sockets if process == "nginx"} == {
        ("127.0.0.1", "443"),
        (address, "443"),
    }


@pytest.mark.parametrize("host", ["data1", "data2", "data3", "lb1", "lb2"])
def test_hosts_without_a_way_out_get_packages(lab: Lab, host: str) -> None:
    assert update(lab, host).endswith("exit 0\n")
    origin = lab.out(host, "apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | sort -u")
    base = f"https://{name_of(lab, MIRROR)}"
    assert origin.split() == [f"{base}/debian", f"{base}/debian-security"]


def test_a_package_arrives_whole(lab: Lab) -> None:
    lab.run(CLIENT, "cd /var/tmp && apt-get download hostname && dpkg-deb --info hostname_*.deb", timeout=120)
    lab.run(CLIENT, "rm -f /var/tmp/hostname_*.deb")


def test_packages_come_from_this_mirror_only(lab: Lab) -> None:
    mirror = name_of(lab, MIRROR)
    refused = update(lab, CLIENT, f"Acquire::https::{mirror}::CaInfo=/etc/ssl/certs/ca-certificates.crt")
    assert "certificate verify failed" in refused
    assert "exit 100" in refused


def test_old_protocols_are_refused(lab: Lab) -> None:
    limit = "context.minimum_version = ssl.TLSVersion.TLSv1_1; context.maximum_version = ssl.TLSVersion.TLSv1_1"
    assert isinstance(ask(lab, CLIENT, "/debian/dists/trixie/InRelease", setup=limit), str)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/files/SHA256SUMS", 200),
        ("GET", "/wheels/", 200),
        ("GET", "/v2/", 200),
        ("GET", "/", 404),
        ("GET", "/acng-report.html", 404),
        ("GET", "/deb.example.org/debian/dists/trixie/InRelease", 404),
        ("PUT", "/files/new", 403),
        ("POST", "/debian/dists/trixie/InRelease", 403),
    ],
)
def test_what_it_serves_and_nothing_else(lab: Lab, method: str, path: str, status: int) -> None:
    assert ask(lab, CLIENT, path, method)[0] == status


def test_images_are_pulled_by_all_and_pushed_by_few(lab: Lab) -> None:
    upload = "/v2/test/blobs/uploads/"
    assert ask(lab, CLIENT, upload, "POST")[0] == 403
    own = f"context.load_cert_chain({OWN + '.crt'!r}, {OWN + '.key'!r})"
    assert ask(lab, CLIENT, upload, "POST", setup=own)[0] == 403
    assert ask(lab, MIRROR, upload, "POST")[0] == 202


def declarations(lab: Lab) -> list[dict[str, Any]]:
    """What `mirror_artifacts` is."""
    told = lab.module(MIRROR, "ansible.builtin.debug", {"var": "mirror_artifacts"})[MIRROR]
    artifacts: list[dict[str, Any]] = told["mirror_artifacts"]
    return artifacts


def test_the_images_of_the_bundle_can_be_pulled(lab: Lab) -> None:
    named = [
        item["destination"].removeprefix("images/")
        for item in declarations(lab)
        if item["destination"].startswith("images/")
    ]
    assert named, "the lab declares no image, or its bundle was not built"
    for image in named:
        repository, _, tag = image.rpartition(":")
        assert ask(lab, CLIENT, f"/v2/{repository}/manifests/{tag}", "HEAD")[0] == 200, image


@pytest.fixture
def declared(lab: Lab) -> Iterator[dict[str, str]]:
    """The lab's first artifact; what a test installed or damaged is put right afterwards."""
    found = next(iter(declarations(lab)), None)
    assert found, "the lab declares no artifact, or its bundle was not built"
    target = f"/srv/mirror/{found['destination']}"
    lab.run(MIRROR, f"cp -p {target} /root/artifact-before-a-test")
    yield {**found, "target": target}
    lab.run(MIRROR, f"mv /root/artifact-before-a-test {target}")
    lab.run(CLIENT, f"rm -f {INSTALLED}")


def install(lab: Lab) -> tuple[int, str]:
    """Have a host install the artifact."""
    play = lab.local(
        *("ansible-playbook", "-i", str(lab.inventory), "tests/integration/artifact.yml"), timeout=300, check=False
    )
    return play.returncode, play.stdout + play.stderr


def test_one_flipped_byte_on_the_mirror_stops_the_run(lab: Lab, declared: dict[str, str]) -> None:
    flip = (
        "python3 - <<'END'\n"
        "import pathlib\n"
        f"path = pathlib.Path({declared['target']!r})\n"
        "content = bytearray(path.read_bytes())\n"
        "content[len(content) // 2] ^= 1\n"
        "path.write_bytes(content)\n"
        "END"
    )
    lab.run(MIRROR, flip)
    status, output = install(lab)
    assert status != 0
    assert re.search(rf"{declared['name']} \S+: https://\S+ has SHA-256 [0-9a-f]{{64}}, not [0-9a-f]{{64}}", output), (
        output
    )
    assert lab.run(CLIENT, f"test -e {INSTALLED}", check=False).returncode != 0

    lab.run(MIRROR, f"cp -p /root/artifact-before-a-test {declared['target']}")
    status, output = install(lab)
    assert status == 0, output
    assert lab.out(CLIENT, f"sha256sum < {INSTALLED}") == lab.out(MIRROR, f"sha256sum < {declared['target']}")


def test_the_published_list_is_what_is_there(lab: Lab) -> None:
    lab.run(MIRROR, "cd /srv/mirror/files && sha256sum --check --strict --quiet SHA256SUMS")
