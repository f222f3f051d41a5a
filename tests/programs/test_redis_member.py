# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What starts Redis on a host, against real servers: who is the master, and that nobody who has nothing ever is."""

from __future__ import annotations

import json
import shutil
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_wire import RedisError, ReplyError, parse_info

from tests.programs.cluster import running
from tests.programs.redis_trio import DOWN_AFTER_MS, Trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ansible_collections.groundplane.onprem.plugins.module_utils.redis_wire import Reply

KEYS = 200
MANAGED = ("server.conf", "sentinel.conf", "server.acl", "sentinel.acl", "member.json")


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Three members with data; a test leaves them as sound as it found them."""
    with running(Trio(tmp_path_factory.mktemp("trio"))) as trio:
        for number in range(KEYS):
            trio.ask(trio.master(), "SET", f"key{number}", number)
        yield trio


@pytest.fixture(autouse=True)
def sound(request: pytest.FixtureRequest) -> Iterator[None]:
    if "trio" not in request.fixturenames:
        yield
        return
    trio: Trio = request.getfixturevalue("trio")
    trio.until(lambda: not trio.missing(), "all are well before a test")
    yield
    trio.until(lambda: not trio.missing(), "all are well after a test")
    assert keys(trio) == KEYS


def keys(trio: Trio) -> int:
    found = [trio.ask(trio.master(), "GET", f"key{number}") for number in range(0, KEYS, 20)]
    assert found == [str(number) for number in range(0, KEYS, 20)]
    size = trio.ask(trio.master(), "DBSIZE")
    assert isinstance(size, int)
    return size


def empty(trio: Trio, name: str) -> None:
    """What a disk that was exchanged looks like."""
    trio.send(name, signal.SIGKILL)
    shutil.rmtree(trio.hosts[name].data)
    trio.hosts[name].data.mkdir()


def answers(trio: Trio, name: str) -> bool:
    with suppress(RedisError):
        trio.ask(name, "ROLE", user="probe")
        return True
    return False


def test_a_master_that_lost_its_data_waits_until_another_is_promoted_and_copies_it(trio: Trio) -> None:
    first = trio.master()
    empty(trio, first)
    trio.launch(first, "server")  # at once: long before Sentinels miss it
    until = time.monotonic() + DOWN_AFTER_MS / 1000
    while time.monotonic() < until:
        assert not answers(trio, first)
        time.sleep(0.1)
    trio.until(lambda: trio.master() not in ("", first), "another is the master")
    assert keys(trio) == KEYS
    trio.run(first, "settle")
    log = (trio.hosts[first].directory / "server.log").read_text()
    assert "it has no data: replicas would lose theirs" in log
    assert trio.last_start(first).startswith("a replica of")
    assert trio.hosts[first].data.joinpath("whole").exists()


def test_a_replica_that_lost_its_data_is_not_promoted_until_it_has_copied_them(trio: Trio) -> None:
    name = next(name for name in trio.names if name != trio.master())
    empty(trio, name)
    trio.launch(name, "server")
    trio.until(lambda: answers(trio, name), "it answers")
    assert trio.ask(name, "CONFIG", "GET", "replica-priority", user="admin") == ["replica-priority", "0"]
    assert not trio.hosts[name].data.joinpath("whole").exists()
    trio.run(name, "settle")
    assert trio.ask(name, "CONFIG", "GET", "replica-priority", user="admin") == ["replica-priority", "100"]
    assert trio.hosts[name].data.joinpath("whole").exists()


def test_an_empty_replica_does_not_start_without_a_master(trio: Trio) -> None:
    first = trio.master()
    name = next(name for name in trio.names if name != first)
    for other in trio.names:
        if other not in (first, name):
            trio.send(other, signal.SIGKILL)  # nobody is left to be promoted
    empty(trio, name)
    trio.send(first, signal.SIGKILL)
    trio.launch(name, "server")
    time.sleep(DOWN_AFTER_MS / 1000 + 1.5)
    assert not answers(trio, name)
    for other in trio.names:
        if other != name:
            trio.launch(other, "server")
    trio.run(name, "settle")


def test_after_all_stood_still_somebody_with_all_data_is_the_master(trio: Trio) -> None:
    first = trio.master()
    for name in trio.names:
        trio.send(name, signal.SIGTERM, "sentinel", "server")
    for name in sorted(trio.names, key=lambda name: name == first):  # the master is the last to come
        trio.launch(name, "server")
        trio.launch(name, "sentinel")
    trio.until(lambda: trio.master() != "", "somebody is the master")  # another one, where that took too long


def test_a_host_alone_is_no_master(trio: Trio) -> None:
    """Its Sentinel may name it for ever: a majority is elsewhere."""
    first = trio.master()
    others = [name for name in trio.names if name != first]
    for name in trio.names:
        trio.send(name, signal.SIGTERM, "sentinel", "server")
    trio.launch(first, "sentinel")
    trio.launch(first, "server")
    time.sleep(3)
    assert not answers(trio, first)
    for name in others:
        trio.launch(name, "sentinel")
        trio.launch(name, "server")
    trio.until(lambda: answers(trio, first), "it starts")


def test_a_sentinel_without_memory_asks_the_others_and_forgets_strangers(trio: Trio) -> None:
    name = next(name for name in trio.names if name != trio.master())
    state = trio.hosts[name].directory / "state/sentinel.conf"
    trio.send(name, signal.SIGTERM, "sentinel")
    state.write_text("")
    trio.launch(name, "sentinel")
    trio.until(lambda: not trio.missing(), "it knows all")
    trio.send(name, signal.SIGTERM, "sentinel")
    stranger = f"sentinel known-sentinel test 127.0.0.1 1 {'0' * 40}"
    state.write_text(f"{state.read_text()}\n{stranger}\n")
    trio.launch(name, "sentinel")
    trio.until(lambda: not trio.missing(), "it knows all")
    assert stranger not in state.read_text()


def test_what_we_manage_is_not_written_by_failovers(trio: Trio) -> None:
    managed = [trio.hosts[name].directory / file for name in trio.names for file in MANAGED]
    before = [path.read_bytes() for path in managed]
    first = trio.master()
    trio.send(first, signal.SIGKILL)
    trio.until(lambda: trio.master() not in ("", first), "another is the master")
    trio.launch(first, "server")
    trio.until(lambda: not trio.missing(), "all are well")
    assert [path.read_bytes() for path in managed] == before


def test_users_and_certificates_are_taken_without_a_restart(trio: Trio) -> None:
    name = trio.master()
    kept = trio.connect(name)
    users = trio.hosts[name].directory / "server.acl"
    before = users.read_text()
    users.write_text(before + "user guest on nopass resetchannels -@all +ping\n")
    serial = certificate(trio, name)
    trio.authority.issue("server")
    try:
        trio.run(name, "reload")
        assert trio.ask(name, "PING", user="guest") == "PONG"
        assert certificate(trio, name) != serial
        if version(trio, name) >= (7, 4):  # older ones end all connections when they load users
            assert kept.ask("PING") == "PONG"
    finally:
        kept.close()
        users.write_text(before)
        for one in trio.names:
            trio.run(one, "reload")
    with pytest.raises(ReplyError, match="WRONGPASS"):
        trio.ask(name, "PING", user="guest")


def version(trio: Trio, name: str) -> tuple[int, ...]:
    told = parse_info(str(trio.ask(name, "INFO", "server", user="admin")))
    return tuple(int(part) for part in told["redis_version"].split("."))


def certificate(trio: Trio, name: str) -> bytes:
    connection = trio.connect(name)
    try:
        shown = connection._socket.getpeercert(binary_form=True)
    finally:
        connection.close()
    assert shown is not None
    return shown


def test_one_alone_is_formed_and_starts_again(tmp_path: Path) -> None:
    with running(Trio(tmp_path, names=("node1",), minimum=0)) as one:
        assert one.ask("node1", "SET", "a", "b") == "OK"
        one.restart("node1")
        one.restart("node1", "sentinel")
        answer: list[Reply] = []

        def told() -> bool:
            with suppress(RedisError):
                answer.append(one.ask("node1", "GET", "a"))
            return bool(answer)

        one.until(told, "it answers")
        assert answer == ["b"]


def test_a_host_that_may_not_be_the_first_starts_nothing_empty(tmp_path: Path) -> None:
    with running(Trio(tmp_path, names=("node1",), minimum=0)) as one:
        empty(one, "node1")
        one.launch("node1", "server")
        time.sleep(2)
        assert not answers(one, "node1")
        log = (one.hosts["node1"].directory / "server.log").read_text()
        assert "All data are lost" in log


def test_a_file_with_an_unknown_key_is_told(tmp_path: Path) -> None:
    one = Trio(tmp_path, names=("node1",), minimum=0)
    one.prepare()
    path = one.hosts["node1"].directory / "member.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    with pytest.raises(AssertionError, match="keys that are not known"):
        one.run("node1", "settle")
