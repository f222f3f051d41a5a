# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules that converge many declared objects in one call have in common: changes in words, and their answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class RefusedError(Exception):
    """Nothing was touched; the text has a sentence for each reason."""

    def __init__(self, reasons: Sequence[str]) -> None:
        """Keep the reasons."""
        super().__init__(" ".join(reasons))
        self.reasons = list(reasons)


class UnfinishedError(Exception):
    """Something was done and something was not; the text says what was not, and why."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing of an object that differs, in words without secrets."""

    aspect: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is to be done to one object."""

    @property
    def subject(self) -> str:
        """The object, such as `topic orders` or `bucket orders`."""
        raise NotImplementedError

    def lines(self) -> list[Line]:
        """What differs."""
        raise NotImplementedError


def difference(changes: Iterable[Change]) -> tuple[str, str]:
    """The changes as a text before and a text after, one line each."""
    found = [(change.subject, line) for change in changes for line in change.lines()]
    before = "".join(f"{subject}: {line.aspect}: {line.before}\n" for subject, line in found)
    after = "".join(f"{subject}: {line.aspect}: {line.after}\n" for subject, line in found)
    return before, after


def summary(changes: Iterable[Change]) -> list[str]:
    """What changes, such as `topic orders: partitions`."""
    return [f"{change.subject}: {line.aspect}" for change in changes for line in change.lines()]


def result(changes: Sequence[Change]) -> dict[str, Any]:
    """The keys of a module's result that say what changes."""
    before, after = difference(changes)
    return {"changed": bool(changes), "changes": summary(changes), "diff": {"before": before, "after": after}}


def answer(module: Any, converge: Callable[[Any], dict[str, Any]], *errors: type[Exception]) -> None:
    """Converge, and end the module with what became of it.

    Args:
        module: an `AnsibleModule`.
        converge: gives the result of the module.
        errors: further ones that a user may cause, whose text says how.
    """
    try:
        module.exit_json(**converge(module))
    except RefusedError as error:
        module.fail_json(msg=f"Nothing was touched. {error}", refusals=error.reasons)
    except UnfinishedError as error:
        module.fail_json(msg=f"Not all was done, and a second run does the rest: {error}", changed=True)
    except errors as error:
        module.fail_json(msg=f"{error}")
