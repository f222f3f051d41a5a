# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a run on a site with an object store. To import this puts its rules behind those of `refusal`.

MinIO makes sets of the drives of a pool: of the first drive of each host, then of the second of each, and so on, in the
order of the hosts' names. An object is spread over one set, some drives of which are parity.

Source: MinIO of 2026-02-12, `cmd/endpoint-ellipses.go`, `internal/config/storageclass/storage-class.go`; MinIO
documentation, "Erasure coding". Values of secrets are looked at and never repeated.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.refusal import (
    SECRET_KEY_LENGTH,
    Situation,
    Unreadable,
    count,
    each,
    guessable_names,
    rule,
    unlike,
    weakness_of,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GROUP = "object_store"

POOL = "object_store_pool"
DRIVES = "object_store_drives"
SERIALS = "object_store_serials"
PARITY = "object_store_parity"
SHARED = (
    *("object_store_version", "object_store_region", PARITY, "object_store_bitrot_scan_months"),
    *("object_store_root_user", "object_store_users"),
)

RECORD = "/etc/object_store/formed"
"""The file in which the role keeps what a server was last started with and served."""
DEFAULT_DRIVES = ("/srv/object_store/drive1",)

SET_SIZES = range(2, 17)
SIZE_TOLERANCE = 0.05
"""By how much the drives of a pool may differ in size: two models of one size never are the same to the byte."""


def drives_of(stated: object) -> list[str]:
    """The directories of a host's drives, from what its inventory says.

    Args:
        stated: `object_store_drives`, or None for the role's default.
    """
    if stated is None:
        return list(DEFAULT_DRIVES)
    return [str(one) for one in stated] if isinstance(stated, (list, tuple)) else []


def set_size(drives: int) -> int:
    """How many drives MinIO puts into a set; 0 when it makes none.

    Args:
        drives: of the whole pool.
    """
    if drives < SET_SIZES[-1]:
        return drives if drives >= SET_SIZES[0] else 0
    return max((size for size in SET_SIZES if drives % size == 0), default=0)


def parity_of(size: int, stated: int) -> int:
    """How many drives of a set are parity.

    Args:
        size: of the set.
        stated: `object_store_parity`; 0 is MinIO's own choice.
    """
    if stated > 0:
        return stated
    return {1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3}.get(size, 4)


def spare(size: int, parity: int) -> int:
    """How many drives of a set may be away while it takes writes."""
    return parity - 1 if parity * 2 == size else parity


@dataclass(frozen=True, slots=True)
class Pool:
    """Hosts whose drives are filled together.

    Attributes:
        number: `object_store_pool`.
        drives: of each host, by its name, in the order of the names.
    """

    number: int
    drives: Mapping[str, Sequence[str]]

    @property
    def even(self) -> bool:
        """Whether each host has as many drives."""
        return len({len(drives) for drives in self.drives.values()}) == 1

    @property
    def total(self) -> int:
        """How many drives there are."""
        return sum(len(drives) for drives in self.drives.values())

    def sets(self) -> list[list[str]]:
        """The hosts of the drives of each set."""
        order = [host for _ in range(max(map(len, self.drives.values()))) for host in self.drives]
        size = set_size(self.total)
        return [order[start : start + size] for start in range(0, len(order), size)] if size else []


@rule()
def object_store_drives(situation: Situation) -> Iterator[str]:
    """A drive is named once, by its directory, and each host of a pool has as many."""
    for host in _hosts(situation):
        drives = _drives(situation, host)
        if drives is None:
            continue
        odd = [one for one in drives if not re.fullmatch(r"(/[\w.-]+)+", one)]
        if odd or not drives:
            named = ", ".join(map(repr, odd)) or "none"
            yield f"{host}: {DRIVES} has {named}: name a directory for each drive, such as {DEFAULT_DRIVES[0]}."
        for drive, times in Counter(drives).items():
            if times > 1:
                yield f"{host}: {DRIVES} has {drive} {times} times: name it once."
        yield from _serial_problems(situation, host, drives)
    for pool in _pools(situation):
        if not pool.even:
            parts = [f"{host} {len(drives)}" for host, drives in pool.drives.items()]
            yield (
                f"object_store: hosts of {POOL} {pool.number} have unlike numbers of drives ({', '.join(parts)}): "
                f"give each as many in {DRIVES}."
            )


def _serial_problems(situation: Situation, host: str, drives: Sequence[str]) -> Iterator[str]:
    serials = situation.value(host, SERIALS)
    if not isinstance(serials, Mapping):
        return
    stray = [str(drive) for drive in serials if str(drive) not in drives]
    if stray:
        yield f"{host}: {SERIALS} has {', '.join(stray)}, which {DRIVES} does not have: add it there."
    for serial, times in Counter(map(str, serials.values())).items():
        if times > 1:
            yield f"{host}: {SERIALS} has serial number {serial} {times} times: a disk is one drive."


@rule()
def object_store_sets(situation: Situation) -> Iterator[str]:
    """The drives of a pool make equal sets, of which a host may be lost without a stop of writes."""
    pools = _pools(situation)
    stated, parity = _parity(situation, pools)
    # Without sets of the first pool nobody knows the parity of the others.
    for pool in pools if pools and set_size(pools[0].total) else pools[:1]:
        # One drive is a store of its own kind.
        if not pool.even or stated is None or pool.total < SET_SIZES[0]:
            continue
        problem = _set_problem(pool, stated, parity, alone=len(_hosts(situation)) == 1)
        if problem:
            yield f"object_store: {POOL} {pool.number} has {count(pool.total, 'drive')}{problem}"


def _set_problem(pool: Pool, stated: int, parity: int, *, alone: bool) -> str:
    """What is wrong with the sets of a pool; empty when nothing is.

    Args:
        pool: which.
        stated: what the site says about parity.
        parity: what it is.
        alone: whether the store has one host, and promises nothing.
    """
    size = set_size(pool.total)
    if not size:
        return ", which make no equal sets of 2 to 16: add or take out hosts, or drives of each."
    if stated and not 0 < stated * 2 <= size:
        return f" in sets of {size}, and {PARITY} is {stated}: make it 1 to {size // 2}, or 0."
    if parity * 2 > size:
        return (
            f" in sets of {size}, and the sets of the first pool have a parity of {parity}, which goes for all: give "
            f"it more drives, or make {PARITY} 1 to {size // 2} when the store is formed."
        )
    lost, may = _worst(pool, {host: host for host in pool.drives}), spare(size, parity)
    if lost <= may or alone:
        return ""
    return (
        f" in sets of {size}, where a host has {count(lost, 'drive')} of a set and {may} may be away while it takes "
        f"writes: spread the drives over more hosts, or raise {PARITY}."
    )


@rule()
def object_store_record(situation: Situation) -> Iterator[str]:
    """Objects are where they were put: a pool that was formed keeps its hosts and drives, and another comes behind."""
    pools = [_arguments(situation, pool) for pool in _pools(situation)]
    if any(_drives(situation, host) is None or _number(situation, host) is None for host in _hosts(situation)):
        return
    said: dict[str, list[str]] = defaultdict(list)
    for host in _hosts(situation):
        formed = _formed(situation, host)
        for number, drives in enumerate(formed):
            if number >= len(pools) or pools[number] != drives:
                here = pools[number] if number < len(pools) else []
                differ = sorted({*map(str, drives)} ^ {*here})
                which = f"without or beside {', '.join(differ)}" if differ else "in another order"
                said[
                    f"pool {number + 1} of the store was formed with other drives, {which}: put back its hosts, and "
                    f"{DRIVES} as {RECORD} has them; a store grows by hosts with another {POOL}."
                ].append(host)
    yield from each(situation, said)


@rule(repairable=True)
def object_store_mounts(situation: Situation) -> Iterator[str]:
    """A drive is the root of a file system of its own, and all drives of a pool have the same size."""
    for pool in _pools(situation):
        sizes: dict[float, str] = {}
        for host in pool.drives:
            if situation.value(host, "object_store_drives_unchecked") is True:
                continue
            for drive, place in _places(situation, host).items():
                if place["mount"] == drive:
                    sizes.setdefault(place["size_gb"], f"{drive} of {host}")
                elif not _is_to_be_made(situation, host, drive):
                    on = "the root file system" if place["mount"] == "/" else f"the file system of {place['mount']}"
                    yield (
                        f"{host}: {drive} of {DRIVES} is on {on}: mount a disk there, or name its serial number in "
                        f"{SERIALS}."
                    )
        if sizes and min(sizes) < max(sizes) * (1 - SIZE_TOLERANCE):
            yield (
                f"object_store: drives of {POOL} {pool.number} have unlike sizes, {min(sizes):.0f} GB "
                f"({sizes[min(sizes)]}) and {max(sizes):.0f} GB ({sizes[max(sizes)]}): each is filled no further than "
                f"the smallest, so give larger ones a pool of their own."
            )


@rule()
def object_store_differs(situation: Situation) -> Iterator[str]:
    """Servers take each other for their like only where program and settings are the same."""
    return unlike(situation, GROUP, _hosts(situation), SHARED)


@rule()
def object_store_users(situation: Situation) -> Iterator[str]:
    """A user has a secret key that nobody guesses."""
    said: dict[str, list[str]] = defaultdict(list)
    for host in _hosts(situation):
        rows = situation.rows(host, "object_store_users")
        for row in rows:
            problem = _secret_problem(situation, row)
            if problem:
                said[f"user {row.get('name')} in object_store_users {problem}"].append(host)
    yield from each(situation, said)


def _secret_problem(situation: Situation, row: Mapping[str, Any]) -> str:
    """What is wrong with the secret key of a user; one without a key has it already, or the role says so."""
    secret = row.get("secret_key")
    if secret is None or row.get("state") == "absent":
        return ""
    if isinstance(secret, Unreadable):
        return "has a secret_key that cannot be read: check its template, or where it comes from."
    names = {str(row.get("name")).lower(), *guessable_names(situation)}
    weakness = weakness_of(str(secret), SECRET_KEY_LENGTH, names)
    if not weakness:
        return ""
    return f"has a weak secret_key, because {weakness}: replace it by at least {SECRET_KEY_LENGTH} random characters."


@rule(warns=True)
def object_store_zones(situation: Situation) -> Iterator[str]:
    """No zone takes more drives of a set along than may be away."""
    pools = _pools(situation)
    stated, parity = _parity(situation, pools)
    for pool in pools:
        zones = {host: situation.value(host, "host_zone") for host in pool.drives}
        size = set_size(pool.total)
        if None in zones.values() or stated is None or not size or not pool.even or len(pool.drives) == 1:
            continue
        may = spare(size, parity)
        lost = _worst(pool, {host: str(zone) for host, zone in zones.items()})
        # Of a host that cannot be lost `object_store_sets` tells.
        if lost > may >= _worst(pool, {host: host for host in pool.drives}):
            yield (
                f"object_store: {POOL} {pool.number} has {lost} of {count(size, 'drive')} of a set in one zone, and "
                f"{may} may be away while it takes writes: spread the hosts over more zones, or know that they are not."
            )


# ------------------------------------------------------------------------------------------------------------- parts


def _hosts(situation: Situation) -> list[str]:
    return sorted(situation.hosts(GROUP))


def _drives(situation: Situation, host: str) -> list[str] | None:
    """The drives of a host; None when nobody can tell."""
    stated = situation.variables.get(host, {}).get(DRIVES)
    value = situation.value(host, DRIVES)
    if stated is not None and (value is None or not isinstance(value, (list, tuple))):
        return None
    return drives_of(stated)


def _number(situation: Situation, host: str) -> int | None:
    """The number of a host's pool; None when nobody can tell."""
    stated = situation.variables.get(host, {}).get(POOL)
    if stated is None:
        return 1
    value = situation.value(host, POOL)
    return int(str(value)) if re.fullmatch(r"\d+", str(value)) else None


def _parity(situation: Situation, pools: Sequence[Pool]) -> tuple[int | None, int]:
    """The stated parity, None when nobody can tell, and what it is: that of the first pool goes for all."""
    host = next((host for pool in pools for host in pool.drives), "")
    if situation.variables.get(host, {}).get(PARITY) is None:
        stated: int | None = 0
    else:
        stated = whole_number(situation.value(host, PARITY))
    return stated, parity_of(set_size(pools[0].total), stated or 0) if pools else 0


def _pools(situation: Situation) -> list[Pool]:
    """The pools, as far as one can tell, in the order of their numbers."""
    found: dict[int, dict[str, Sequence[str]]] = defaultdict(dict)
    for host in _hosts(situation):
        number, drives = _number(situation, host), _drives(situation, host)
        if number is not None and drives:
            found[number][host] = drives
    return [Pool(number, found[number]) for number in sorted(found)]


def _worst(pool: Pool, domains: Mapping[str, str]) -> int:
    """The most drives of a set that one host, or one zone, takes along.

    Args:
        pool: whose sets.
        domains: host to what is lost with it.
    """
    return max((max(Counter(domains[host] for host in hosts).values()) for hosts in pool.sets()), default=0)


def _arguments(situation: Situation, pool: Pool) -> list[str]:
    """The drives of a pool as the role writes them."""
    if len(_hosts(situation)) == 1:
        return [drive for drives in pool.drives.values() for drive in drives]
    domain = situation.site("site_domain")
    return [f"https://{host}.{domain}:9000{drive}" for host, drives in pool.drives.items() for drive in drives]


def _formed(situation: Situation, host: str) -> list[list[str]]:
    """The pools that a server was last started with; none where there is no record."""
    records = situation.states.get(host, {}).get("records")
    record = records.get(RECORD) if isinstance(records, Mapping) else None
    pools = record.get("pools") if isinstance(record, Mapping) else None
    return [pool for pool in pools if isinstance(pool, list)] if isinstance(pools, list) else []


def _places(situation: Situation, host: str) -> dict[str, Mapping[str, Any]]:
    """The file system of each drive, as far as the host has told."""
    filesystems = situation.states.get(host, {}).get("filesystems") or {}
    return {drive: filesystems[drive] for drive in _drives(situation, host) or () if drive in filesystems}


def _is_to_be_made(situation: Situation, host: str, drive: str) -> bool:
    """Whether the role has yet to mount it, by its serial number."""
    serials = situation.value(host, SERIALS)
    return isinstance(serials, Mapping) and drive in serials and not _formed(situation, host)
