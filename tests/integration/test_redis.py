# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running Redis: who is the master and for whom, who may do what, and that failovers change no file of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.drill import wait_for
from tests.redis import CA, SENTINEL, SERVER, Redis

if TYPE_CHECKING:
    from tests.lab import Lab

STRANGER = "/etc/groundplane/pki/host"
"""The certificate of a host, which is nobody special."""
CLIENT = "router1"
PLAY = "../tests/integration/redis"


@pytest.fixture(scope="module")
def redis(lab: Lab) -> Redis:
    """The lab's servers and Sentinels."""
    return Redis(lab)


@pytest.mark.parametrize("unit", ["redis-server", "redis-sentinel"])
def test_every_member_is_active_and_comes_back_with_its_host(lab: Lab, redis: Redis, unit: str) -> None:
    assert len(redis.hosts) >= 3
    for host in redis.hosts:
        assert lab.out(host, f"systemctl is-active {unit}") == "active"
        assert lab.out(host, f"systemctl is-enabled {unit}") == "enabled"


def test_one_is_the_master_and_all_sentinels_name_it(redis: Redis) -> None:
    redis.wait_until_sound()
    assert sorted(redis.role(host) for host in redis.hosts) == ["master", *["slave"] * (len(redis.hosts) - 1)]
    named = {tuple(redis.ask(host, "probe", "SENTINEL", "MASTERS", port=SENTINEL)[3:4]) for host in redis.hosts}
    assert named == {(redis.lab.address(redis.master()),)}


def test_the_virtual_address_leads_to_the_master_alone(lab: Lab, redis: Redis) -> None:
    vip = lab.vip()
    name = f"redis.redis.{lab.hostvars[CLIENT]['site_domain']}"
    master = redis.master()

    def shown() -> str:
        # What a server shows on the way through the balancers: its own certificate, whose names end in its host's.
        command = f"openssl s_client -connect {vip}:{SERVER} -servername {name} -verify_hostname {name} -CAfile {CA}"
        said = lab.run(
            CLIENT,
            f"timeout 10 {command} -cert {STRANGER}.crt -key {STRANGER}.key -verify_return_error </dev/null",
            check=False,
        )
        return said.stdout

    wait_for(lambda: f"CN = {master}" in shown() or f"CN={master}" in shown(), 20, f"{master} answers on {vip}")


def test_nobody_comes_without_a_certificate_a_name_and_a_right(lab: Lab, redis: Redis) -> None:
    host = redis.hosts[0]
    for port in (SERVER, SENTINEL):
        plain = lab.run(host, f"redis-cli -h {lab.address(host)} -p {port} PING", check=False)
        assert "PONG" not in plain.stdout
        bare = lab.run(host, f"redis-cli --tls --cacert {CA} -h {lab.address(host)} -p {port} PING", check=False)
        assert "PONG" not in bare.stdout
        assert "NOAUTH" not in bare.stdout, "the handshake should have failed before any word of Redis"
        stranger = redis.tool(host, "probe", "PING", port=port, certificate=STRANGER)
        assert stranger.stdout.strip() == "PONG"
    refused = {"probe": ["GET a", "INFO"], "app": ["FLUSHALL", "CONFIG GET dir"], "admin": ["GET a"]}
    for user, commands in refused.items():
        for command in commands:
            assert "NOPERM" in redis.tool(host, user, *command.split()).stdout, (user, command)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/redis", "700 redis redis"),
        ("/var/lib/redis-sentinel", "700 redis redis"),
        ("/run/redis-server", "700 redis redis"),
        ("/run/redis-server/server.conf", "600 redis redis"),
        ("/etc/redis/tls/redis.key", "600 redis redis"),
        ("/etc/redis/declared", "750 root redis"),
        ("/etc/redis/declared/server.conf", "640 root redis"),
        ("/etc/redis/declared/sentinel.conf", "640 root redis"),
        ("/etc/redis/declared/server.acl", "640 root redis"),
        ("/etc/redis/declared/member.json", "640 root redis"),
        ("/etc/redis/formed", "644 root root"),
    ],
)
def test_files_belong_to_whom_they_should(redis: Redis, path: str, expected: str) -> None:
    for host in redis.hosts:
        assert redis.lab.out(host, f"stat -c '%a %U %G' {path}") == expected


def test_a_first_master_is_named_only_once(redis: Redis) -> None:
    for host in redis.hosts:
        assert redis.lab.run(host, "test -e /etc/redis/initial", check=False).returncode != 0


@pytest.mark.parametrize("unit", ["redis-server", "redis-sentinel"])
def test_the_units_are_confined(redis: Redis, unit: str) -> None:
    said = redis.lab.out(redis.hosts[0], f"systemd-analyze security {unit}.service | tail -1")
    assert float(said.split(f"{unit}.service:")[1].split()[0]) <= 2.0, said


def test_after_a_failover_a_run_changes_nothing_and_nobody(lab: Lab, redis: Redis) -> None:
    first = redis.master()
    lab.run(first, "systemctl kill --signal KILL --kill-whom main redis-server && systemctl stop redis-server")
    try:
        second = redis.master(besides=first)
    finally:
        lab.run(first, "systemctl start redis-server", timeout=120)
    redis.wait_until_sound()
    play = lab.play(PLAY, "--limit", ",".join(redis.hosts))
    assert play.returncode == 0, play.output[-4000:]
    assert play.changed == {}, play.changes
    assert redis.master() == second != first
