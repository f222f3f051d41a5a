# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan has what differs and nothing else; a server that took it needs no other."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import postgres_plan
from ansible_collections.groundplane.onprem.plugins.module_utils.postgres_plan import (
    Database,
    PlanError,
    Role,
    check_declarations,
    difference,
    plan,
    script,
    system_roles,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.postgres_scram import make_verifier
from hypothesis import given
from hypothesis import strategies as st

PASSWORD = "correct horse battery staple"


def server(**roles: dict[str, Any]) -> dict[str, Any]:
    """A server with these roles and the database `app` of the role `app`."""
    return {
        "recovery": False,
        "roles": roles,
        "databases": {
            "app": {"owner": "app", "connection_limit": -1, "public": None, "connect": None},
            "postgres": {
                "owner": "postgres",
                "connection_limit": -1,
                "public": None,
                "connect": ["pgbouncer", "rewind"],
            },
        },
        "lookup": None,
        "rewind": None,
        "extensions": {"app": ["plpgsql"]},
    }


def role(**different: Any) -> dict[str, Any]:
    """A role as the server tells of it."""
    plain = {
        "login": True,
        "superuser": False,
        "createdb": False,
        "createrole": False,
        "replication": False,
        "bypassrls": False,
        "inherit": True,
        "connection_limit": -1,
        "verifier": make_verifier(PASSWORD, iterations=1),
        "settings": None,
        "member_of": None,
    }
    return plain | different


def statements(changes: list[postgres_plan.Change]) -> list[str]:
    return [statement for change in changes for statement in change.sql]


def test_what_is_as_declared_needs_nothing() -> None:
    assert plan(server(app=role()), [Role("app", PASSWORD)], [Database("app", "app")]) == []


def test_a_new_role_and_its_database_come_in_that_order() -> None:
    state = server() | {"databases": {}}
    changes = statements(
        plan(state, [Role("orders", PASSWORD)], [Database("orders", "orders", extensions=("pgcrypto",))])
    )
    assert changes[0] == 'CREATE ROLE "orders"'
    assert changes[1] == 'ALTER ROLE "orders" LOGIN'
    assert changes[2].startswith('ALTER ROLE "orders" PASSWORD \'SCRAM-SHA-256$4096:')
    assert changes[3] == 'CREATE DATABASE "orders" OWNER "orders" TEMPLATE template0'
    assert changes[4] == 'REVOKE ALL ON DATABASE "orders" FROM PUBLIC'
    assert changes[5] == 'CREATE EXTENSION "pgcrypto" CASCADE'
    assert len(changes) == 6


@pytest.mark.parametrize("right", ["superuser", "createdb", "createrole", "bypassrls", "replication"])
def test_a_right_that_nobody_declared_is_taken_away(right: str) -> None:
    changes = plan(server(app=role(**{right: True})), [Role("app", PASSWORD)], [])
    assert statements(changes) == [f'ALTER ROLE "app" NO{right.upper()}']


@pytest.mark.parametrize(
    ("current", "declared", "sql"),
    [
        (role(login=False), Role("app", PASSWORD), 'ALTER ROLE "app" LOGIN'),
        (role(inherit=False), Role("app", PASSWORD), 'ALTER ROLE "app" INHERIT'),
        (role(connection_limit=5), Role("app", PASSWORD, connection_limit=7), 'ALTER ROLE "app" CONNECTION LIMIT 7'),
        (role(), Role("app"), 'ALTER ROLE "app" PASSWORD NULL'),
        (role(settings=["work_mem=8MB"]), Role("app", PASSWORD), 'ALTER ROLE "app" RESET "work_mem"'),
        (role(member_of=["boss"]), Role("app", PASSWORD), 'REVOKE "boss" FROM "app"'),
        (role(), Role("app", PASSWORD, member_of=("team",)), 'GRANT "team" TO "app"'),
        (
            role(settings=["a.b=1"]),
            Role("app", PASSWORD, settings={"a.b": "it's"}),
            """ALTER ROLE "app" SET "a"."b" = 'it''s'""",
        ),
        (
            role(settings=["search_path=x"]),
            Role("app", PASSWORD, settings={"search_path": "a\\b"}),
            """ALTER ROLE "app" SET "search_path" = E'a\\\\b'""",
        ),
    ],
)
def test_each_attribute_is_brought_back(current: dict[str, Any], declared: Role, sql: str) -> None:
    assert statements(plan(server(app=current), [declared], [])) == [sql]


def test_a_password_is_changed_only_when_it_differs_and_is_never_shown() -> None:
    changes = plan(server(app=role()), [Role("app", "another " + PASSWORD)], [])
    text = script(changes)
    assert [change.aspect for change in changes] == ["password"]
    assert PASSWORD not in text + repr(changes)
    before, after = difference(changes)
    assert (before, after) == ("role app: password: another one\n", "role app: password: as declared\n")


def test_a_database_is_brought_back() -> None:
    state = server(app=role(), clerk=role())
    state["databases"]["app"] |= {"owner": "postgres", "connection_limit": 3, "public": ["CONNECT", "TEMPORARY"]}
    declared = Database("app", "app", connect=("clerk",), extensions=("plpgsql", "citext"))
    changes = plan(state, [Role("app", PASSWORD), Role("clerk", PASSWORD)], [declared])
    assert statements(changes) == [
        'ALTER DATABASE "app" OWNER TO "app"',
        'ALTER DATABASE "app" CONNECTION LIMIT -1',
        'REVOKE ALL ON DATABASE "app" FROM PUBLIC',
        'GRANT CONNECT ON DATABASE "app" TO "clerk"',
        'CREATE EXTENSION "citext" CASCADE',
    ]
    assert script(changes).splitlines()[-2:] == ['\\connect "app"', 'CREATE EXTENSION "citext" CASCADE;']


def test_a_database_of_nobody_is_refused() -> None:
    with pytest.raises(PlanError, match="database 'app': there is no role 'ghost'"):
        plan(server(app=role()), [], [Database("app", "app", connect=("ghost",))])


def test_a_role_is_dropped_last_and_only_when_declared_absent() -> None:
    state = server(app=role(), old=role())
    assert plan(state, [Role("app", PASSWORD)], []) == []
    changes = plan(state, [Role("old", present=False), Role("app"), Role("gone", present=False)], [])
    assert statements(changes) == ['ALTER ROLE "app" PASSWORD NULL', 'DROP ROLE "old"']


def test_the_roles_of_the_platform_come_with_the_pooler_s_lookup() -> None:
    words = [f"{name} {PASSWORD}" for name in ("postgres", "replicator", "rewind", "pgbouncer")]
    state = server(postgres=role(superuser=True, createdb=True, createrole=True, bypassrls=True, replication=True))
    text = script(plan(state, [], [], system_roles(*words)))
    assert 'ALTER ROLE "replicator" REPLICATION;' in text
    assert 'ALTER ROLE "rewind" REPLICATION;' not in text
    assert "GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO rewind;" in text
    assert "GRANT EXECUTE ON FUNCTION pgbouncer.role_verifier(text) TO pgbouncer;" in text
    assert not any(word in text for word in words)
    made = {
        name: role(verifier=make_verifier(word, iterations=1), replication=name == "replicator")
        for name, word in zip(("postgres", "replicator", "rewind", "pgbouncer"), words, strict=True)
    }
    made["postgres"] |= dict.fromkeys(("superuser", "createdb", "createrole", "bypassrls", "replication"), True)
    done = server(**made) | {
        "rewind": list(postgres_plan.REWIND_FUNCTIONS),
        "lookup": {
            "body": postgres_plan.LOOKUP,
            "definer": True,
            "settings": ['search_path=""'],
            "owner": "postgres",
            "execute": ["pgbouncer"],
            "usage": ["pgbouncer"],
        },
    }
    assert plan(done, [], [], system_roles(*words)) == []
    for key, wrong in (("body", "SELECT 1"), ("definer", False), ("execute", ["pgbouncer", "public"])):
        broken = done | {"lookup": done["lookup"] | {key: wrong}}
        assert [change.subject for change in plan(broken, [], [], system_roles(*words))] == [
            "function pgbouncer.role_verifier"
        ]


@pytest.mark.parametrize(
    ("roles", "databases", "message"),
    [
        ([Role("a"), Role("a")], [], "role 'a' is declared twice"),
        ([Role("postgres")], [], "role 'postgres': the name is reserved"),
        ([Role("pg_x")], [], "role 'pg_x': the name is reserved"),
        ([Role("a b")], [], "role 'a b': a name is a letter"),
        ([Role("x" * 64)], [], "a name is a letter, then at most 62"),
        ([Role("a", settings={"x;y": "1"})], [], "role 'a': 'x;y' is not the name of a setting"),
        ([], [Database("template1", "a")], "database 'template1': the name is reserved"),
        ([], [Database("a\nb", "a")], "a name is a letter"),
    ],
)
def test_what_no_server_could_hold_is_refused(roles: list[Role], databases: list[Database], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_declarations(roles, databases)
    assert message in str(caught.value)


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_quoted_text_ends_where_it_ends(value: str) -> None:
    quoted = postgres_plan.literal(value)
    body = quoted.removeprefix("E")[1:-1]
    if quoted.startswith("E"):
        body = body.replace("\\\\", "\x00").replace("\\", "broken").replace("\x00", "\\")
    assert body.replace("''", "\x00").replace("'", "broken").replace("\x00", "'") == value
    name = postgres_plan.identifier(value)[1:-1]
    assert name.replace('""', "\x00").replace('"', "broken").replace("\x00", '"') == value
