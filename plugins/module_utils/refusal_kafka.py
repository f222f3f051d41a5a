# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a run on a site with Kafka. To import this puts its rules behind those of `refusal`.

What a site does not say is what the roles `kafka` and `kafka_controller` make of it, whose defaults are templates that
no rule can read: `_factor` and `_minimum` are the same in Python.

Source: Kafka 4.4 documentation (min.insync.replicas, default.replication.factor, unclean.leader.election.enable).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.refusal import (
    Situation,
    count,
    each,
    rule,
    who,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BROKERS = "kafka"
CONTROLLERS = "kafka_controller"

VERSION = "kafka_version"
FACTOR = "kafka_replication_factor"
MINIMUM = "kafka_min_insync_replicas"

TOPIC_MINIMUM = "min.insync.replicas"
UNCLEAN = "unclean.leader.election.enable"

REPLICAS, IN_SYNC = 3, 2
"""What the roles make of a site that says neither number, as far as it has the brokers."""


@rule()
def kafka_node_id(situation: Situation) -> Iterator[str]:
    """What a broker or controller holds is under its number, which is nobody else's."""
    owners: dict[int, str] = {}
    for group in (BROKERS, CONTROLLERS):
        name = f"{group}_node_id"
        for host in situation.hosts(group):
            if situation.variables.get(host, {}).get(name) is None:
                yield f"{host}: {name} is missing: give it a number that no broker and no controller has or had."
                continue
            value = situation.value(host, name)
            number = whole_number(value)
            if value is None:
                continue
            if number is None or number < 0:
                yield f"{host}: {name} is {value!r}: choose a number from 0 that no broker and no controller has."
                continue
            owner = owners.setdefault(number, f"{name} of {host}")
            if owner != f"{name} of {host}":
                yield (
                    f"{host}: {name} {number} is also {owner}: give each broker and each controller a number of its "
                    "own; one that has data keeps its."
                )


@rule()
def kafka_controllers(situation: Situation) -> Iterator[str]:
    """Brokers are nothing without controllers."""
    brokers, controllers = (situation.hosts(group) for group in (BROKERS, CONTROLLERS))
    if brokers and not controllers:
        yield (
            f"kafka: group {BROKERS} has {count(len(brokers), 'host')}, and group {CONTROLLERS} has none: "
            f"add the controllers, which may be the same hosts."
        )


@rule()
def kafka_replication(situation: Situation) -> Iterator[str]:
    """Each replica is on a broker of its own, and one broker can be lost without a stop: of a topic as of all."""
    brokers = situation.hosts(BROKERS)
    said: dict[str, list[str]] = defaultdict(list)
    for host in brokers:
        factor, minimum = _factor(situation, host)[1], _minimum(situation, host)[1]
        for sentence in _replicas(len(brokers), FACTOR, factor, MINIMUM, minimum):
            said[sentence].append(host)
        for topic in _topics(situation, host):
            own, least = topic.get("replication_factor"), _configs(topic).get(TOPIC_MINIMUM)
            numbers = factor if own is None else whole_number(own), minimum if least is None else whole_number(least)
            if own is None and least is None:
                continue
            of = f"of topic {topic.get('name')} in kafka_topics"
            names = f"replication_factor {of}", f"{TOPIC_MINIMUM} {of}"
            for sentence in _replicas(len(brokers), names[0], numbers[0], names[1], numbers[1]):
                said[sentence].append(host)
    yield from each(situation, said)


def _replicas(brokers: int, name: str, factor: int | None, least: str, minimum: int | None) -> Iterator[str]:
    """What is wrong with a number of replicas, and with how many of them are to be in sync.

    Args:
        brokers: how many there are.
        name: what the number is called.
        factor: the number; None when nobody can tell.
        least: what the other one is called.
        minimum: the other one.
    """
    if factor is None or factor < 1:
        return
    if factor > brokers:
        yield f"{name} is {factor}, and group {BROKERS} has {count(brokers, 'broker')}: lower it or add brokers."
    # One of one is the word of a site that promises nothing.
    if minimum is not None and minimum >= max(factor, 2):
        yield f"{least} is {minimum} of {count(factor, 'replica')}, so that no broker could ever be lost: lower it."


@rule()
def kafka_differs(situation: Situation) -> Iterator[str]:
    """Brokers and controllers of a cluster go by the same version and the same numbers."""
    for read in (_version, _factor, _minimum):
        said: dict[tuple[str, str], list[str]] = defaultdict(list)
        for group in (BROKERS, CONTROLLERS):
            for host in situation.hosts(group):
                name, value = read(situation, host, group)
                if value is not None and host not in said[name, str(value)]:
                    said[name, str(value)].append(host)
        if len({value for _name, value in said}) > 1:
            parts = [f"{name} is {value} for {who(situation, hosts)}" for (name, value), hosts in said.items()]
            yield f"{' and '.join(parts)}: set it once, in group_vars/all, because the whole cluster goes by it."


@rule()
def kafka_safety(situation: Situation) -> Iterator[str]:
    """Who leads a partition has all acknowledged records, whatever it costs to wait for them."""
    said: dict[str, list[str]] = defaultdict(list)
    for group in (BROKERS, CONTROLLERS):
        for host in situation.hosts(group):
            properties = situation.value(host, f"{group}_properties")
            if isinstance(properties, Mapping) and _is_true(properties.get(UNCLEAN)):
                said[f"{group}_properties"].append(host)
    for host in situation.hosts(BROKERS):
        for topic in _topics(situation, host):
            if _is_true(_configs(topic).get(UNCLEAN)):
                said[f"topic {topic.get('name')} in kafka_topics"].append(host)
    for what, hosts in said.items():
        yield (
            f"{who(situation, hosts)}: {what} has {UNCLEAN}, by which acknowledged records are lost without a word: "
            "take it out."
        )


@rule(warns=True)
def kafka_zones(situation: Situation) -> Iterator[str]:
    """Replicas of a partition are in zones of their own, as long as there are enough."""
    brokers = situation.hosts(BROKERS)
    factors = [number for host in brokers for number in [_factor(situation, host)[1]] if number is not None]
    stated = [situation.value(host, "host_zone") for host in brokers]
    zones = sorted({str(zone) for zone in stated})
    if None not in stated and factors and len(zones) < max(factors) <= len(brokers):
        yield (
            f"kafka: group {BROKERS} is in {count(len(zones), 'zone')} ({', '.join(zones)}), and {FACTOR} is "
            f"{max(factors)}, so that one zone takes several replicas of a partition along: spread the brokers over "
            "more zones, or know that they are not."
        )


# ------------------------------------------------------------------------------------------------------------- parts


def _stated(situation: Situation, host: str, group: str, name: str, default: Any) -> tuple[str, Any]:
    """The variable that a host of a group goes by, and its value; None when that cannot be read.

    Args:
        situation: where to look.
        host: the host.
        group: of brokers or of controllers, which have a variable of their own and else go by that of brokers.
        name: the variable of brokers.
        default: the value where none is set.
    """
    own = f"{group}_{name.removeprefix(f'{BROKERS}_')}"
    values = situation.variables.get(host, {})
    found = next((one for one in (own, name) if values.get(one) is not None), None)
    return (name, default) if found is None else (found, situation.value(host, found))


def _version(situation: Situation, host: str, group: str = BROKERS) -> tuple[str, Any]:
    option = situation.options.get(VERSION)
    return _stated(situation, host, group, VERSION, option.default if option else None)


def _factor(situation: Situation, host: str, group: str = BROKERS) -> tuple[str, int | None]:
    default = min(REPLICAS, max(len(situation.hosts(BROKERS)), 1))
    name, value = _stated(situation, host, group, FACTOR, default)
    return name, whole_number(value)


def _minimum(situation: Situation, host: str, group: str = BROKERS) -> tuple[str, int | None]:
    factor = _factor(situation, host, group)[1]
    default = None if factor is None else min(IN_SYNC, max(factor - 1, 1))
    name, value = _stated(situation, host, group, MINIMUM, default)
    return name, whole_number(value)


def _topics(situation: Situation, host: str) -> list[Mapping[str, Any]]:
    """The topics that a host declares, without those that are to go."""
    return [row for row in situation.rows(host, "kafka_topics") if row.get("state") != "absent"]


def _configs(topic: Mapping[str, Any]) -> Mapping[str, Any]:
    value = topic.get("configs")
    return value if isinstance(value, Mapping) else {}


def _is_true(value: object) -> bool:
    return str(value).strip().lower() == "true"
