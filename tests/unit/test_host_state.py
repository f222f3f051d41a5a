# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host tells preflight of itself, read from real files, and from the real machine where that is harmless."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from ansible_collections.groundplane.onprem.plugins.modules import host_state

if TYPE_CHECKING:
    from pathlib import Path

HARDWARE = bytes.fromhex("0200000000aa")
MEMINFO = "MemTotal:        2014208 kB\nMemFree:          100000 kB\n"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [([], 1967), (["max\n"], 1967), (["536870912\n"], 512), (["9223372036854771712\n"], 1967)],
)
def test_a_control_groups_limit_counts_when_it_is_less(limits: list[str], expected: int) -> None:
    assert host_state.memory_mb(MEMINFO, limits) == expected


def test_the_file_system_of_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    parent = host_state.filesystem_of(tmp_path)
    below = host_state.filesystem_of(tmp_path / "var" / "lib" / "service")
    assert below["device"] == parent["device"] == tmp_path.stat().st_dev
    assert below["populated"] is False
    assert os.path.ismount(below["mount"])
    assert 0 < below["free_gb"] <= below["size_gb"]


def test_a_directory_counts_as_populated_when_something_is_in_it(tmp_path: Path) -> None:
    assert host_state.filesystem_of(tmp_path)["populated"] is False
    (tmp_path / "x").touch()
    assert host_state.filesystem_of(tmp_path)["populated"] is True


@pytest.mark.parametrize(
    ("text", "holds"), [('{"pools": [[]]}', {"pools": [[]]}), ("", None), ("{", None), (None, None)]
)
def test_a_record_is_what_it_holds_and_nothing_where_it_holds_none(
    text: str | None, holds: object, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "formed").write_text(text)
    assert host_state.record_of(tmp_path / "formed") == holds


def test_time_daemons_are_told_by_their_process_names(tmp_path: Path) -> None:
    for number, name in enumerate(("chronyd", "chronyd", "systemd-timesyn", "bash"), start=1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "comm").write_text(f"{name}\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "comm").write_text("ntpd\n")
    assert host_state.time_daemons(tmp_path) == ["chrony", "systemd-timesyncd"]


def test_addresses_and_their_interfaces() -> None:
    listing = [
        {"ifname": "lo", "addr_info": [{"family": "inet", "local": "127.0.0.1"}, {"family": "inet6", "local": "::1"}]},
        {"ifname": "data", "addr_info": [{"family": "inet", "local": "10.0.0.1"}]},
        {"ifname": "down", "addr_info": []},
    ]
    assert host_state.interfaces_of(listing) == {"127.0.0.1": "lo", "::1": "lo", "10.0.0.1": "data"}


def test_the_question_names_nobody_as_its_sender() -> None:
    """RFC 5227, 2.1.1: a probe carries an all-zero sender address, so that no neighbour's cache learns from it."""
    frame = host_state.arp_request("192.0.2.7", HARDWARE)
    assert len(frame) == 42
    assert frame[:14] == b"\xff" * 6 + HARDWARE + bytes.fromhex("0806")
    assert frame[14:22] == bytes.fromhex("0001080006040001")
    assert frame[22:28] == HARDWARE
    assert frame[28:32] == bytes(4)
    assert socket.inet_ntoa(frame[38:42]) == "192.0.2.7"
    assert host_state.arp_reply_from(frame) is None


def test_only_a_reply_is_an_answer() -> None:
    body = bytes.fromhex("0001080006040002") + HARDWARE + socket.inet_aton("192.0.2.7") + bytes(10)
    reply = HARDWARE * 2 + bytes.fromhex("0806") + body
    assert host_state.arp_reply_from(reply) == ("192.0.2.7", "02:00:00:00:00:aa")
    assert host_state.arp_reply_from(reply + bytes(18)) == ("192.0.2.7", "02:00:00:00:00:aa")
    assert host_state.arp_reply_from(reply[:41]) is None
    assert host_state.arp_reply_from(reply[:12] + bytes.fromhex("0800") + body) is None


def test_what_cannot_be_asked_is_unknown_and_not_free() -> None:
    wanted = [{"address": "192.0.2.7", "source": "192.0.2.1"}, {"address": "2001:db8::7", "source": "::1"}]
    assert host_state.probe(wanted, {"::1": "lo"}) == {"192.0.2.7": None, "2001:db8::7": None}
    assert host_state.probe(wanted, None) == {"192.0.2.7": None, "2001:db8::7": None}
    assert host_state.who_has("192.0.2.7", "no-such-link") is None
