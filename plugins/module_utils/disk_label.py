# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which disks get a file system with a label. Pure decisions on what `lsblk` lists.

A disk is named by its serial number, because `/dev/sdX` is another one after the next boot. It is blank, or it has the
label already; everything else on it is somebody's, and nothing is ever wiped.

Source: lsblk(8) of util-linux 2.41; mkfs.xfs(8): a label has 12 characters at the most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COLUMNS = ("NAME", "PATH", "TYPE", "SERIAL", "RO", "FSTYPE", "LABEL", "PTTYPE", "MOUNTPOINTS")
LABEL_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Disk:
    """One whole disk.

    Attributes:
        path: its device.
        serial: its number, as it says itself.
        label: of the file system on the whole disk.
        content: what it holds, in a few words; empty when it is blank.
        mounts: where it is mounted.
        read_only: whether nothing can be written to it.
    """

    path: str
    serial: str
    label: str = ""
    content: str = ""
    mounts: tuple[str, ...] = ()
    read_only: bool = False


def disks_of(listing: object) -> list[Disk]:
    """The whole disks in the answer of `lsblk --json --output` with `COLUMNS`.

    Raises:
        ValueError: it is no such answer.
    """
    rows = listing.get("blockdevices") if isinstance(listing, Mapping) else None
    if not isinstance(rows, list):
        raise ValueError("lsblk lists no block devices")  # noqa: TRY004 - the answer is wrong, and no argument
    return [_disk(row) for row in rows if row.get("type") == "disk" and row.get("serial")]


def _disk(row: Mapping[str, Any]) -> Disk:
    children = [str(child.get("path")) for child in row.get("children") or []]
    parts = [
        *([f"a file system or member of type {row['fstype']}"] if row.get("fstype") else []),
        *([f"a partition table of type {row['pttype']}"] if row.get("pttype") else []),
        *([", ".join(children)] if children else []),
    ]
    return Disk(
        path=str(row["path"]),
        serial=str(row["serial"]).strip(),
        label=str(row.get("label") or "") if row.get("fstype") == "xfs" and not children else "",
        content=" and ".join(parts),
        mounts=tuple(str(mount) for mount in row.get("mountpoints") or [] if mount),
        read_only=bool(row.get("ro")),
    )


def to_format(wanted: Mapping[str, str], disks: list[Disk]) -> tuple[dict[str, str], list[str]]:
    """Which disks are to get which label, and why nothing is done at all.

    Args:
        wanted: serial number to label.
        disks: what there is.

    Returns:
        Device to label, and one sentence for each reason.
    """
    found: dict[str, str] = {}
    reasons: list[str] = []
    labels = list(wanted.values())
    for serial, label in wanted.items():
        if labels.count(label) > 1 or not 0 < len(label) <= LABEL_LENGTH:
            reasons.append(f"disk {serial}: label {label!r} is no label of its own with up to 12 characters")
            continue
        reason, disk = _one(serial, label, disks)
        if reason:
            reasons.append(reason)
        elif disk is not None and disk.label != label:
            found[disk.path] = label
    return found, reasons


def _one(serial: str, label: str, disks: list[Disk]) -> tuple[str, Disk | None]:
    """Why a disk cannot be meant, or else the disk."""
    same = [disk for disk in disks if disk.serial == serial]
    if not same:
        known = ", ".join(sorted(disk.serial for disk in disks)) or "none"
        return f"disk {serial} is not there: there are {known}; look at lsblk -o PATH,SERIAL", None
    if len(same) > 1:
        paths = ", ".join(disk.path for disk in same)
        return f"disk {serial} is {paths}: a serial number has to name one disk", None
    disk = same[0]
    others = [other.path for other in disks if other.label == label and other is not disk]
    if others:
        return f"disk {serial} cannot have label {label}, which is that of {', '.join(others)}: take that out", None
    if disk.label == label:
        return "", disk
    if disk.content or disk.mounts:
        held = disk.content or f"something mounted at {', '.join(disk.mounts)}"
        return (
            f"disk {serial} ({disk.path}) holds {held}, and nothing is ever wiped: if nobody needs it, wipefs --all it",
            None,
        )
    if disk.read_only:
        return f"disk {serial} ({disk.path}) cannot be written to", None
    return "", disk
