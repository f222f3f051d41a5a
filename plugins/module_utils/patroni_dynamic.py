# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Patroni's dynamic configuration gets from what it is to what is declared: one PATCH, computed beforehand.

PATCH /config merges: a mapping goes into a mapping, null removes a key, anything else replaces (Patroni documentation,
rest_api, "Config endpoint").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be sent and what comes of it.

    Attributes:
        patch: the body of the PATCH; empty when nothing differs.
        after: the whole configuration afterwards.
        undeclared: dotted paths that are live and not declared, and stay.
    """

    patch: dict[str, Any]
    after: dict[str, Any]
    undeclared: tuple[str, ...] = field(default=())


def plan(live: Mapping[str, Any], declared: Mapping[str, Any], *, exact: bool) -> Plan:
    """Compare.

    Args:
        live: answer of GET /config.
        declared: what is to be; null means that the key is absent.
        exact: what is not declared is removed instead of only named.
    """
    patch, undeclared = _compare(live, declared, exact, "")
    return Plan(patch, merge(live, patch), tuple(undeclared))


def merge(live: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """What Patroni makes of a PATCH."""
    result = dict(live)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            old = result.get(key)
            result[key] = merge(old if isinstance(old, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def same(live: Any, declared: Any) -> bool:
    """Whether two values mean the same.

    Patroni stores what it was given, and a value that went through a template or through C(patronictl) may have become
    text: `100` and `"100"` are one setting, and so are `true` and `"on"`.
    """
    if isinstance(live, list) and isinstance(declared, list):
        return len(live) == len(declared) and all(map(same, live, declared))
    if (
        isinstance(live, Mapping)
        or isinstance(declared, Mapping)
        or isinstance(live, list)
        or isinstance(declared, list)
    ):
        return bool(live == declared)
    return _text(live) == _text(declared)


def _text(value: Any) -> str:
    text = str(value).strip()
    return {"true": "on", "yes": "on", "false": "off", "no": "off"}.get(text.lower(), text)


def _compare(
    live: Mapping[str, Any], declared: Mapping[str, Any], exact: bool, path: str
) -> tuple[dict[str, Any], list[str]]:
    patch: dict[str, Any] = {}
    undeclared: list[str] = []
    for key in sorted({*live, *declared}):
        at = f"{path}{key}"
        if key not in declared:
            if exact:
                patch[key] = None
            else:
                undeclared.append(at)
            continue
        wanted, found = declared[key], live.get(key)
        if wanted is None:
            if key in live:
                patch[key] = None
        elif isinstance(wanted, Mapping):
            # A mapping that stands where a scalar was replaces it; Patroni merges it into nothing.
            inner, more = _compare(found if isinstance(found, Mapping) else {}, wanted, exact, f"{at}.")
            undeclared += more
            if inner or not isinstance(found, Mapping):
                patch[key] = inner
        elif key not in live or not same(found, wanted):
            patch[key] = wanted
    return patch, undeclared
