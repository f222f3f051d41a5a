# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must change in a PostgreSQL server so that its roles and databases are as declared, as pure functions.

`STATE_QUERY` reads the server as one JSON value, `plan` compares it with what is declared, `script` is the input of
psql that makes it so. Nothing is ever dropped but a role that is declared absent, and PostgreSQL itself refuses that
for a role that owns something.

Source: PostgreSQL 17 documentation: system catalogs, "CREATE ROLE", "GRANT", "psql".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils import postgres_scram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
"""Names that are safe in psql's own commands, in PgBouncer's files and in connection strings."""

SETTING = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")

RESERVED = ("postgres", "replicator", "rewind", "pgbouncer", "public", "none")

LOOKUP = """
SELECT r.rolname::text, r.rolpassword
  FROM pg_catalog.pg_authid AS r
 WHERE r.rolname = wanted AND r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolreplication
   AND r.rolname NOT IN ('rewind', 'pgbouncer')
   AND (r.rolvaliduntil IS NULL OR r.rolvaliduntil > pg_catalog.now())
"""
"""Body of the function by which the pooler learns a role's verifier: never that of an administrator."""

_LOOKUP_HEAD = "pgbouncer.role_verifier(wanted text, OUT name text, OUT verifier text) RETURNS SETOF record"

REWIND_FUNCTIONS = (
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)
"""What pg_rewind calls on its source (PostgreSQL 17 documentation, "pg_rewind")."""

_STATE_QUERY = """
SELECT pg_catalog.json_build_object(
  'recovery', pg_catalog.pg_is_in_recovery(),
  'roles', (SELECT pg_catalog.json_object_agg(r.rolname, pg_catalog.json_build_object(
      'login', r.rolcanlogin, 'superuser', r.rolsuper, 'createdb', r.rolcreatedb, 'createrole', r.rolcreaterole,
      'replication', r.rolreplication, 'bypassrls', r.rolbypassrls, 'inherit', r.rolinherit,
      'connection_limit', r.rolconnlimit, 'verifier', r.rolpassword,
      'settings', (SELECT s.setconfig FROM pg_catalog.pg_db_role_setting AS s
                    WHERE s.setrole = r.oid AND s.setdatabase = 0),
      'member_of', (SELECT pg_catalog.json_agg(g.rolname) FROM pg_catalog.pg_auth_members AS m
                      JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid WHERE m.member = r.oid)))
    FROM pg_catalog.pg_authid AS r WHERE r.rolname !~ '^pg_'),
  'databases', (SELECT pg_catalog.json_object_agg(d.datname, pg_catalog.json_build_object(
      'owner', pg_catalog.pg_get_userbyid(d.datdba), 'connection_limit', d.datconnlimit,
      'public', (SELECT pg_catalog.json_agg(a.privilege_type)
                   FROM pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) AS a
                  WHERE a.grantee = 0),
      'connect', (SELECT pg_catalog.json_agg(g.rolname)
                    FROM pg_catalog.aclexplode(d.datacl) AS a JOIN pg_catalog.pg_roles AS g ON g.oid = a.grantee
                   WHERE a.privilege_type = 'CONNECT')))
    FROM pg_catalog.pg_database AS d WHERE NOT d.datistemplate),
  'lookup', (SELECT pg_catalog.json_build_object(
      'body', p.prosrc, 'definer', p.prosecdef, 'settings', p.proconfig,
      'owner', pg_catalog.pg_get_userbyid(p.proowner),
      'execute', (SELECT pg_catalog.json_agg(coalesce(g.rolname::text, 'public'))
                    FROM pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) AS a
                    LEFT JOIN pg_catalog.pg_roles AS g ON g.oid = a.grantee WHERE a.grantee <> p.proowner),
      'usage', (SELECT pg_catalog.json_agg(g.rolname)
                  FROM pg_catalog.aclexplode(n.nspacl) AS a JOIN pg_catalog.pg_roles AS g ON g.oid = a.grantee
                 WHERE a.privilege_type = 'USAGE' AND a.grantee <> n.nspowner))
    FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
   WHERE n.nspname = 'pgbouncer' AND p.proname = 'role_verifier'),
  'rewind', (SELECT pg_catalog.json_agg(f.signature)
    FROM (VALUES @REWIND@) AS f (signature)
    JOIN pg_catalog.pg_proc AS p ON p.oid = pg_catalog.to_regprocedure('pg_catalog.' || f.signature)
    CROSS JOIN LATERAL pg_catalog.aclexplode(p.proacl) AS a JOIN pg_catalog.pg_roles AS g ON g.oid = a.grantee
   WHERE g.rolname = 'rewind'));
"""
STATE_QUERY = _STATE_QUERY.replace("@REWIND@", ", ".join(f"('{signature}')" for signature in REWIND_FUNCTIONS))

EXTENSIONS_QUERY = """
SELECT coalesce(pg_catalog.json_agg(e.extname), '[]') FROM pg_catalog.pg_extension AS e;
"""


class PlanError(ValueError):
    """A declaration that cannot be carried out."""


@dataclass(frozen=True, slots=True)
class Role:
    """A role as declared.

    Attributes:
        name: its name.
        password: in plain text; None: the role has none and nobody can log in by one.
        login: may log in.
        inherit: has the rights of the roles that it is a member of.
        connection_limit: most connections at a time; -1 for no limit.
        member_of: roles that it is a member of, all of them.
        settings: server settings for its sessions, all of them.
        replication: may stream the write-ahead log.
        superuser: the one role that initdb made, which may do anything.
        present: False: the role is dropped.
    """

    name: str
    password: str | None = field(default=None, repr=False)
    login: bool = True
    inherit: bool = True
    connection_limit: int = -1
    member_of: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    replication: bool = False
    superuser: bool = False
    present: bool = True


@dataclass(frozen=True, slots=True)
class Database:
    """A database as declared.

    Attributes:
        name: its name.
        owner: the role that owns it.
        connection_limit: most connections at a time; -1 for no limit.
        connect: roles besides the owner that may connect. PUBLIC may not.
        extensions: extensions that it has at least.
    """

    name: str
    owner: str
    connection_limit: int = -1
    connect: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs.

    Attributes:
        subject: such as `role app`.
        aspect: such as `connection_limit`.
        before: what is; never a secret.
        after: what is declared; never a secret.
        sql: the statements that change it.
        database: where they are run.
    """

    subject: str
    aspect: str
    before: str
    after: str
    sql: tuple[str, ...] = field(repr=False)
    database: str = "postgres"


def system_roles(superuser: str, replicator: str, rewind: str, pgbouncer: str) -> tuple[Role, ...]:
    """The roles that the platform itself uses, with their passwords."""
    return (
        Role("postgres", superuser, replication=True, superuser=True),
        Role("replicator", replicator, replication=True),
        Role("rewind", rewind),
        Role("pgbouncer", pgbouncer),
    )


def check_declarations(roles: Sequence[Role], databases: Sequence[Database]) -> None:
    """Refuse what no server could hold.

    Raises:
        PlanError: a name that is twice there, reserved or malformed, a malformed setting.
    """
    for kind, names in (("role", [role.name for role in roles]), ("database", [item.name for item in databases])):
        for index, name in enumerate(names):
            if not NAME.fullmatch(name):
                raise PlanError(f"{kind} {name!r}: a name is a letter, then at most 62 letters, digits, _ or -")
            if name in names[:index]:
                raise PlanError(f"{kind} {name!r} is declared twice")
            if name in RESERVED or name.startswith(("pg_", "template")):
                raise PlanError(f"{kind} {name!r}: the name is reserved")
    for role in roles:
        for setting in role.settings:
            if not SETTING.fullmatch(setting):
                raise PlanError(f"role {role.name!r}: {setting!r} is not the name of a setting")


def plan(
    state: Mapping[str, Any], roles: Sequence[Role], databases: Sequence[Database], system: Sequence[Role] = ()
) -> list[Change]:
    """What must be done, in the order in which it must be done.

    Args:
        state: the result of `STATE_QUERY`, with `extensions`, a list by database name, for the databases that exist.
        roles: the declared roles.
        databases: the declared databases.
        system: the roles of the platform; with them goes the pooler's lookup.

    Raises:
        PlanError: a database whose owner is nobody.
    """
    present = [role for role in [*system, *roles] if role.present]
    known: dict[str, Any] = dict(state.get("roles") or {})
    changes = [change for role in present for change in _role(role, known.get(role.name))]
    changes += [change for role in present for change in _memberships(role, known.get(role.name))]
    names = set(known) | {role.name for role in present}
    for database in databases:
        for name in (database.owner, *database.connect):
            if name not in names:
                raise PlanError(f"database {database.name!r}: there is no role {name!r}")
        changes += _database(database, state)
    if system:
        changes += _rewind(state)
        changes += _lookup(state.get("lookup"))
        changes += _access(state, Database("postgres", "postgres", connect=("pgbouncer", "rewind")))
    changes += [
        Change(f"role {role.name}", "state", "present", "absent", (f"DROP ROLE {identifier(role.name)}",))
        for role in roles
        if not role.present and role.name in known
    ]
    return changes


def script(changes: Iterable[Change]) -> str:
    """The changes as the input of psql, which begins in the database `postgres`."""
    lines: list[str] = []
    database = "postgres"
    for change in changes:
        if change.database != database:
            database = change.database
            lines.append(f"\\connect {identifier(database)}")
        lines += [f"{statement};" for statement in change.sql]
    return "\n".join(lines) + "\n"


def difference(changes: Iterable[Change]) -> tuple[str, str]:
    """The changes as a text before and a text after, one line each."""
    found = list(changes)
    before = "".join(f"{change.subject}: {change.aspect}: {change.before}\n" for change in found)
    after = "".join(f"{change.subject}: {change.aspect}: {change.after}\n" for change in found)
    return before, after


def identifier(name: str) -> str:
    """A name quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A text quoted for SQL, whatever `standard_conforming_strings` says."""
    quoted = value.replace("'", "''")
    if "\\" not in quoted:
        return f"'{quoted}'"
    escaped = quoted.replace("\\", "\\\\")
    return f"E'{escaped}'"


_RIGHTS = ("superuser", "createdb", "createrole", "bypassrls")


def _role(role: Role, current: Mapping[str, Any] | None) -> Iterator[Change]:
    subject, name = f"role {role.name}", identifier(role.name)
    if current is None:
        yield Change(subject, "state", "absent", "present", (f"CREATE ROLE {name}",))
        # What CREATE ROLE gives a role that it is told nothing of.
        current = {"inherit": True, "connection_limit": -1}
    wanted = dict.fromkeys(_RIGHTS, role.superuser) | {
        "login": role.login,
        "inherit": role.inherit,
        "replication": role.replication,
    }
    for right, value in wanted.items():
        before = bool(current.get(right, False))
        if before != value:
            word = right.upper() if value else f"NO{right.upper()}"
            yield Change(subject, right, _yes(before), _yes(value), (f"ALTER ROLE {name} {word}",))
    before_limit = int(current.get("connection_limit", -1))
    if before_limit != role.connection_limit:
        sql = f"ALTER ROLE {name} CONNECTION LIMIT {role.connection_limit}"
        yield Change(subject, "connection_limit", str(before_limit), str(role.connection_limit), (sql,))
    yield from _password(role, current.get("verifier"))
    yield from _settings(role, current.get("settings") or [])


def _password(role: Role, verifier: str | None) -> Iterator[Change]:
    subject, name = f"role {role.name}", identifier(role.name)
    if role.password is None:
        if verifier is not None:
            yield Change(subject, "password", "one", "none", (f"ALTER ROLE {name} PASSWORD NULL",))
    elif not postgres_scram.matches(role.password, verifier):
        sql = f"ALTER ROLE {name} PASSWORD {literal(postgres_scram.make_verifier(role.password))}"
        yield Change(subject, "password", "none" if verifier is None else "another one", "as declared", (sql,))


def _settings(role: Role, current: Sequence[str]) -> Iterator[Change]:
    subject, name = f"role {role.name}", identifier(role.name)
    before = dict(item.split("=", 1) for item in current)
    for setting in sorted(set(before) | set(role.settings)):
        old, new = before.get(setting), role.settings.get(setting)
        if old != new:
            quoted = ".".join(identifier(part) for part in setting.split("."))
            action = f"RESET {quoted}" if new is None else f"SET {quoted} = {literal(new)}"
            sql = f"ALTER ROLE {name} {action}"
            yield Change(subject, f"settings.{setting}", old or "default", new or "default", (sql,))


def _memberships(role: Role, current: Mapping[str, Any] | None) -> Iterator[Change]:
    before = set((current or {}).get("member_of") or [])
    subject, name = f"role {role.name}", identifier(role.name)
    for group in sorted(set(role.member_of) - before):
        yield Change(subject, f"member_of {group}", "no", "yes", (f"GRANT {identifier(group)} TO {name}",))
    for group in sorted(before - set(role.member_of)):
        yield Change(subject, f"member_of {group}", "yes", "no", (f"REVOKE {identifier(group)} FROM {name}",))


def _database(database: Database, state: Mapping[str, Any]) -> Iterator[Change]:
    subject, name = f"database {database.name}", identifier(database.name)
    current = (state.get("databases") or {}).get(database.name)
    owner = identifier(database.owner)
    if current is None:
        yield Change(
            subject, "state", "absent", "present", (f"CREATE DATABASE {name} OWNER {owner} TEMPLATE template0",)
        )
        current = {"owner": database.owner, "connection_limit": -1}
    if current["owner"] != database.owner:
        sql = f"ALTER DATABASE {name} OWNER TO {owner}"
        yield Change(subject, "owner", str(current["owner"]), database.owner, (sql,))
    before = int(current["connection_limit"])
    if before != database.connection_limit:
        sql = f"ALTER DATABASE {name} CONNECTION LIMIT {database.connection_limit}"
        yield Change(subject, "connection_limit", str(before), str(database.connection_limit), (sql,))
    yield from _access(state, database)
    installed = set((state.get("extensions") or {}).get(database.name) or ["plpgsql"])
    for extension in database.extensions:
        if extension not in installed:
            sql = f"CREATE EXTENSION {identifier(extension)} CASCADE"
            yield Change(subject, f"extension {extension}", "absent", "present", (sql,), database.name)


def _access(state: Mapping[str, Any], database: Database) -> Iterator[Change]:
    """Who may connect: the owner, those who are named, and nobody else by way of PUBLIC."""
    subject, name = f"database {database.name}", identifier(database.name)
    current = (state.get("databases") or {}).get(database.name) or {"public": ["CONNECT", "TEMPORARY"]}
    public = sorted(current.get("public") or [])
    if public:
        sql = f"REVOKE ALL ON DATABASE {name} FROM PUBLIC"
        yield Change(subject, "rights of PUBLIC", ", ".join(public).lower(), "none", (sql,))
    for role in database.connect:
        if role != database.owner and role not in (current.get("connect") or []):
            sql = f"GRANT CONNECT ON DATABASE {name} TO {identifier(role)}"
            yield Change(subject, f"connect by {role}", "no", "yes", (sql,))


def _rewind(state: Mapping[str, Any]) -> Iterator[Change]:
    granted = state.get("rewind") or []
    for signature in REWIND_FUNCTIONS:
        if signature not in granted:
            sql = f"GRANT EXECUTE ON FUNCTION pg_catalog.{signature} TO rewind"
            yield Change("role rewind", f"execute {signature}", "no", "yes", (sql,))


def _lookup(current: Mapping[str, Any] | None) -> Iterator[Change]:
    """The function that the pooler asks. Whatever is wrong with it, it is made anew as a whole."""
    wanted = {
        "body": LOOKUP,
        "definer": True,
        "settings": ['search_path=""'],
        "owner": "postgres",
        "execute": ["pgbouncer"],
        "usage": ["pgbouncer"],
    }
    if current == wanted:
        return
    sql = (
        "CREATE SCHEMA IF NOT EXISTS pgbouncer AUTHORIZATION postgres",
        "DROP FUNCTION IF EXISTS pgbouncer.role_verifier(text)",
        f"CREATE FUNCTION {_LOOKUP_HEAD} LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $${LOOKUP}$$",
        "REVOKE ALL ON SCHEMA pgbouncer FROM PUBLIC",
        "REVOKE ALL ON FUNCTION pgbouncer.role_verifier(text) FROM PUBLIC",
        "GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer",
        "GRANT EXECUTE ON FUNCTION pgbouncer.role_verifier(text) TO pgbouncer",
    )
    before = "absent" if current is None else "another one"
    yield Change("function pgbouncer.role_verifier", "definition", before, "as declared", ("BEGIN", *sql, "COMMIT"))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
