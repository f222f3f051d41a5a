# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The load balancers of the running lab, asked on the hosts themselves."""

from __future__ import annotations

import csv
import io
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.lab import Lab

BALANCERS = ["lb1", "lb2"]
ADMIN = "/run/haproxy/admin.sock"

ASK = """python3 - <<'END'
import socket
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    connection.sendall(b"show stat\\n")
    while chunk := connection.recv(65536):
        print(chunk.decode(), end="")
END"""

METRICS = """python3 - <<'END'
import socket, ssl, sys
context = ssl.create_default_context(cafile="/etc/groundplane/pki/ca.crt")
{setup}
with socket.create_connection(({address!r}, 8405), 5) as plain:
    with context.wrap_socket(plain, server_hostname={host!r}) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
print(answer.decode())
END"""
OWN = 'context.load_cert_chain("/etc/haproxy/tls/load_balancer.crt", "/etc/haproxy/tls/load_balancer.key")'


def servers(lab: Lab, host: str, path: str = ADMIN) -> list[dict[str, str]]:
    """The members of all backends as HAProxy sees them: `pxname`, `svname`, `status`, `check_status`, `tracked`."""
    table = lab.out(host, ASK.format(path=path)).removeprefix("# ")
    return [row for row in csv.DictReader(io.StringIO(table)) if row["svname"] not in ("FRONTEND", "BACKEND")]


@pytest.mark.parametrize("host", BALANCERS)
@pytest.mark.parametrize("unit", ["haproxy.service", "keepalived.service"])
def test_units_run_now_and_after_a_boot(lab: Lab, host: str, unit: str) -> None:
    assert lab.out(host, f"systemctl is-active {unit}; systemctl is-enabled {unit}").split() == ["active", "enabled"]


@pytest.mark.parametrize("vip", ["private", "public"])
def test_each_address_has_exactly_one_holder(lab: Lab, vip: str) -> None:
    address = lab.hostvars["lb1"]["site_vips"][vip]["address"]
    assert len([host for host in BALANCERS if lab.out(host, f"ip -o address show to {address}/32")]) == 1


@pytest.mark.parametrize("host", BALANCERS)
def test_every_member_answers_the_checks(lab: Lab, host: str) -> None:
    """An answer may be no; a time-out, a refused connection or a failed handshake is none. Sleeping hosts give none."""
    rows = [row for row in servers(lab, host) if row["svname"] in lab.hosts and row["status"] != "no check"]
    asked = [row for row in rows if not row["tracked"]]
    assert {row["pxname"] for row in asked} >= {"postgres_primary", "postgres_replicas"}
    checks = {f"{one['service']}_{one['name']}": one["check"] for one in lab.site.endpoints()}
    for row in asked:
        # Only HTTP has a status by which to say no.
        no = "L7STS" if checks[row["pxname"]]["protocol"] == "http" else "L7RSP"
        assert row["check_status"].removeprefix("* ") in ("L7OK", no), row
    checked = {f"{row['pxname']}/{row['svname']}" for row in asked}
    follows = {f"{row['pxname']}/{row['svname']}": row["tracked"] for row in rows if row["tracked"]}
    assert set(follows.values()) <= checked
    members = lab.groups["postgres"]
    assert follows.items() >= {f"postgres_direct/{name}": f"postgres_primary/{name}" for name in members}.items()


@pytest.mark.parametrize("host", BALANCERS)
def test_one_member_leads_and_it_is_no_replica(lab: Lab, host: str) -> None:
    up: dict[str, list[str]] = {}
    for row in servers(lab, host):
        up.setdefault(row["pxname"], [])
        if row["status"].startswith("UP"):
            up[row["pxname"]].append(row["svname"])
    assert len(up["postgres_primary"]) == 1
    assert up["postgres_direct"] == up["postgres_primary"]
    assert not set(up["postgres_primary"]) & set(up["postgres_replicas"])


WRONG_MEMBER = """
set -e
directory=$(mktemp -d)
trap 'kill $pid; wait $pid || true; rm -r $directory' EXIT
sed '/^defaults/,$d; s#/run/haproxy/[a-z-]*\\(.sock\\)\\?#'$directory'/admin.sock#' /etc/haproxy/haproxy.cfg | \
  grep -v -e server-state-file -e chroot >$directory/h.cfg
cat >>$directory/h.cfg <<END
defaults
    mode tcp
    timeout connect 2s
    timeout client 2s
    timeout server 2s
    timeout check 2s
backend right
    option httpchk HEAD /primary
    server member {address} check check-ssl verify required ca-file {anchor} crt {own} verifyhost {name}
backend wrong
    option httpchk HEAD /primary
    server member {address} check check-ssl verify required ca-file {anchor} crt {own} verifyhost {other}
END
haproxy -db -f $directory/h.cfg >/dev/null 2>&1 &
pid=$!
sleep 4
{ask}
"""


def test_a_member_under_another_name_is_not_trusted(lab: Lab) -> None:
    """A second HAProxy with the role's own global section asks one member twice, once by the name of another."""
    address = lab.hostvars["data1"]["host_addresses"]["data"] + ":8008"
    script = WRONG_MEMBER.format(
        address=address,
        anchor="/etc/groundplane/pki/ca.crt",
        own="/etc/haproxy/tls/load_balancer.crt",
        name="data1",
        other="data2",
        ask=ASK.replace("{path!r}", "'$directory/admin.sock'").replace("<<'END'", "<<END"),
    )
    table = lab.out("lb2", script).removeprefix("# ")
    seen = {row["pxname"]: row["check_status"].removeprefix("* ") for row in csv.DictReader(io.StringIO(table))
            if row["svname"] == "member"}  # fmt: skip
    assert seen["right"] in ("L7OK", "L7STS")
    assert seen["wrong"] == "L6RSP"


def metrics(lab: Lab, host: str, setup: str = OWN) -> Any:
    return lab.run(host, METRICS.format(address=lab.address(host), host=host, setup=setup), check=False)


@pytest.mark.parametrize("host", BALANCERS)
def test_metrics_are_given_to_who_has_a_certificate(lab: Lab, host: str) -> None:
    answer = metrics(lab, host).stdout
    assert answer.startswith("HTTP/1.1 200")
    assert "haproxy_server_check_status" in answer


@pytest.mark.parametrize(
    "setup",
    [
        "",
        f"{OWN}; context.maximum_version = ssl.TLSVersion.TLSv1_1; context.set_ciphers('ALL:@SECLEVEL=0')",
        f"{OWN}; context.maximum_version = ssl.TLSVersion.TLSv1_2; context.set_ciphers('AES128-GCM-SHA256')",
    ],
    ids=["no certificate", "TLS 1.1", "no forward secrecy"],
)
def test_metrics_are_not_given_to_others(lab: Lab, setup: str) -> None:
    done = metrics(lab, "lb1", setup)
    assert done.returncode != 0
    assert "haproxy_" not in done.stdout
    assert re.search(r"ssl\.SSLError|ConnectionResetError|SSLEOFError|alert", done.stderr), done.stderr


@pytest.mark.parametrize("host", BALANCERS)
def test_the_health_question_is_asked_by_an_account_that_may_do_nothing_else(lab: Lab, host: str) -> None:
    as_script = "runuser -u keepalived_script --"
    script = "/bin/bash /usr/local/lib/groundplane/haproxy_health 8404 3"
    assert lab.run(host, f"{as_script} {script}").returncode == 0
    for path in (ADMIN, "/run/haproxy-master.sock"):
        assert lab.run(host, f"{as_script} test -w {path}", check=False).returncode != 0
    for account in ("keepalived_script", "haproxy"):
        readable = f"runuser -u {account} -- test -r /etc/haproxy/tls/load_balancer.key"
        assert lab.run(host, readable, check=False).returncode != 0


@pytest.mark.parametrize("host", BALANCERS)
@pytest.mark.parametrize("unit", ["haproxy.service", "keepalived.service"])
def test_units_are_confined(lab: Lab, host: str, unit: str) -> None:
    verdict = lab.out(host, f"systemd-analyze security --no-pager {unit} | tail -1")
    exposure = float(re.findall(r"[\d.]+(?= \w+)", verdict)[-1])
    assert exposure <= 4, verdict


@pytest.mark.parametrize("host", BALANCERS)
def test_a_reload_keeps_what_is_known_of_the_members(lab: Lab, host: str) -> None:
    """The new process must not believe, for a moment, that every member leads."""
    start = time.time()
    before = {(row["pxname"], row["svname"]): (row["status"], row["tracked"]) for row in servers(lab, host)}
    lab.run(host, "systemctl reload haproxy")
    lines = lab.out(host, f"journalctl -u haproxy --since @{start:.0f} -o cat")
    for (backend, server), (status, tracked) in before.items():
        if status == "DOWN":
            why = f" via {tracked}" if tracked else ", changed from server-state after a reload"
            assert f"{backend}/{server} is DOWN{why}" in lines
