# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parameters of `kafka_resources` as declarations, as pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_plan import (
    DEFAULT,
    Acl,
    Entity,
    Quota,
    Topic,
    User,
    Wanted,
    entity_name,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENTITY_TYPES = {"client_id": "client-id", "ip": "ip", "user": "user"}


class DeclarationError(ValueError):
    """A value that is none of its kind; the text names the object and the value."""


def wanted(params: Mapping[str, Any]) -> Wanted:
    """All that is declared.

    Args:
        params: of the module, checked by its argument specification.

    Raises:
        DeclarationError: a value is none of its kind.
    """
    rules = [(acl, item["state"] == "present") for item in params["acls"] for acl in _acls(item)]
    return Wanted(
        topics=tuple(_topic(item) for item in params["topics"]),
        acls=tuple(acl for acl, present in rules if present),
        absent_acls=tuple(acl for acl, present in rules if not present),
        quotas=tuple(_quota(item) for item in params["quotas"]),
        users=tuple(_user(item) for item in params["users"]),
    )


def _topic(item: Mapping[str, Any]) -> Topic:
    return Topic(
        name=item["name"],
        partitions=item["partitions"],
        replication_factor=item["replication_factor"],
        configs={
            str(key): config_text(value, f"topic {item['name']}: {key}") for key, value in item["configs"].items()
        },
        purge_configs=item["purge_configs"],
        present=item["state"] == "present",
    )


def config_text(value: object, what: str) -> str | None:
    """A value of a configuration as brokers read it.

    Args:
        value: as YAML has it.
        what: the object and the key, for the message.

    Raises:
        DeclarationError: it is neither a text, a number, a truth value, a list of these nor null.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, str | int) for part in value):
        return ",".join(map(str, value))
    raise DeclarationError(f"{what} is {value!r}: write a text, a number, true, false, a list of words, or null.")


def _acls(item: Mapping[str, Any]) -> list[Acl]:
    return [
        Acl(
            resource_type=item["resource_type"],
            resource_name=item["resource_name"],
            pattern_type=item["pattern_type"],
            principal=item["principal"],
            host=item["host"],
            operation=operation,
            permission=item["permission"],
        )
        for operation in item["operations"]
    ]


def _quota(item: Mapping[str, Any]) -> Quota:
    entity: Entity = tuple(
        sorted(
            (kind, None if item[option] == DEFAULT else str(item[option]))
            for option, kind in _ENTITY_TYPES.items()
            if item[option] is not None
        )
    )
    name = entity_name(entity)
    return Quota(
        entity=entity,
        values={str(key): _limit(value, f"quota {name}: {key}") for key, value in item["values"].items()},
        purge_values=item["purge_values"],
        present=item["state"] == "present",
    )


def _limit(value: object, what: str) -> float | None:
    if value is None:
        return None
    try:
        return float(str(value))
    except ValueError as error:
        raise DeclarationError(f"{what} is {value!r}: write a number, or null for no limit.") from error


def _user(item: Mapping[str, Any]) -> User:
    return User(
        name=item["name"],
        mechanism=item["mechanism"],
        password=item["password"] or "",
        iterations=item["iterations"],
        present=item["state"] == "present",
    )
