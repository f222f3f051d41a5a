# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate against four real servers of MinIO: whom it lets go, whom it does not, and when it is content again."""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Health, Wish, decide
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_run import Gate, GateError, Patience

from tests.programs.cluster import running
from tests.programs.store import Quartet

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 120.0
"""In which what is waited for must be there."""


class Held:
    """A lock that nobody else wants."""

    def check(self) -> None:
        """It is ours."""


def gate(quartet: Quartet, member: str, ask: float = SECONDS) -> Gate[Any]:
    return Gate(quartet.servers(), Wish(member), Patience(ask, SECONDS), lambda: nullcontext(Held()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def quartet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quartet]:
    """Four servers; a test leaves them as sound as it found them."""
    with running(Quartet(tmp_path_factory.mktemp("quartet"))) as quartet:
        yield quartet


def healths(quartet: Quartet) -> list[Health]:
    return [server.health for server in quartet.servers().read().members]


def until_sound(quartet: Quartet) -> None:
    """Until each could be spared."""
    deadline = time.monotonic() + SECONDS
    for name in quartet.ports:
        while not decide(quartet.servers().read(name), Wish(name)).allowed:
            assert time.monotonic() < deadline, decide(quartet.servers().read(name), Wish(name)).reason
            time.sleep(0.5)


def test_each_may_leave_while_all_serve_and_is_back_when_the_gate_is_content(quartet: Quartet) -> None:
    until_sound(quartet)

    def act(_state: Any) -> None:
        quartet.send("data2", signal.SIGTERM)
        quartet.launch("data2")

    outcome = gate(quartet, "data2").leave(act, back=True)
    assert outcome.reason == "object store test keeps its write quorum without data2"
    assert healths(quartet) == [Health.SERVING] * 4


def test_while_one_is_down_no_other_leaves(quartet: Quartet) -> None:
    until_sound(quartet)
    quartet.send("data4", signal.SIGKILL)
    verdict = decide(quartet.servers().read("data1"), Wish("data1"))
    assert not verdict.allowed
    # 4 drives, 2 of parity: writes need 3, so that a second one is not spared.
    deadline = time.monotonic() + SECONDS
    while "data4 is down" not in (reason := decide(quartet.servers().read("data1"), Wish("data1")).reason):
        assert time.monotonic() < deadline, reason
        time.sleep(0.5)
    with pytest.raises(GateError, match="cannot lose data1 now: data4 is down"):
        gate(quartet, "data1", ask=2).leave(lambda _state: pytest.fail("it was let go"), back=True)
    # Who is down may be started.
    gate(quartet, "data4").leave(lambda _state: quartet.launch("data4"), back=True)
    until_sound(quartet)


def test_while_one_is_frozen_no_other_leaves_though_the_others_do_not_know_yet(quartet: Quartet) -> None:
    until_sound(quartet)
    quartet.send("data3", signal.SIGSTOP)
    try:
        verdict = decide(quartet.servers().read("data1"), Wish("data1"))
        assert not verdict.allowed
        assert "data3 is unknown" in verdict.reason
    finally:
        quartet.send("data3", signal.SIGCONT)
    until_sound(quartet)


def test_two_that_are_down_leave_nobody_a_quorum(quartet: Quartet) -> None:
    until_sound(quartet)
    for name in ("data3", "data4"):
        quartet.send(name, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while (seen := healths(quartet)) != [Health.FAILING] * 2 + [Health.DOWN] * 2:
        assert time.monotonic() < deadline, seen
        time.sleep(0.5)
    verdict = decide(quartet.servers().read("data1"), Wish("data1"))
    assert (verdict.allowed, verdict.last_resort) == (True, True)
    for name in ("data3", "data4"):
        quartet.launch(name)
        gate(quartet, name).settle()
    until_sound(quartet)


def test_a_server_with_another_environment_waits_for_its_like_and_the_others_serve(quartet: Quartet) -> None:
    # So what is in it, like the program and the drives, is not changed one server at a time.
    until_sound(quartet)

    def act(_state: Any) -> None:
        quartet.send("data2", signal.SIGTERM)
        quartet.launch("data2", MINIO_STORAGE_CLASS_STANDARD="EC:1")

    other = Gate(quartet.servers(), Wish("data2"), Patience(SECONDS, 20), lambda: nullcontext(Held()))  # type: ignore[arg-type]
    with pytest.raises(GateError, match=r"data2 is .*: data2 did not recover within 20 s"):
        other.leave(act, back=True)
    assert [health for name, health in zip(quartet.ports, healths(quartet), strict=True) if name != "data2"] == [
        Health.SERVING
    ] * 3
    quartet.send("data2", signal.SIGKILL)
    quartet.launch("data2")
    gate(quartet, "data2").settle()
    until_sound(quartet)
