# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running database: writes are on two hosts, who may connect and how, and that drift is found and repaired."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab

CA = "/etc/groundplane/pki/ca.crt"
TLS = "/etc/postgresql/tls"
APP = "groundplane_test"


def cluster(lab: Lab) -> list[dict[str, Any]]:
    """The members as Patroni tells."""
    host = lab.groups["postgres"][0]
    listed: list[dict[str, Any]] = json.loads(lab.out(host, "patronictl -c /etc/patroni/config.yml list -f json"))
    return listed


def leader(lab: Lab) -> str:
    """The member that leads now."""
    name: str = next(member["Member"] for member in cluster(lab) if member["Role"] == "Leader")
    return name


def sql(lab: Lab, host: str, text: str, database: str = "postgres") -> str:
    """What the superuser gets over the unix socket."""
    command = f"cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -h /run/postgresql -d {database}"
    return lab.run(host, command, stdin=text).stdout.strip()


def connect(
    lab: Lab,
    host: str,
    *,
    port: int = 5432,
    user: str = APP,
    password: str = APP * 2,
    database: str = APP,
    certificate: str = "postgres",
    mode: str = "verify-full",
    extra: str = "",
    query: str = "select current_user",
    source: str = "",
) -> tuple[str, str]:
    """Try to connect over TCP to a member, from itself or from another; what came out, and the complaint."""
    parts = [
        f"host={lab.address(host)} port={port} user={user} dbname={database} sslmode={mode} sslrootcert={CA}",
        f"sslcert={TLS}/{certificate}.crt sslkey={TLS}/{certificate}.key"
        if certificate
        else "sslcert=/none sslkey=/none",
        f"connect_timeout=5 {extra}",
    ]
    # The password comes by standard input: it is in no argument of no process.
    command = f'read -r PGPASSWORD; export PGPASSWORD; exec psql -XAtq "{" ".join(parts)}" -c "{query}" 2>&1'
    done = lab.run(source or host, command, stdin=password + "\n", check=False)
    return (done.stdout.strip(), "") if done.returncode == 0 else ("", done.stdout)


@pytest.fixture(scope="module")
def application(lab: Lab) -> Iterator[str]:
    """A role with a password and a database of its own; the name of the primary."""
    primary = leader(lab)
    password = APP * 2
    sql(lab, primary, f"CREATE ROLE {APP} LOGIN PASSWORD '{password}'; CREATE DATABASE {APP} OWNER {APP};")
    yield primary
    drop = f"DROP DATABASE IF EXISTS {APP} WITH (FORCE);\nDROP ROLE IF EXISTS {APP};"
    sql(lab, leader(lab), drop)


def test_each_write_is_on_two_hosts_before_it_is_acknowledged(lab: Lab) -> None:
    roles = sorted(member["Role"] for member in cluster(lab))
    assert roles == ["Leader", *["Quorum Standby"] * (len(lab.groups["postgres"]) - 1)]
    primary = leader(lab)
    assert sql(lab, primary, "show synchronous_commit") == "on"
    assert sql(lab, primary, "show synchronous_standby_names").startswith("ANY 1 (")
    states = sql(lab, primary, "select distinct sync_state from pg_stat_replication").split()
    assert states == ["quorum"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data_checksums", "on"),
        ("wal_log_hints", "on"),
        ("password_encryption", "scram-sha-256"),
        ("ssl_min_protocol_version", "TLSv1.3"),
        ("ssl", "on"),
        ("max_connections", "100"),
        ("archive_mode", "on"),
    ],
)
def test_every_member_runs_with_the_settings(lab: Lab, setting: str, value: str) -> None:
    for host in lab.groups["postgres"]:
        assert sql(lab, host, f"show {setting}") == value


def test_the_collation_never_changes_with_the_system(lab: Lab) -> None:
    query = "select distinct datlocprovider, datlocale, pg_encoding_to_char(encoding) from pg_database"
    assert sql(lab, leader(lab), query) == "b|C.UTF-8|UTF8"


def test_the_rules_of_access_are_these_and_no_others(lab: Lab) -> None:
    peers = sorted(lab.address(host) for host in lab.groups["postgres"])
    balancers = {item for host in lab.groups["load_balancer"] for item in lab.hostvars[host]["host_addresses"].values()}
    verify = "clientcert=verify-full"
    for host in lab.groups["postgres"]:
        own = lab.address(host)
        found = sql(
            lab,
            host,
            "select concat_ws(' ', type, array_to_string(database, ','), array_to_string(user_name, ','), address,"
            " auth_method, array_to_string(options, ',')) from pg_hba_file_rules order by rule_number",
        ).splitlines()
        expected = [
            "local all postgres peer",
            "local replication replicator peer map=patroni",
            *[f"hostssl replication replicator {peer} scram-sha-256 {verify}" for peer in peers],
            *[f"hostssl postgres rewind {peer} scram-sha-256 {verify}" for peer in peers],
            f"hostssl postgres pgbouncer {own} scram-sha-256 clientcert=verify-ca",
            "host all replicator,rewind,pgbouncer all reject",
            *[f"hostssl all postgres {peer} scram-sha-256 {verify}" for peer in peers],
            "host all postgres all reject",
            *[f"hostssl all all {client} scram-sha-256 clientcert=verify-ca" for client in [own, *sorted(balancers)]],
            "host all all all reject",
        ]
        assert found == expected
        assert sql(lab, host, "select count(*) from pg_hba_file_rules where error is not null") == "0"


@pytest.mark.parametrize("port", [5432, 6432])
def test_an_application_connects_with_certificate_and_password(lab: Lab, application: str, port: int) -> None:
    assert connect(lab, application, port=port) == (APP, "")


def test_the_pooler_of_a_standby_reads_and_does_not_write(lab: Lab, application: str) -> None:
    standby = next(host for host in lab.groups["postgres"] if host != application)
    query = "select pg_is_in_recovery(), count(*) from pg_stat_ssl where pid = pg_backend_pid() and ssl"
    assert connect(lab, standby, port=6432, query=query)[0] == "t|1"
    assert "read-only transaction" in connect(lab, standby, port=6432, query="create table t ()")[1]


@pytest.mark.parametrize(
    ("port", "different", "complaint"),
    [
        (5432, {"mode": "disable"}, "pg_hba.conf rejects connection"),
        (6432, {"mode": "disable"}, "SSL required"),
        (5432, {"certificate": ""}, "connection requires a valid client certificate"),
        (6432, {"certificate": ""}, "certificate required"),
        (5432, {"password": "wrong"}, "password authentication failed"),
        (6432, {"password": "wrong"}, "SASL authentication failed"),
        (5432, {"extra": "ssl_max_protocol_version=TLSv1.2"}, "protocol version"),
        (6432, {"extra": "ssl_max_protocol_version=TLSv1.2"}, "protocol version"),
        (6432, {"database": "postgres"}, "permission denied for database"),
        (5432, {"database": "postgres"}, "permission denied for database"),
        (6432, {"user": "postgres", "database": "postgres"}, "no such user"),
        (6432, {"user": "replicator", "database": "postgres"}, "no such user"),
        (6432, {"user": "rewind", "database": "postgres"}, "no such user"),
    ],
)
def test_less_than_that_is_refused(
    lab: Lab, application: str, port: int, different: dict[str, str], complaint: str
) -> None:
    out, said = connect(lab, application, port=port, **different)  # type: ignore[arg-type]
    assert out == ""
    assert complaint in said


@pytest.mark.parametrize(
    ("role", "word", "database", "extra"),
    [
        ("replicator", "postgres_replication", "replication", "replication=true"),
        ("rewind", "postgres_rewind", "postgres", ""),
    ],
)
def test_the_platform_s_roles_need_password_and_a_certificate_that_names_them(
    lab: Lab, role: str, word: str, database: str, extra: str
) -> None:
    primary = leader(lab)
    other = next(host for host in lab.groups["postgres"] if host != primary)
    query = "IDENTIFY_SYSTEM" if extra else "select current_user"
    good = {"user": role, "password": lab.secret(word), "database": database, "extra": extra, "query": query}
    out, said = connect(lab, primary, source=other, certificate=role, **good)
    assert out, said
    # The right password with a certificate of another name: the client is told no more than of a wrong password.
    assert "authentication failed" in connect(lab, primary, source=other, certificate="postgres", **good)[1]
    assert "valid client certificate" in connect(lab, primary, source=other, certificate="", **good)[1]
    wrong = good | {"password": "wrong"}
    assert "password authentication failed" in connect(lab, primary, source=other, certificate=role, **wrong)[1]
    plain = connect(lab, primary, source=other, certificate=role, mode="disable", **good)[1]
    assert "pg_hba.conf" in plain
    assert "no encryption" in plain


def test_the_superuser_needs_a_certificate_that_no_host_has(lab: Lab) -> None:
    primary = leader(lab)
    good = {"user": "postgres", "password": lab.secret("postgres_superuser"), "database": "postgres"}
    for certificate in ("postgres", "replicator", "rewind"):
        assert "authentication failed" in connect(lab, primary, certificate=certificate, **good)[1]


def test_nobody_but_the_owner_speaks_on_the_socket(lab: Lab) -> None:
    command = "cd / && runuser -u nobody -- psql -XAt -h /run/postgresql -U postgres -d postgres -c 'select 1' 2>&1"
    done = lab.run(leader(lab), command, check=False)
    assert done.returncode != 0
    assert "Peer authentication failed" in done.stdout


def test_patroni_changes_nothing_for_other_hosts(lab: Lab) -> None:
    """A certificate of the site may read the API; what changes the cluster is for its members."""
    ask = (
        "python3 - <<'E'\nimport http.client, ssl\n"
        f"c = ssl.create_default_context(cafile='{CA}')\n"
        "c.load_cert_chain('{crt}', '{key}')\n"
        "h = http.client.HTTPSConnection('{address}', 8008, context=c, timeout=5)\n"
        "h.request('{method}', '{path}', '{{}}')\nprint(h.getresponse().status)\nE"
    )
    host = lab.groups["postgres"][0]
    balancer = lab.groups["load_balancer"][0]
    service = next(item for item in lab.certificates("load_balancer") if "client" in item["usages"])
    base = f"{service['directory']}/{service['name']}"
    files = {"crt": f"{base}.crt", "key": f"{base}.key", "address": lab.address(host)}
    assert lab.out(balancer, ask.format(method="GET", path="/patroni", **files)) == "200"
    assert lab.out(balancer, ask.format(method="PATCH", path="/config", **files)) == "403"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc/patroni/config.yml", "600 postgres postgres"),
        ("/etc/pgbouncer/userlist.txt", "600 postgres postgres"),
        (f"{TLS}/postgres.key", "600 postgres postgres"),
        (f"{TLS}/replicator.key", "600 postgres postgres"),
        (f"{TLS}/rewind.key", "600 postgres postgres"),
        ("/var/lib/postgresql/17/lab", "700 postgres postgres"),
    ],
)
def test_files_belong_to_whom_they_should(lab: Lab, path: str, expected: str) -> None:
    for host in lab.groups["postgres"]:
        assert lab.out(host, f"stat -c '%a %U %G' {path}") == expected


@pytest.mark.parametrize("unit", ["patroni.service", "pgbouncer.service"])
def test_the_units_are_confined(lab: Lab, unit: str) -> None:
    said = lab.out(lab.groups["postgres"][0], f"systemd-analyze security {unit} | tail -1")
    assert float(said.split(f"{unit}:")[1].split()[0]) <= 3.0, said


def test_debian_made_no_cluster_of_its_own(lab: Lab) -> None:
    for host in lab.groups["postgres"]:
        assert lab.out(host, "pg_lsclusters -h") == ""


@pytest.mark.parametrize("data", [False, True])
def test_what_contradicts_a_cluster_is_refused_before_anything_changes(lab: Lab, data: bool) -> None:
    """Asked in check mode, of a cluster by another name, which etcd does not know though this host was part of one."""
    host = lab.groups["postgres"][-1]
    foreign = "/var/lib/postgresql/17/foreign"
    if data:
        lab.run(host, f"install -d -o postgres {foreign} && echo 17 > {foreign}/PG_VERSION")
    try:
        refused = lab.play("../tests/integration/postgres", "--check", "-e", "postgres_cluster=foreign")
    finally:
        lab.run(host, f"rm -rf {foreign}")
    assert refused.recap[host]["failed"] == 1
    assert refused.recap[host]["changed"] == 0
    said = " ".join(refused.output.split())
    if data:
        assert f"{host} holds a PostgreSQL cluster in {foreign} that etcd does not know as foreign" in said
    else:
        assert f"{host} has no database, and to start it now could make an empty cluster" in said
        assert "it was formed before, but etcd has forgotten it" in said


def test_drift_of_what_members_share_and_of_roles_is_found_by_check_and_repaired(lab: Lab) -> None:
    host, primary = lab.groups["postgres"][0], leader(lab)
    edit = "patronictl -c /etc/patroni/config.yml edit-config --force -q -s maximum_lag_on_failover=7 -p work_mem=9MB"
    lab.run(host, edit)
    sql(lab, primary, "ALTER ROLE app SUPERUSER CONNECTION LIMIT 3; GRANT CONNECT ON DATABASE app TO PUBLIC;")
    # One change on the member that speaks for all, and one on that which leads; it may be the same.
    expected = dict(Counter([host, primary]))
    check = lab.play("../tests/integration/postgres", "--check", "--diff")
    assert check.changed == expected, check.output
    assert '-  "maximum_lag_on_failover": 7' in check.output
    assert '"work_mem": "9MB"' in check.output
    for line in ("role app: superuser: no", "role app: connection_limit: -1", "database app: rights of PUBLIC: none"):
        assert f"+{line}" in check.output
    repair = lab.play("../tests/integration/postgres")
    assert repair.changed == expected, repair.output
    shown = lab.out(host, "patronictl -c /etc/patroni/config.yml show-config")
    assert "maximum_lag_on_failover: 1048576" in shown
    assert "work_mem" not in shown
    assert sql(lab, primary, "select rolsuper, rolconnlimit from pg_roles where rolname = 'app'") == "f|-1"
    assert lab.play("../tests/integration/postgres").changed == {}


def test_a_member_that_looks_late_still_says_that_it_needs_a_restart(lab: Lab) -> None:
    members = lab.groups["postgres"]
    standby = next(host for host in members if host != leader(lab))
    play = "../tests/integration/patroni_config"
    lab.run(standby, "kill -STOP $(pgrep -xo patroni); (sleep 8; kill -CONT $(pgrep -xo patroni)) >/dev/null 2>&1 &")
    try:
        changed = lab.play(play, "-e", '{"parameters": {"max_worker_processes": 9}}')
        assert changed.returncode == 0, changed.output
        assert f"pending: {' '.join(sorted(members))}." in changed.output
    finally:
        back = lab.play(play, "-e", '{"parameters": {"max_worker_processes": 8}}')
    assert "pending: ." in back.output, back.output


def test_no_password_is_in_the_log_of_the_server(lab: Lab) -> None:
    for host in lab.groups["postgres"]:
        said = lab.run(host, "journalctl -u patroni -o cat | grep -c 'SCRAM-SHA-256[$]' || true").stdout.strip()
        assert said == "0"
