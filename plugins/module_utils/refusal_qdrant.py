# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a run on a site with Qdrant. To import this puts its rules behind those of `refusal`.

What a site does not say is what the role `qdrant` makes of it: `_factor` is its default in Python. Keys are looked at
and never repeated; that `qdrant_api_key` is missing, short or easy to guess is told by the rule `secret`.

Source: Qdrant 1.19 documentation, "Distributed deployment" and "Security"; `config/config.yaml`, `src/settings.rs`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.refusal import (
    MEMORY_TOLERANCE,
    Situation,
    Unreadable,
    count,
    each,
    guessable_names,
    rule,
    stored,
    unlike,
    weakness_of,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "qdrant"

REPLICAS = "qdrant_replication_factor"
WRITES = "qdrant_write_consistency_factor"
COLLECTIONS = "qdrant_collections"
CHECKSUM = "qdrant_checksum"
VERSION = "qdrant_version"
MEMORY = "qdrant_memory_max_mb"
SETTINGS = "qdrant_settings"
KEYS = ("qdrant_read_only_api_key", "qdrant_next_api_key")
SHARED = (
    VERSION, CHECKSUM, REPLICAS, WRITES, COLLECTIONS, "qdrant_tick_period_ms", "qdrant_settings", *KEYS,
)  # fmt: skip

KEY_LENGTH = 32
SECRET_LENGTH = 24
USUAL_FACTOR = 2

KEPT = (
    "cluster.enabled", "cluster.p2p", "cluster.consensus.tick_period_ms", "service.host", "service.http_port",
    "service.grpc_port", "service.metrics_port", "service.enable_tls", "service.verify_https_client_certificate",
    "service.api_key", "service.alt_api_key", "service.read_only_api_key", "service.max_request_size_mb",
    "storage.storage_path", "storage.snapshots_path", "storage.snapshots_config", "storage.temp_path",
    "storage.collection.replication_factor", "storage.collection.write_consistency_factor", "telemetry_disabled", "tls",
)  # fmt: skip
"""Settings on which the role decides, as paths."""


@rule()
def qdrant_replicas(situation: Situation) -> Iterator[str]:
    """There is a host for each replica, and a write does not wait for more of them than there are."""
    hosts = situation.hosts(GROUP)
    said: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        replicas, writes = _factor(situation, host, REPLICAS), _factor(situation, host, WRITES)
        for problem in _factor_problems(replicas, writes, len(hosts), (REPLICAS, WRITES)):
            said[problem].append(host)
        for row in situation.rows(host, COLLECTIONS):
            if row.get("state") == "absent":
                continue
            own = _of_row(row, "replication_factor", replicas), _of_row(row, "write_consistency_factor", writes)
            if own == (replicas, writes):
                continue
            names = ("replication_factor", "write_consistency_factor")
            for problem in _factor_problems(*own, len(hosts), names):
                said[f"collection {row.get('name')} in {COLLECTIONS}: {problem}"].append(host)
    yield from each(situation, said)


def _factor_problems(replicas: int | None, writes: int | None, members: int, names: tuple[str, str]) -> Iterator[str]:
    """What is wrong with two factors.

    Args:
        replicas: of each shard; None when nobody can tell.
        writes: replicas that have to take a write; likewise.
        members: hosts of the group.
        names: what both are called.
    """
    if replicas is not None and replicas < 1:
        yield f"{names[0]} is {replicas}, so that there would be no points at all: make it {USUAL_FACTOR}."
    if replicas is not None and replicas > members:
        hosts = count(members, "host")
        yield f"{names[0]} is {replicas}, and group {GROUP} has {hosts}: lower it, or add hosts to the group."
    if writes is not None and writes < 1:
        yield f"{names[1]} is {writes}: make it {USUAL_FACTOR}, or 1."
    if replicas is not None and writes is not None and writes > replicas:
        yield f"{names[1]} is {writes}, and {names[0]} is {replicas}: lower the first, or raise the second."


@rule()
def qdrant_collections(situation: Situation) -> Iterator[str]:
    """A collection is declared once."""
    said: dict[str, list[str]] = defaultdict(list)
    for host in situation.hosts(GROUP):
        names = Counter(str(row.get("name")) for row in situation.rows(host, COLLECTIONS))
        for name, times in names.items():
            if times > 1:
                said[f"collection {name} stands {times} times in {COLLECTIONS}: list it once."].append(host)
    yield from each(situation, said)


@rule()
def qdrant_checksum(situation: Situation) -> Iterator[str]:
    """The program is the one that was meant, which only its checksum says: upstream signs nothing."""
    said: dict[str, list[str]] = defaultdict(list)
    for host in situation.hosts(GROUP):
        stated = situation.variables.get(host, {}).get(CHECKSUM)
        value, version = situation.value(host, CHECKSUM), situation.value(host, VERSION)
        if isinstance(stated, Unreadable) or (value is None and stated is not None) or version is None:
            continue
        problem = _checksum_problem(situation, str(value or ""), str(version))
        if problem:
            said[problem].append(host)
    yield from each(situation, said)


def _checksum_problem(situation: Situation, checksum: str, version: str) -> str:
    """What is wrong with the checksum of a version; empty when nothing is."""
    archive = f"the archive of Qdrant {version}"
    if not checksum:
        return f"{CHECKSUM} is missing: set it to the SHA-256 of {archive}."
    if not re.fullmatch(r"[0-9a-f]{64}", checksum):
        return f"{CHECKSUM} is no SHA-256: write 64 hexadecimal digits in small letters, those of {archive}."
    listed = situation.site("mirror_artifacts")
    for row in listed if isinstance(listed, (list, tuple)) else ():
        if not isinstance(row, Mapping) or (row.get("name"), str(row.get("version"))) != ("qdrant", version):
            continue
        if not row.get("sha256"):
            return (
                f"mirror_artifacts has qdrant {version} without a sha256, by which anything could be installed: give "
                f"it url and sha256."
            )
        if str(row["sha256"]) != checksum:
            return (
                f"{CHECKSUM} is not the sha256 that mirror_artifacts has of qdrant {version}: find out which of the "
                f"two is right, and correct the other."
            )
    return ""


@rule()
def qdrant_keys(situation: Situation) -> Iterator[str]:
    """Further keys are as hard to guess as the first, and are others."""
    said: dict[str, list[str]] = defaultdict(list)
    names = guessable_names(situation)
    for host in situation.hosts(GROUP):
        values = situation.variables.get(host, {})
        seen = {str(values.get("qdrant_api_key")): "qdrant_api_key"}
        for name in KEYS:
            value = values.get(name)
            if isinstance(value, Unreadable):
                said[f"{name} cannot be read: check its template, or where it comes from."].append(host)
            if isinstance(value, Unreadable) or not value:
                continue
            weakness = weakness_of(str(value), KEY_LENGTH, {*names, name})
            if weakness:
                least = f"at least {KEY_LENGTH} random characters"
                said[f"{name} is weak, because {weakness}: replace it by {least}."].append(host)
            elif str(value) in seen:
                said[f"{name} has the value of {seen[str(value)]}: give each key its own."].append(host)
            seen.setdefault(str(value), name)
    yield from each(situation, said)


@rule()
def qdrant_snapshots(situation: Situation) -> Iterator[str]:
    """Where snapshots are wanted, there is a store, and somebody who may write there."""
    yield from stored(situation, GROUP, "qdrant_snapshot")


@rule()
def qdrant_settings(situation: Situation) -> Iterator[str]:
    """What the role decides is not set beside it."""
    said: dict[str, list[str]] = defaultdict(list)
    for host in situation.hosts(GROUP):
        value = situation.value(host, SETTINGS)
        kept = [path for path in KEPT if _has(value, path)]
        if kept:
            said[f"{SETTINGS} says {', '.join(kept)}, on which the role itself decides: take it out."].append(host)
    yield from each(situation, said)


@rule()
def qdrant_differs(situation: Situation) -> Iterator[str]:
    """Members are one cluster, and any of them takes any request."""
    return unlike(situation, GROUP, situation.hosts(GROUP), SHARED)


@rule(repairable=True)
def qdrant_memory(situation: Situation) -> Iterator[str]:
    """A member is not promised more memory than its host has."""
    for host in situation.hosts(GROUP):
        most = whole_number(situation.value(host, MEMORY))
        there = situation.states.get(host, {}).get("memory_mb")
        if most and there is not None and there < most * MEMORY_TOLERANCE:
            yield f"{host}: {MEMORY} is {most}, and the host has {there} MB: lower it, or add memory."


@rule(warns=True)
def qdrant_zones(situation: Situation) -> Iterator[str]:
    """No zone takes a majority, or both replicas of a shard along: Qdrant knows hosts, and no zones."""
    hosts = situation.hosts(GROUP)
    zones = Counter(situation.value(host, "host_zone") for host in hosts)
    factors = [factor for host in hosts if (factor := _factor(situation, host, REPLICAS)) is not None]
    for zone, number in zones.items():
        if zone is not None and number > 1 and max(factors, default=0) > 1:
            yield (
                f"qdrant: group {GROUP} has {count(number, 'host')} in zone {zone}, and Qdrant may put all replicas "
                f"of a shard there: give each host a zone of its own, or know that they are not."
            )


# ------------------------------------------------------------------------------------------------------------- parts


def _factor(situation: Situation, host: str, name: str) -> int | None:
    """A factor that is set, or the role's default; None when nobody can tell."""
    if situation.variables.get(host, {}).get(name) is None:
        return max(min(len(situation.hosts(GROUP)), USUAL_FACTOR), 1)
    return whole_number(situation.value(host, name))


def _of_row(row: Mapping[str, Any], name: str, otherwise: int | None) -> int | None:
    """A factor of a collection; that of the role where it says nothing."""
    return otherwise if row.get(name) is None else whole_number(row[name])


def _has(settings: object, path: str) -> bool:
    """Whether nested settings say something at that path."""
    for part in path.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return False
        settings = settings[part]
    return True
