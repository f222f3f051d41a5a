# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clients of the database and of Kubernetes that fault drills share."""

from __future__ import annotations

import fcntl
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import leader, sql, wait_until_sound
from tests.faults.kubernetes_clients import drill_accounts
from tests.faults.postgres_writer import Account, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.kubernetes_clients import Account as ApiAccount
    from tests.kubernetes import Cluster
    from tests.lab import Lab

CLIENT = "router1"  # has a leg on the network of the virtual address
API_CLIENT = "bastion1"  # may use the API, and reaches its virtual address by way of the router


@pytest.fixture(scope="session")
def drill_account(lab: Lab) -> Iterator[Account]:
    """A role and a database of their own, gone at the end, and a client that can speak with them."""
    lab.run(
        CLIENT,
        "dpkg -s python3-psycopg >/dev/null 2>&1 ||"
        " DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install python3-psycopg",
        timeout=300,
    )
    facts = lab.hostvars[CLIENT]
    wait_until_sound(lab)
    name, password = f"drill_{secrets.token_hex(4)}", secrets.token_urlsafe(32)
    sql(
        lab,
        leader(lab),
        f"""
        SET log_statement = 'none';
        SET log_min_duration_statement = -1;
        CREATE ROLE {name} LOGIN PASSWORD '{password}';
        CREATE DATABASE {name} OWNER {name};
        \\connect {name}
        SET ROLE {name};
        CREATE SCHEMA {name};
        CREATE TABLE {name}.writes (run text NOT NULL, id bigint NOT NULL, PRIMARY KEY (run, id));
        """,
    )
    address = lab.vip()
    yield Account(
        client=CLIENT,
        address=address,
        connect={
            "host": f"primary.postgres.{facts['site_domain']}",
            "hostaddr": address,
            "port": "5432",
            "dbname": name,
            "user": name,
            "password": password,
            "sslmode": "verify-full",
            "sslrootcert": "/etc/groundplane/pki/ca.crt",
            "sslcert": "/etc/groundplane/pki/host.crt",
            "sslkey": "/etc/groundplane/pki/host.key",
        },
    )
    wait_until_sound(lab)
    sql(lab, leader(lab), f"DROP DATABASE {name} WITH (FORCE); DROP ROLE {name};")


@pytest.fixture
def postgres_writer(lab: Lab, drill_account: Account) -> Writer:
    """A client that inserts a row every 50 ms through the virtual address while it is entered."""
    return Writer(lab, drill_account)


@pytest.fixture(scope="session")
def drill_api(cluster: Cluster) -> Iterator[ApiAccount]:
    """An account of the API for drills, gone at the end."""
    cluster.wait_until_sound()
    yield from drill_accounts(cluster, API_CLIENT)


@pytest.fixture(autouse=True)
def one_drill_at_a_time(lab: Lab) -> Iterator[None]:
    """What a drill sees is its own doing: other drills against the same lab wait for it."""
    with (lab.directory / "drill.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
