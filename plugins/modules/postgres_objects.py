#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles and databases of a PostgreSQL server, converged over its unix socket."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_objects
short_description: Roles and databases of a PostgreSQL server are as declared
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Compares the server on this host with the declared roles and databases and changes what differs, over the unix
    socket, as the operating system's user C(postgres).
  - On a standby it changes nothing and says so in RV(primary), so that a play may call it on all members.
  - Passwords are turned into SCRAM verifiers on the host before the server sees them. They are in no argument,
    environment or log.
  - No declared role gets the rights of a superuser, and one that has them loses them. No database is ever dropped.
options:
  roles:
    description: Roles of applications and people.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the role.
        type: str
        required: true
      password:
        description: Its password. Without one the role cannot log in by password.
        type: str
      login:
        description: Whether it may log in.
        type: bool
        default: true
      inherit:
        description: Whether it has the rights of the roles that it is a member of without C(SET ROLE).
        type: bool
        default: true
      connection_limit:
        description: Most connections at a time, V(-1) for no limit.
        type: int
        default: -1
      member_of:
        description: The roles that it is a member of, and no others.
        type: list
        elements: str
        default: []
      settings:
        description: Server settings for its sessions, and no others, such as C(statement_timeout).
        type: dict
        default: {}
      state:
        description: V(absent) drops the role. PostgreSQL refuses while it owns something.
        type: str
        choices: [present, absent]
        default: present
  databases:
    description: Databases. Those that are not listed are left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the database.
        type: str
        required: true
      owner:
        description: The role that owns it.
        type: str
        required: true
      connection_limit:
        description: Most connections at a time, V(-1) for no limit.
        type: int
        default: -1
      connect:
        description: Roles besides the owner that may connect. PUBLIC may not.
        type: list
        elements: str
        default: []
      extensions:
        description: Extensions that it has at least.
        type: list
        elements: str
        default: []
  superuser_password:
    description: Password of the platform's role C(postgres), for administrators who come over the network.
    type: str
  replicator_password:
    description: Password of the platform's role C(replicator), by which standbys stream.
    type: str
  rewind_password:
    description: Password of the platform's role C(rewind), by which a former primary is wound back.
    type: str
  pgbouncer_password:
    description: Password of the platform's role C(pgbouncer), by which the pooler asks for verifiers.
    type: str
  socket_directory:
    description: Directory of the server's unix socket.
    type: path
    default: /run/postgresql
  port:
    description: Port in the name of the unix socket.
    type: int
    default: 5432
  user:
    description: Operating system's user that the server knows as its superuser.
    type: str
    default: postgres
attributes:
  check_mode:
    description: Reads the server and tells what would change. On a host without a server all is declared to change.
    support: full
  diff_mode:
    description: Shows each attribute that differs. Of passwords only that they differ.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
notes:
  - The four passwords of the platform's roles are given together or not at all.
"""

EXAMPLES = r"""
- name: The application has its role and its database
  groundplane.onprem.postgres_objects:
    roles:
      - name: orders
        password: "{{ orders_database_password }}"
        connection_limit: 50
        settings: {statement_timeout: 30s}
    databases:
      - name: orders
        owner: orders
        extensions: [pgcrypto]
"""

RETURN = r"""
primary:
  description: Whether the server of this host is the primary. When not, nothing was compared.
  type: bool
  returned: success
changes:
  description: What differed, one line each.
  type: list
  elements: str
  returned: success
  sample: ["role orders: connection_limit"]
unmanaged_roles:
  description: Roles of the server that are neither declared nor the platform's own.
  type: list
  elements: str
  returned: on a primary
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import postgres_plan

PLATFORM = ("superuser_password", "replicator_password", "rewind_password", "pgbouncer_password")

OPTIONS = (
    "-c log_statement=none -c log_min_duration_statement=-1 -c log_min_error_statement=panic -c lock_timeout=10s"
    " -c statement_timeout=60s -c client_min_messages=warning"
)
"""Of such a session the server's log keeps no statement, not even one that fails."""


class ServerError(Exception):
    """The server did not answer, or refused."""


class Server:
    """The server of this host, by psql over its unix socket."""

    def __init__(self, socket_directory: str, port: int, user: str) -> None:
        """Remember where the server is."""
        self.socket = Path(socket_directory) / f".s.PGSQL.{port}"
        self.command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
        if os.geteuid() == 0:
            self.command = ["runuser", "--user", user, "--", *self.command]
        self.environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "LC_ALL": "C.UTF-8",
            "PGHOST": socket_directory,
            "PGPORT": str(port),
            "PGUSER": user,
            "PGDATABASE": "postgres",
            "PGAPPNAME": "postgres_objects",
            "PGCONNECT_TIMEOUT": "10",
            "PGOPTIONS": OPTIONS,
        }

    def run(self, text: str) -> str:
        """What psql prints for this input.

        Raises:
            ServerError: psql is missing, the server does not answer, or a statement fails.
        """
        try:
            done = subprocess.run(
                self.command, input=text, env=self.environment, cwd="/", capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise ServerError(str(error)) from error
        if done.returncode:
            raise ServerError(done.stderr.strip() or f"psql ended with {done.returncode}")
        return done.stdout

    def state(self, databases: list[postgres_plan.Database]) -> dict[str, Any]:
        """The server as `postgres_plan.plan` wants it."""
        state: dict[str, Any] = json.loads(self.run(postgres_plan.STATE_QUERY))
        asked = [item.name for item in databases if item.extensions and item.name in (state["databases"] or {})]
        if asked and not state["recovery"]:
            text = "".join(
                f"\\connect {postgres_plan.identifier(name)}\n{postgres_plan.EXTENSIONS_QUERY}" for name in asked
            )
            lists = [json.loads(line) for line in self.run(text).splitlines() if line]
            state["extensions"] = dict(zip(asked, lists, strict=True))
        return state


def role(parameters: dict[str, Any]) -> postgres_plan.Role:
    """A role as the module's parameters declare it."""
    return postgres_plan.Role(
        name=parameters["name"],
        password=parameters["password"],
        login=parameters["login"],
        inherit=parameters["inherit"],
        connection_limit=parameters["connection_limit"],
        member_of=tuple(parameters["member_of"]),
        settings={key: str(value) for key, value in parameters["settings"].items()},
        present=parameters["state"] == "present",
    )


def database(parameters: dict[str, Any]) -> postgres_plan.Database:
    """A database as the module's parameters declare it."""
    return postgres_plan.Database(
        name=parameters["name"],
        owner=parameters["owner"],
        connection_limit=parameters["connection_limit"],
        connect=tuple(parameters["connect"]),
        extensions=tuple(parameters["extensions"]),
    )


def converge(module: AnsibleModule) -> dict[str, Any]:
    """Compare, change unless in check mode, and give the module's result.

    Raises:
        ServerError: the server does not answer, or refuses.
        postgres_plan.PlanError: the declarations make no sense.
    """
    parameters = module.params
    roles = [role(item) for item in parameters["roles"]]
    databases = [database(item) for item in parameters["databases"]]
    passwords = [parameters[name] for name in PLATFORM]
    system = () if None in passwords else postgres_plan.system_roles(*passwords)
    postgres_plan.check_declarations(roles, databases)
    server = Server(parameters["socket_directory"], parameters["port"], parameters["user"])
    if module.check_mode and not server.socket.exists():
        return {"changed": True, "primary": False, "changes": ["there is no server on this host yet"]}
    state = server.state(databases)
    if state["recovery"]:
        return {"changed": False, "primary": False, "changes": []}
    changes = postgres_plan.plan(state, roles, databases, system)
    if changes and not module.check_mode:
        server.run(postgres_plan.script(changes))
    before, after = postgres_plan.difference(changes)
    managed = {item.name for item in (*roles, *system)} | {parameters["user"]}
    return {
        "changed": bool(changes),
        "primary": True,
        "changes": [f"{change.subject}: {change.aspect}" for change in changes],
        "unmanaged_roles": sorted(set(state["roles"]) - managed),
        "diff": {"before": before, "after": after},
    }


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "roles": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "password": {"type": "str", "no_log": True},
                    "login": {"type": "bool", "default": True},
                    "inherit": {"type": "bool", "default": True},
                    "connection_limit": {"type": "int", "default": -1},
                    "member_of": {"type": "list", "elements": "str", "default": []},
                    "settings": {"type": "dict", "default": {}},
                    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                },
            },
            "databases": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "owner": {"type": "str", "required": True},
                    "connection_limit": {"type": "int", "default": -1},
                    "connect": {"type": "list", "elements": "str", "default": []},
                    "extensions": {"type": "list", "elements": "str", "default": []},
                },
            },
            "superuser_password": {"type": "str", "no_log": True},
            "replicator_password": {"type": "str", "no_log": True},
            "rewind_password": {"type": "str", "no_log": True},
            "pgbouncer_password": {"type": "str", "no_log": True},
            "socket_directory": {"type": "path", "default": "/run/postgresql"},
            "port": {"type": "int", "default": 5432},
            "user": {"type": "str", "default": "postgres"},
        },
        required_together=[PLATFORM],
        supports_check_mode=True,
    )
    try:
        result = converge(module)
    except (ServerError, postgres_plan.PlanError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
