# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only a blank disk gets a file system, and only the one whose serial number was said."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.disk_label import Disk, disks_of, to_format
from hypothesis import given
from hypothesis import strategies as st


def row(path: str, serial: str | None, **more: Any) -> dict[str, Any]:
    blank = {"fstype": None, "label": None, "pttype": None, "ro": False, "mountpoints": [None]}
    return {"name": path[5:], "path": path, "type": "disk", "serial": serial, **blank, **more}


def plan(wanted: dict[str, str], *rows: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    return to_format(wanted, disks_of({"blockdevices": list(rows)}))


def test_a_blank_disk_gets_its_label_and_one_that_has_it_is_left_alone() -> None:
    rows = [row("/dev/sda", "A"), row("/dev/sdb", "B", fstype="xfs", label="drive2", mountpoints=["/srv/2"])]
    assert plan({"A": "drive1", "B": "drive2"}, *rows) == ({"/dev/sda": "drive1"}, [])


PART = {"path": "/dev/sda1"}
OURS = {"fstype": "xfs", "label": "drive1"}
HELD = "disk A (/dev/sda) holds {}, and nothing is ever wiped: if nobody needs it, wipefs --all it"


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"fstype": "ext4"}, HELD.format("a file system or member of type ext4")),
        ({"fstype": "xfs", "label": "drive2"}, HELD.format("a file system or member of type xfs")),
        ({"fstype": "LVM2_member"}, HELD.format("a file system or member of type LVM2_member")),
        ({"pttype": "gpt"}, HELD.format("a partition table of type gpt")),
        ({"pttype": "gpt", "children": [PART]}, HELD.format("a partition table of type gpt and /dev/sda1")),
        ({**OURS, "children": [PART]}, HELD.format("a file system or member of type xfs and /dev/sda1")),
        ({"mountpoints": ["/srv"]}, HELD.format("something mounted at /srv")),
        ({"ro": True}, "disk A (/dev/sda) cannot be written to"),
    ],
)  # fmt: skip
def test_a_disk_that_holds_anything_is_refused(held: dict[str, Any], says: str) -> None:
    assert plan({"A": "drive1"}, row("/dev/sda", "A", **held)) == ({}, [says])


def test_a_serial_number_has_to_name_one_disk() -> None:
    rows = [row("/dev/sda", "A"), row("/dev/sdb", "A"), row("/dev/sdc", None), row("/dev/sr0", "C", type="rom")]
    reasons = plan({"A": "drive1", "C": "drive2"}, *rows)[1]
    assert reasons == [
        "disk A is /dev/sda, /dev/sdb: a serial number has to name one disk",
        "disk C is not there: there are A, A; look at lsblk -o PATH,SERIAL",
    ]
    assert plan({"A": "drive1"})[1] == ["disk A is not there: there are none; look at lsblk -o PATH,SERIAL"]


def test_a_label_is_that_of_one_disk() -> None:
    old = row("/dev/sdb", "B", fstype="xfs", label="drive1")
    assert plan({"A": "drive1"}, row("/dev/sda", "A"), old) == (
        {},
        ["disk A cannot have label drive1, which is that of /dev/sdb: take that out"],
    )
    assert len(plan({"A": "drive1", "B": "drive1"}, row("/dev/sda", "A"), old)[1]) == 2
    assert len(plan({"A": "a-label-too-long"}, row("/dev/sda", "A"))[1]) == 1


@pytest.mark.parametrize("listing", [None, [], {}, {"blockdevices": None}])
def test_what_is_no_list_of_disks_is_said(listing: object) -> None:
    with pytest.raises(ValueError, match="lsblk lists no block devices"):
        disks_of(listing)


DISKS = st.lists(
    st.builds(
        Disk,
        path=st.sampled_from(["/dev/sda", "/dev/sdb", "/dev/sdc"]),
        serial=st.sampled_from("ABC"),
        label=st.sampled_from(["", "x", "y"]),
        content=st.sampled_from(["", "something"]),
        mounts=st.sampled_from([(), ("/srv",)]),
        read_only=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda disk: disk.path,
)


@given(st.dictionaries(st.sampled_from("ABC"), st.sampled_from("xyz")), DISKS)
def test_nothing_but_a_blank_disk_of_a_serial_number_that_was_said_is_ever_formatted(
    wanted: dict[str, str], disks: list[Disk]
) -> None:
    made, _ = to_format(wanted, disks)
    by_path = {disk.path: disk for disk in disks}
    for path, label in made.items():
        disk = by_path[path]
        assert not disk.content
        assert not disk.mounts
        assert not disk.read_only
        assert wanted[disk.serial] == label
