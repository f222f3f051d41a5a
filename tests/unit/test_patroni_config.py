# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one PATCH that makes Patroni's dynamic configuration what is declared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.patroni_dynamic import merge, plan, same
from ansible_collections.groundplane.onprem.plugins.modules import patroni_config
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from ansible_collections.groundplane.onprem.plugins.module_utils.patroni_cluster import PatroniCluster

LIVE: dict[str, Any] = {
    "ttl": 30,
    "loop_wait": 10,
    "postgresql": {"use_pg_rewind": True, "parameters": {"max_connections": "100", "jit": "off"}, "pg_hba": ["a", "b"]},
}


def test_what_is_as_declared_sends_nothing() -> None:
    assert plan(LIVE, LIVE, exact=True).patch == {}
    declared = {
        "ttl": "30",
        "postgresql": {"use_pg_rewind": "on", "parameters": {"max_connections": 100, "jit": False}},
    }
    assert plan(LIVE, declared, exact=False).patch == {}


def test_only_what_differs_is_sent() -> None:
    steps = plan(LIVE, {"ttl": 20, "postgresql": {"parameters": {"max_connections": 200}}}, exact=False)
    assert steps.patch == {"ttl": 20, "postgresql": {"parameters": {"max_connections": 200}}}
    assert steps.after["postgresql"]["parameters"] == {"max_connections": 200, "jit": "off"}
    assert steps.undeclared == (
        "loop_wait",
        "postgresql.parameters.jit",
        "postgresql.pg_hba",
        "postgresql.use_pg_rewind",
    )


def test_null_removes_and_is_satisfied_by_absence() -> None:
    declared = {"postgresql": {"parameters": {"jit": None, "work_mem": None}}}
    steps = plan(LIVE, declared, exact=False)
    assert steps.patch == {"postgresql": {"parameters": {"jit": None}}}
    assert plan(steps.after, declared, exact=False).patch == {}


def test_exact_removes_what_nobody_declares() -> None:
    declared = {"ttl": 30, "postgresql": {"parameters": {"max_connections": 100}}}
    steps = plan(LIVE, declared, exact=True)
    assert steps.patch == {
        "loop_wait": None,
        "postgresql": {"use_pg_rewind": None, "pg_hba": None, "parameters": {"jit": None}},
    }
    assert steps.undeclared == ()


def test_a_mapping_replaces_a_scalar_and_a_list_is_replaced_whole() -> None:
    assert plan({"slots": 1}, {"slots": {}}, exact=False).patch == {"slots": {}}
    assert plan(LIVE, {"postgresql": {"pg_hba": ["b", "a"]}}, exact=False).patch == {
        "postgresql": {"pg_hba": ["b", "a"]}
    }


@pytest.mark.parametrize(
    ("live", "declared", "equal"),
    [
        ("100", 100, True),
        (True, "on", True),
        (False, "off", True),
        ("on", True, True),
        (1, True, False),
        (0.9, "0.9", True),
        ("64MB", "64MB", True),
        ("64MB", "65536kB", False),
        ([1], ["1"], True),
        ([1, 2], [1], False),
        ({}, "", False),
    ],
)
def test_what_means_the_same_is_the_same(live: object, declared: object, equal: bool) -> None:
    assert same(live, declared) is equal


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return value


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.sampled_from(["on", "off", "x"]), st.just([1]))
KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3))
DECLARED = st.dictionaries(KEYS, VALUES, max_size=3)
LIVES = DECLARED.map(without_null)


@given(LIVES, DECLARED, st.booleans())
def test_one_patch_is_enough_and_the_second_run_sends_nothing(
    live: dict[str, Any], declared: dict[str, Any], exact: bool
) -> None:
    steps = plan(live, declared, exact=exact)
    assert merge(live, steps.patch) == steps.after
    again = plan(steps.after, declared, exact=exact)
    assert again.patch == {}
    if exact:
        assert plan(steps.after, declared, exact=False).undeclared == ()
    else:
        assert set(live) - set(declared) <= set(steps.after)


@given(LIVES)
def test_what_is_live_declared_back_is_no_change(live: dict[str, Any]) -> None:
    steps = plan(live, live, exact=True)
    assert (steps.patch, steps.after) == ({}, live)


class Story:
    """When members last read the store, look by look; the last look is what stays."""

    def __init__(self, *looks: dict[str, int]) -> None:
        self.looks = list(looks)

    def last_seen(self) -> dict[str, int]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


class Clock:
    """Time that passes while somebody sleeps and not else, so that a busy machine has as many looks as an idle one."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("looks", "behind"),
    [
        ([{"a": 7, "b": 7}, {"a": 8, "b": 8}, {"a": 11, "b": 11}], []),
        ([{"a": 7, "b": 7}, {"a": 8, "b": 7}, {"a": 11, "b": 9}, {"a": 14, "b": 12}], []),
        ([{"a": 7, "b": 7}, {"a": 8, "b": 7}, {"a": 11, "b": 9}], ["b"]),  # read it, and may not have acted on it
        ([{"a": 7, "b": 0}, {"a": 8, "b": 0}, {"a": 11, "b": 0}], ["b"]),  # runs and does not answer
        ([{"a": 7, "b": 0}, {"a": 8, "b": 7}, {"a": 11, "b": 9}], ["b"]),  # told first of a read before the change
        ([{"a": 7}, {"a": 8, "b": 8}, {"a": 11, "b": 11}, {"a": 11, "b": 14}], []),  # started meanwhile
        ([{"a": 7}, {"a": 9}, {}, {"a": 12}], []),
    ],
)
def test_members_are_waited_for_until_they_have_read_and_acted(
    monkeypatch: pytest.MonkeyPatch, looks: list[dict[str, int]], behind: list[str]
) -> None:
    monkeypatch.setattr(patroni_config, "time", Clock())
    assert patroni_config.wait_until_taken(cast("PatroniCluster", Story(*looks)), settle=30) == behind
