# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates of the running site: what is on each host, how it is renewed, and whom the issuer refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import Profile, read_pem, wanted
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.lab import Play
from tests.unit.pki_site import Site

if TYPE_CHECKING:
    import subprocess

    from tests.lab import Lab

THIRTY_DAYS = 30 * 86400
SETTINGS = "/etc/groundplane/pki/certificates.json"
HOST = "/etc/groundplane/pki/host"
OWN = f"-cert {HOST}.crt -cert_chain {HOST}.crt -key {HOST}.key"
RENEW = "/usr/bin/python3 -B /usr/local/lib/groundplane/renew.py"


def hosts(lab: Lab) -> list[str]:
    return lab.hosts


def settings(lab: Lab, host: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(lab.out(host, f"cat {SETTINGS}"))
    return plain


def serial(lab: Lab, host: str, path: str) -> str:
    return lab.out(host, f"openssl x509 -noout -serial -in {path}")


def enrolment(lab: Lab, host: str) -> str:
    """Address and port of the issuer, as a host knows it."""
    url: str = settings(lab, host)["url"]
    return url.removeprefix("https://").split("/", 1)[0]


LOOK = """
import grp, json, os, pwd, subprocess
ca = "/etc/groundplane/pki/ca.crt"
def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True)
found = {}
for item in json.load(open("/etc/groundplane/pki/certificates.json"))["certificates"]:
    try:
        pwd.getpwnam(item["owner"])
    except KeyError:
        continue
    crt, key = (f"{item['directory']}/{item['name']}.{suffix}" for suffix in ("crt", "key"))
    strict = ("openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", ca, "-untrusted", crt, crt)
    have = os.stat(key)
    found[item["directory"] + "/" + item["name"]] = {
        "text": open(crt).read(),
        "verified": run(*strict).returncode,
        "owner": [pwd.getpwuid(have.st_uid).pw_name, grp.getgrgid(have.st_gid).gr_name, have.st_mode & 0o7777],
        "same_key": run("openssl", "x509", "-noout", "-pubkey", "-in", crt).stdout
        == run("openssl", "pkey", "-pubout", "-in", key).stdout,
    }
print(json.dumps(found))
"""


def test_every_declared_certificate_is_what_was_declared(lab: Lab) -> None:
    """On every host: chain, names, usages, life, owner and mode. Services that are not installed yet have none."""
    for host in hosts(lab):
        found = json.loads(lab.run(host, "python3 -", stdin=LOOK).stdout)
        assert "/etc/groundplane/pki/host" in found
        for plain in settings(lab, host)["certificates"]:
            item = wanted(plain)
            have = found.get(item.path)
            if have is None:
                continue
            leaf = read_pem(have["text"])[0]
            assert have["verified"] == 0, f"{host} {item.path}"
            assert have["same_key"], f"{host} {item.path}"
            assert have["owner"] == [item.owner, item.group, item.mode]
            assert leaf.life <= THIRTY_DAYS
            assert Profile.of(leaf) == item.profile, f"{host} {item.path}"


def test_nobody_but_the_owner_reads_a_key(lab: Lab) -> None:
    for host in hosts(lab):
        directories = {plain["directory"] for plain in settings(lab, host)["certificates"]}
        found = lab.out(
            host, f"find {' '.join(directories)} /etc/groundplane -name '*.key*' -perm /o+rwx 2>/dev/null || :"
        )
        assert found == ""


def test_the_cas_keys_are_where_they_belong_and_nowhere_else(lab: Lab) -> None:
    (issuer,) = lab.groups["pki"]
    assert (
        lab.out(issuer, "stat -c '%U %a' /etc/groundplane/issuer /etc/groundplane/issuer/issuer.key")
        == "root 700\nroot 600"
    )
    for host in hosts(lab):
        assert lab.run(host, "test -e /etc/groundplane/issuer", check=False).returncode == (0 if host == issuer else 1)
    root = lab.directory / "ca/root/ca.key"
    assert root.stat().st_mode & 0o777 == 0o600
    secret = "".join(root.read_text().splitlines()[1:-1])[40:80]
    for host in hosts(lab):
        assert lab.out(host, f"grep -rlF '{secret}' /etc/groundplane /var/lib/groundplane || :") == ""


def test_the_timer_runs_everywhere(lab: Lab) -> None:
    for host in hosts(lab):
        assert lab.out(host, "systemctl is-active groundplane-renew.timer") == "active"
        assert lab.out(host, "systemctl is-enabled groundplane-renew.timer") == "enabled"
        # the unit with all its restrictions, not only the program, does its work
        lab.run(host, "systemctl start groundplane-renew.service", timeout=120)


def test_the_units_are_confined(lab: Lab) -> None:
    (issuer,) = lab.groups["pki"]
    units = {"groundplane-issuer.service": 2.0, "groundplane-renew.service": 4.0}
    for unit, limit in units.items():
        report = json.loads(lab.run(issuer, f"systemd-analyze security --json=short {unit} || :").stdout)
        line = lab.run(issuer, f"systemd-analyze security {unit} | tail -1", check=False).stdout
        assert report
        assert float(line.split(":")[-1].split()[0]) <= limit, line
    user = lab.out(issuer, "ps -o user= -p $(systemctl show -P MainPID groundplane-issuer.service)")
    assert user != "root"


@pytest.fixture
def forced(lab: Lab) -> Any:
    """The renewal unit of a host, with --force for one run."""
    dropped = []

    def start(host: str, name: str) -> None:
        folder = "/run/systemd/system/groundplane-renew.service.d"
        lab.run(host, f"mkdir -p {folder} && cat > {folder}/force.conf && systemctl daemon-reload",
                stdin=f"[Service]\nExecStart=\nExecStart={RENEW} --force {name}\n")  # fmt: skip
        dropped.append((host, folder))
        lab.run(host, "systemctl start groundplane-renew.service", timeout=120)

    yield start
    for host, folder in dropped:
        lab.run(host, f"rm -r {folder} && systemctl daemon-reload")


def test_a_renewal_gives_a_new_pair_and_reloads_what_uses_it(lab: Lab, forced: Any) -> None:
    """A load balancer: its service keeps its process and its connections, and presents the new certificate."""
    host = lab.groups["load_balancer"][0]
    (item,) = [wanted(plain) for plain in settings(lab, host)["certificates"] if plain["name"] == "load_balancer"]
    crt = f"{item.path}.crt"
    before = serial(lab, host, crt), lab.out(host, f"sha256sum < {item.path}.key")
    active = lab.run(host, "systemctl is-active haproxy.service", check=False).stdout.strip() == "active"
    process = lab.out(host, "systemctl show -P MainPID haproxy.service")
    forced(host, "load_balancer")
    assert serial(lab, host, crt) != before[0]
    assert lab.out(host, f"sha256sum < {item.path}.key") != before[1]
    journal = lab.out(host, "journalctl -u groundplane-renew.service -n 20 -o cat --no-pager")
    assert f"{item.path}: renewed" in journal
    if active:
        assert "haproxy.service: reloaded" in journal
        assert lab.out(host, "systemctl show -P MainPID haproxy.service") == process


def play(lab: Lab, target: str, *arguments: str) -> Play:
    done = lab.local(
        *(
            "ansible-playbook",
            "-i",
            str(lab.inventory),
            "tests/integration/pki.yml",
            "-e",
            f"target={target}",
            *arguments,
        ),
        timeout=300,
        check=False,
    )
    return Play(done.returncode, done.stdout + done.stderr)


def test_a_run_finds_nothing_to_do_and_says_exactly_what_there_is(lab: Lab) -> None:
    """Check mode predicts what the run then does: after a lost certificate and an opened key, these two."""
    host = lab.groups["load_balancer"][0]
    (item,) = [wanted(plain) for plain in settings(lab, host)["certificates"] if plain["name"] == "load_balancer"]
    quiet = play(lab, host)
    assert (quiet.returncode, quiet.changed) == (0, {}), quiet.output
    lab.run(host, f"rm {item.path}.crt; chmod 0644 /etc/groundplane/pki/host.key")
    predicted = play(lab, host, "--check", "--diff")
    assert predicted.changed == {host: 1}, predicted.output
    assert f"{item.path}.crt new: there is none" in predicted.output
    assert "host.key: 0:0 0644 where 0:0 0600 is declared" in predicted.output
    assert lab.run(host, f"test -e {item.path}.crt", check=False).returncode == 1
    done = play(lab, host)
    assert done.returncode == 0, done.output
    assert "BEGIN PRIVATE" not in done.output
    assert lab.out(host, "stat -c %a /etc/groundplane/pki/host.key") == "600"
    again = play(lab, host)
    assert (again.returncode, again.changed) == (0, {}), again.output


def test_a_host_cannot_become_another(lab: Lab) -> None:
    """data1's identity and a request that carries data2's name: refused, and remembered."""
    host, other = lab.groups["etcd"][:2]
    (issuer,) = lab.groups["pki"]
    script = (
        "set -e; cd $(mktemp -d); openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out k;"
        f"openssl req -new -key k -config /dev/null -subj /CN={other} -addext subjectAltName=DNS:{other} -outform DER |"
        " base64 > r; { printf 'POST /.well-known/est/simplereenroll HTTP/1.0\\r\\nContent-Length: %s\\r\\n\\r\\n'"
        " $(wc -c < r); cat r; sleep 1; } | openssl s_client -quiet -verify_return_error -verify 2"
        f" -CAfile /etc/groundplane/pki/ca.crt {OWN}"
        f" -connect {enrolment(lab, host)} 2>/dev/null | grep ^HTTP"
    )
    assert " 403 " in lab.out(host, script)
    journal = lab.out(issuer, "journalctl -u groundplane-issuer.service -n 5 -o cat --no-pager")
    assert '"event": "refused"' in journal
    assert f"CN={other}" in journal


def answer(lab: Lab, host: str, options: str) -> subprocess.CompletedProcess[str]:
    """What the issuer says to a client; TLS 1.3 tells a refusal only after the first read."""
    client = f"openssl s_client -quiet -CAfile /etc/groundplane/pki/ca.crt -verify_return_error -verify 2 {options}"
    page = "printf 'GET /.well-known/est/cacerts HTTP/1.0\\r\\n\\r\\n'"
    return lab.run(host, f"{{ {page}; sleep 1; }} | {client} -connect {enrolment(lab, host)} 2>&1", check=False)


def test_the_issuer_answers_members_of_the_site_only(lab: Lab) -> None:
    """From a data host, through the router: its own certificate is served; none, and a stranger's, are not."""
    host = lab.groups["etcd"][0]
    assert "200 OK" in answer(lab, host, OWN).stdout

    assert "200 OK" not in answer(lab, host, "").stdout

    stranger = Site()
    (plain,) = [item for item in settings(lab, host)["certificates"] if item["name"] == "host"]
    chain, key = stranger.issue(wanted(plain).profile)
    assert stranger.issuer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    lab.run(host, "cat > /run/stranger.pem", stdin=chain + key.decode())
    try:
        refused = answer(
            lab, host, "-cert_chain /run/stranger.pem -cert /run/stranger.pem -key /run/stranger.pem"
        ).stdout
    finally:
        lab.run(host, "rm /run/stranger.pem")
    assert "200 OK" not in refused
    assert "alert" in refused
