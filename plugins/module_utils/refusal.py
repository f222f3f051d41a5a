# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a run, asked before anything is touched.

Each rule is a function from a `Situation` to sentences; `RULES` lists them. A sentence names the host or group, the
variable, and what to do. Pure: no Ansible, no network. Values of secrets are looked at and never repeated.

A rule must not stand in the way of a repair: one that is `repairable` only warns when the purpose of the run is to
repair (a cluster is even while a member is replaced; a dead member does not answer). One that `warns` never refuses:
what it says works, and costs something that nobody may have meant.

Rules of one service that are many are in a module of their own, `refusal_kafka`, `refusal_object_store`,
`refusal_qdrant` or `refusal_redis`; whoever asks imports it.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.contract import (
    ContractError,
    nearest,
    nearest_word,
    parse_yaml,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.site import (
    HOST_VARIABLES,
    LOAD_BALANCER,
    SITE_VARIABLES,
    Site,
    SiteError,
    conditions,
    site_variables,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ansible_collections.groundplane.onprem.plugins.module_utils.contract import Contract, Endpoint, Listen

    Check = Callable[["Situation"], Iterator[str]]

ENVIRONMENTS = ("lab", "dev", "test", "staging", "prod")
OTHER_VARIABLES = ("site_name", "site_environment", "site_role_paths")
FREE_PREFIXES = ("ansible_", "lab_", "molecule_", "_")
"""Names that are not ours to judge: connection settings, the lab's own, internals of roles."""

PURPOSES = ("converge", "repair", "upgrade")

KUBERNETES = "kubernetes"
"""The group of all nodes of the cluster."""

NODE_PREFIX = {4: 24, 6: 64}
"""The size of the subnet that the cluster gives each node for its pods (kube-controller-manager's defaults)."""

OWN_LOCK = ("etcd", "kubernetes")
"""Engines whose clusters keep the lock of the gate in themselves."""

KUBELET_SKEW = 3
"""Minors by which a kubelet may be older than an API server (kubernetes.io/releases/version-skew-policy)."""

CLOCK_LIMIT = 0.5
"""Seconds between controller and host; etcd, Patroni and certificates suffer beyond it."""

MEMORY_TOLERANCE = 0.93
"""A machine sold as 1024 MB shows less: the kernel keeps some for itself."""

SECRET_KEY_LENGTH = 24
"""Characters of the secret of who writes to the object store, at least."""

MINIMUM_BITS = 28.0
"""Guessing work that must be left of a secret without the well-known words in it."""

WELL_KNOWN_SECRETS = (
    "12345678",
    "administrator",
    "admin",
    "changeit",
    "changeme",
    "default",
    "dbuser.dba",
    "dbuser",
    "etcd.root",
    "example",
    "grafana",
    "groundplane",
    "haproxy.password",
    "letmein",
    "minio123",
    "minioadmin",
    "minio",
    "p@ssw0rd",
    "passw0rd",
    "password",
    "passwd",
    "patroni.api",
    "patroni",
    "postgres",
    "qwerty",
    "replace",
    "replicator",
    "replication",
    "secret",
    "superuser",
    "todo",
    "vagrant",
    "welcome",
)
"""Defaults that installers and tutorials ship (Pigsty, MinIO, Grafana, Java), and what people type first."""


class Unreadable:
    """Stands for a variable whose value cannot be computed."""


@dataclass(frozen=True, slots=True)
class Option:
    """What the argument_specs of a role, or of the playbooks, say of one variable."""

    name: str
    role: str
    type: str = "str"
    default: Any = None


@dataclass(frozen=True, slots=True)
class Need:
    """What a role takes from the mirror.

    Attributes:
        role: whose tasks or variables say so.
        name: the artifact's name; of an image its repository and tag, such as `kubernetes/pause:3.10.1`.
        version: the version that is asked for; empty for any.
        image: whether it is an image.
    """

    role: str
    name: str
    version: str = ""
    image: bool = False

    @property
    def label(self) -> str:
        """How a sentence calls it."""
        return f"image {self.name}" if self.image else f"{self.name} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason not to run.

    Attributes:
        rule: name of the rule.
        message: one sentence: who, which variable, what to do.
        refuses: False when it is only a warning, because the run is a repair or the rule never refuses.
    """

    rule: str
    message: str
    refuses: bool = True


@dataclass(frozen=True, kw_only=True)
class Situation:
    """All that the rules look at.

    Attributes:
        contracts: by service name.
        options: the roles' variables by name.
        roles: the names of all roles.
        groups: group name to host names, as the inventory lists them.
        variables: of each host, by name. A value that cannot be computed is an `Unreadable`.
        states: what `host_state` reported of each host that answered.
        run: the hosts of this run.
        purpose: one of `PURPOSES`.
        needs: what the roles of this site take from the mirror.
    """

    contracts: Mapping[str, Contract]
    options: Mapping[str, Option]
    roles: Sequence[str]
    groups: Mapping[str, Sequence[str]]
    variables: Mapping[str, Mapping[str, Any]]
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    run: Sequence[str] = ()
    purpose: str = "converge"
    needs: Sequence[Need] = ()

    def members(self, group: str) -> list[str]:
        """The hosts of a group, twice where the inventory has them twice."""
        return list(self.variables) if group == "all" else list(self.groups.get(group, ()))

    def hosts(self, group: str) -> list[str]:
        """The same, once each."""
        return list(dict.fromkeys(self.members(group)))

    def present(self) -> Iterator[Contract]:
        """The contracts of services that have a host, by service name."""
        return (self.contracts[name] for name in sorted(self.contracts) if self.members(self.contracts[name].group))

    def site(self, name: str) -> Any:
        """A variable that is the same for the whole site; None when it is not set or not readable."""
        for values in self.variables.values():
            value = values.get(name)
            return None if isinstance(value, Unreadable) else value
        return None

    def value(self, host: str, name: str) -> Any:
        """A variable of a host, or else its role's default; None when that is a template or unreadable."""
        option = self.options.get(name)
        value = self.variables.get(host, {}).get(name, option.default if option else None)
        return None if isinstance(value, Unreadable) or (isinstance(value, str) and "{{" in value) else value

    def rows(self, host: str, name: str) -> list[Mapping[str, Any]]:
        """The well-formed rows of a list that a host has."""
        value = self.value(host, name)
        return [row for row in value if isinstance(row, Mapping)] if isinstance(value, (list, tuple)) else []

    def table(self, name: str) -> dict[str, Mapping[str, Any]]:
        """The well-formed rows of a site-wide table such as `site_vips`."""
        value = self.site(name)
        rows = value.items() if isinstance(value, Mapping) else ()
        return {str(key): row for key, row in rows if isinstance(row, Mapping)}

    def legs(self) -> Iterator[tuple[str, str, str]]:
        """Host, network and address of each leg."""
        for host, values in self.variables.items():
            addresses = values.get("host_addresses")
            if isinstance(addresses, Mapping):
                for network, address in addresses.items():
                    yield host, str(network), str(address)

    def subnets(self) -> dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The readable subnets by the network's name."""
        found = {name: _subnet(row.get("subnet")) for name, row in self.table("site_networks").items()}
        return {name: subnet for name, subnet in found.items() if subnet is not None}


@dataclass(frozen=True, slots=True)
class Rule:
    """A question with a name."""

    name: str
    check: Check
    repairable: bool
    warns: bool = False

    def refuses(self, purpose: str) -> bool:
        """Whether what it says stops a run for that purpose."""
        return not self.warns and not (self.repairable and purpose == "repair")


RULES: list[Rule] = []


def rule(*, repairable: bool = False, warns: bool = False) -> Callable[[Check], Check]:
    """Put a function among the rules, under its own name.

    Args:
        repairable: it only warns of a run that repairs.
        warns: it only warns of any run.
    """

    def add(check: Check) -> Check:
        RULES.append(Rule(check.__name__, check, repairable, warns))
        return check

    return add


def refusals(situation: Situation) -> list[Refusal]:
    """All that speaks against a run, in the order of the rules."""
    return [
        Refusal(question.name, sentence, refuses=question.refuses(situation.purpose))
        for question in RULES
        for sentence in question.check(situation)
    ]


# ----------------------------------------------------------------------------------------------------- the inventory


@rule()
def inventory(situation: Situation) -> Iterator[str]:
    """What every view needs is there and readable."""
    environment = situation.site("site_environment")
    if environment not in ENVIRONMENTS:
        yield f"all hosts: site_environment is {environment!r}: make it one of {', '.join(ENVIRONMENTS)}."
    domain = situation.site("site_domain")
    if not isinstance(domain, str) or not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*", domain):
        yield f"all hosts: site_domain is {domain!r}: set it to the domain of the site's names, in lower case."
    for host, values in situation.variables.items():
        addresses = values.get("host_addresses")
        if not isinstance(addresses, Mapping) or not addresses:
            yield f"{host}: host_addresses is missing: give it the network and the address of each leg."
        elif values.get("host_primary_network") not in addresses:
            legs = ", ".join(str(network) for network in addresses)
            yield f"{host}: host_primary_network is no leg of the host: make it one of {legs}."


@rule()
def host_name(situation: Situation) -> Iterator[str]:
    """An inventory name goes into certificates and clusters: it must be a DNS label (RFC 1123, 2.1)."""
    for host in situation.variables:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", host):
            yield (
                f"{host}: the inventory name cannot be a host name: "
                f"use at most 63 lower-case letters, digits and hyphens."
            )


@rule()
def contract_fits(situation: Situation) -> Iterator[str]:
    """The contracts and the inventory can be joined, and no contract lets in a group that is only a misspelling."""
    well_formed = {
        host: values
        for host, values in situation.variables.items()
        if isinstance(values.get("host_addresses"), Mapping)
        and values.get("host_primary_network") in values["host_addresses"]
    }
    tables = {name: situation.table(name) for name in ("site_networks", "site_vips")}
    networks = {name: row for name, row in tables["site_networks"].items() if "subnet" in row}
    vips = {name: row for name, row in tables["site_vips"].items() if {"address", "network"} <= row.keys()}
    vips = {name: {"address": row["address"], "network": row["network"]} for name, row in vips.items()}
    stated = {name: situation.site(name) for name in site_variables(situation.contracts)}
    site = Site.from_inventory(
        situation.contracts,
        {group: list(dict.fromkeys(hosts)) for group, hosts in situation.groups.items()},
        well_formed,
        {name: value for name, value in stated.items() if value is not None}
        | {"site_networks": networks, "site_vips": vips},
    )
    try:
        site.flows()
        site.endpoints()
    except SiteError as error:
        yield f"{error}."
    known = {*situation.groups, *(contract.group for contract in situation.contracts.values()), "all", "any"}
    for contract in situation.contracts.values():
        doors: list[Listen | Endpoint] = [*contract.listens, *contract.endpoints]
        for group in sorted({group for door in doors for group in door.from_}):
            near = None if group in known else nearest_word(group, known, cutoff=0.85)
            if near:
                yield f"{contract.service}: its contract lets in {group!r}, which is no group: did you mean {near}?"


# ------------------------------------------------------------------------------------------------------------ voters


@rule(repairable=True)
def voters_few(situation: Situation) -> Iterator[str]:
    """A quorum below its minimum survives no failure. A dev site of one node promises none."""
    for contract in situation.present():
        voters = situation.hosts(contract.group)
        alone = len(voters) == 1 and situation.site("site_environment") == "dev"
        if contract.quorum and len(voters) < contract.quorum.minimum and not alone:
            yield (
                f"{contract.service}: group {contract.group} has {count(len(voters), 'voter')} ({', '.join(voters)}), "
                f"fewer than the {contract.quorum.minimum} that its contract asks for: add hosts to the group."
            )


@rule(repairable=True)
def voters_even(situation: Situation) -> Iterator[str]:
    """An even number of voters survives no more failures than one less, and can split in halves."""
    for contract in situation.present():
        voters = situation.hosts(contract.group)
        if contract.quorum and contract.quorum.odd and len(voters) % 2 == 0:
            yield (
                f"{contract.service}: group {contract.group} has {len(voters)} voters ({', '.join(voters)}), "
                f"an even number, which survives no more failures than {len(voters) - 1}: add a host or take one out."
            )


@rule()
def lock_store(situation: Situation) -> Iterator[str]:
    """The gate keeps its locks in etcd, and Patroni who leads."""
    quorums = ((contract.service, contract.quorum) for contract in situation.present())
    waiting = [service for service, quorum in quorums if quorum and quorum.engine not in OWN_LOCK]
    if waiting and not situation.members("etcd"):
        yield (
            f"{', '.join(waiting)}: group etcd has no host, where the gate keeps the lock without which no member is "
            f"restarted: add hosts to group etcd."
        )


@rule()
def voter_twice(situation: Situation) -> Iterator[str]:
    """A machine votes once, under however many names it stands in the inventory."""
    for contract in situation.present():
        if contract.quorum is None:
            continue
        voters = situation.members(contract.group)
        for host, times in Counter(voters).items():
            if times > 1:
                yield f"{contract.service}: {host} stands {times} times in group {contract.group}: list it once."
        machines = defaultdict(list)
        for host in dict.fromkeys(voters):
            values = situation.variables.get(host, {})
            where = values.get("ansible_host")
            if isinstance(where, str):
                machines[where, str(values.get("ansible_port", ""))].append(host)
        for (where, _port), hosts in machines.items():
            if len(hosts) > 1:
                yield (
                    f"{contract.service}: {' and '.join(hosts)} are one machine of group {contract.group}, "
                    f"because their ansible_host is {where}: a machine votes once, so name it once."
                )


@rule(repairable=True)
def partial_run(situation: Situation) -> Iterator[str]:
    """A run that reaches part of a quorum group leaves its members configured unlike each other."""
    run = set(situation.run)
    for contract in situation.present():
        voters = situation.hosts(contract.group)
        missing = [host for host in voters if host not in run]
        if contract.quorum and missing and len(missing) < len(voters):
            yield (
                f"{contract.service}: --limit leaves out {', '.join(missing)} of group {contract.group}: "
                f"run on all of its members or on none."
            )


@rule(repairable=True)
def unreachable(situation: Situation) -> Iterator[str]:
    """Each host of the run answers."""
    for host in situation.run:
        if host not in situation.states:
            yield (
                f"{host}: does not answer at its ansible_host: start it or mend the way to it (one that is new is let "
                f"through once bastion and routers know it: --limit bastion,router first), "
                f"or say preflight_purpose=repair if it is being replaced."
            )


# --------------------------------------------------------------------------------------------------------- addresses


@rule()
def subnet(situation: Situation) -> Iterator[str]:
    """Each network has a subnet that is one, with its gateway inside."""
    for name, row in situation.table("site_networks").items():
        net = _subnet(row.get("subnet"))
        if "subnet" not in row:
            continue  # table_key says so
        if net is None:
            yield (
                f"all hosts: site_networks.{name}.subnet is {row.get('subnet')!r}: "
                f"write it as a network address and prefix length, such as 10.0.1.0/24."
            )
            continue
        gateway = _address(row.get("gateway"))
        if "gateway" in row and (gateway is None or gateway not in net):
            yield (
                f"all hosts: site_networks.{name}.gateway {row['gateway']} is not in {net}: "
                f"choose an address of that subnet."
            )


@rule()
def subnets_overlap(situation: Situation) -> Iterator[str]:
    """An address belongs to one network."""
    for (name, net), (other_name, other) in itertools.combinations(situation.subnets().items(), 2):
        if net.version == other.version and net.overlaps(other):
            yield (
                f"all hosts: site_networks.{name}.subnet {net} overlaps site_networks.{other_name}.subnet {other}: "
                f"choose ranges that have no address in common."
            )


@rule()
def address_twice(situation: Situation) -> Iterator[str]:
    """An address belongs to one leg."""
    first: dict[str, tuple[str, str]] = {}
    for host, network, address in situation.legs():
        owner = first.setdefault(str(_address(address) or address), (host, network))
        if owner != (host, network):
            yield (
                f"{host}: host_addresses.{network} {address} is also host_addresses.{owner[1]} of {owner[0]}: "
                f"give each leg its own address."
            )


@rule()
def address_outside(situation: Situation) -> Iterator[str]:
    """A leg's address is one of its network."""
    subnets = situation.subnets()
    known = situation.table("site_networks")
    for host, network, address in situation.legs():
        if network not in known:
            hint = nearest(network, known) or ": add it."
            yield f"{host}: host_addresses.{network} is on a network that site_networks does not have{hint}"
            continue
        if network not in subnets:
            continue
        number = _address(address)
        if number is None or not _usable(number, subnets[network]):
            yield (
                f"{host}: host_addresses.{network} {address} is no host address of {subnets[network]}: "
                f"choose one of site_networks.{network}.subnet."
            )


@rule()
def vip_outside(situation: Situation) -> Iterator[str]:
    """A VIP lies in the subnet of its network, else no neighbour would ask for it."""
    subnets = situation.subnets()
    for name, row in situation.table("site_vips").items():
        network = str(row.get("network"))
        if network not in situation.table("site_networks"):
            yield f"load_balancer: site_vips.{name}.network {network} is not in site_networks: name one that is."
            continue
        number = _address(row.get("address"))
        if network in subnets and (number is None or not _usable(number, subnets[network])):
            yield (
                f"load_balancer: site_vips.{name}.address {row.get('address')} is no host address of "
                f"{subnets[network]}: choose one of site_networks.{network}.subnet."
            )


@rule()
def vip_taken(situation: Situation) -> Iterator[str]:
    """A VIP is nobody's own address: no host's, no gateway's, no other VIP's."""
    owners = {
        str(_address(address)): f"host_addresses.{network} of {host}" for host, network, address in situation.legs()
    }
    for name, row in situation.table("site_networks").items():
        owners.setdefault(str(_address(row.get("gateway"))), f"site_networks.{name}.gateway")
    for name, row in situation.table("site_vips").items():
        number = _address(row.get("address"))
        if number is None:
            continue
        owner = owners.setdefault(str(number), f"site_vips.{name}.address")
        if owner != f"site_vips.{name}.address":
            yield f"load_balancer: site_vips.{name}.address {number} is also {owner}: choose one that nobody has."


@rule(repairable=True)
def vip_answers(situation: Situation) -> Iterator[str]:
    """A VIP that answers although no load balancer holds it belongs to a stranger. A live site holds its own."""
    balancers = situation.members(LOAD_BALANCER)
    states = [situation.states[host] for host in balancers if host in situation.states]
    if len(states) < len(balancers) or any(state.get("addresses") is None for state in states):
        return  # the one that was not asked may hold it
    held = {str(_address(address)) for state in states for address in state["addresses"]}
    ours = {hardware for state in states for hardware in state.get("hardware") or ()}  # it may move while one asks
    for name, row in situation.table("site_vips").items():
        number = str(_address(row.get("address")))
        answers = {host: (situation.states[host].get("answering") or {}).get(number) for host in balancers}
        askers = [host for host, hardware in answers.items() if hardware and hardware not in ours]
        if askers and number not in held:
            yield (
                f"{askers[0]}: site_vips.{name}.address {number} already answers, "
                f"and no host of load_balancer holds it: choose a free address or take it from whoever has it."
            )


@rule()
def vrid(situation: Situation) -> Iterator[str]:
    """A virtual router id is 1 to 255 and used once on a network (RFC 9568, 5.2.3)."""
    used: dict[tuple[str, int], str] = {}
    for name, row in situation.table("site_vips").items():
        value = row.get("vrid")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 255:  # noqa: PLR2004 - eight bits
            yield f"load_balancer: site_vips.{name}.vrid is {value!r}: choose a number from 1 to 255."
            continue
        network = str(row.get("network"))
        owner = used.setdefault((network, value), name)
        if owner != name:
            yield (
                f"load_balancer: site_vips.{name}.vrid {value} is also that of site_vips.{owner} on network {network}: "
                f"choose another number from 1 to 255."
            )


# ----------------------------------------------------------------------------------------------------------- secrets


@rule()
def secret(situation: Situation) -> Iterator[str]:
    """Every secret of the contracts is set, the same on all hosts of its service, and hard to guess."""
    names = guessable_names(situation)
    first_use: dict[str, str] = {}
    for contract in situation.present():
        for wanted in contract.secrets:
            hosts = situation.members(contract.group)
            values = {host: situation.variables.get(host, {}).get(wanted.name) for host in hosts}
            problem = _secret_problem(values, wanted.minimum_length, {*names, wanted.name.lower()})
            if problem:
                yield problem.format(name=wanted.name, service=contract.service)
                continue
            owner = first_use.setdefault(str(values[hosts[0]]), wanted.name)
            if owner != wanted.name:
                yield f"{contract.service}: {wanted.name} has the value of {owner}: give each secret its own."


def _secret_problem(values: Mapping[str, Any], minimum_length: int, names: Iterable[str]) -> str | None:
    for host, value in values.items():
        if isinstance(value, Unreadable):
            return f"{host}: {{name}} cannot be read: check its template, its vault password or where it comes from."
        if value is None or not str(value).strip():
            state = "missing" if value is None else "empty"
            return (
                f"{host}: {{name}} is {state}: set it to at least {minimum_length} random characters for {{service}}."
            )
    unlike = {str(value): host for host, value in reversed(list(values.items()))}
    if len(unlike) > 1:
        pair = [host for host in values if host in unlike.values()][:2]
        return f"{' and '.join(pair)}: {{name}} differs between hosts: set it once for all of {{service}}."
    weakness = weakness_of(str(next(iter(values.values()))), minimum_length, names)
    if weakness:
        return (
            f"{{service}}: {{name}} is weak, because {weakness}: "
            f"replace it by at least {minimum_length} random characters."
        )
    return None


def weakness_of(value: str, minimum_length: int, names: Iterable[str] = ()) -> str | None:
    """Why a secret is easy to guess, in words that do not tell it; None when it is not.

    Args:
        value: the secret.
        minimum_length: characters it must have.
        names: words that an attacker would try: hosts, groups, services, the site.
    """
    lower = value.lower()
    if lower in names:
        return "it is a name of this site"
    if lower in WELL_KNOWN_SECRETS:
        return "it is a well-known default"
    if len(value) < minimum_length:
        return f"it has {len(value)} characters"
    rest = lower
    words = {word for word in (*WELL_KNOWN_SECRETS, *names) if len(word) > 3}  # noqa: PLR2004 - shorter occur by chance
    for word in sorted(words, key=len, reverse=True):
        rest = rest.replace(word, "")
    if _bits(lower) >= MINIMUM_BITS > _bits(rest):
        return "little is left of it without well-known words and names"
    if _bits(rest) < MINIMUM_BITS:
        return "its characters repeat or follow each other"
    return None


def _bits(value: str) -> float:
    """Guessing work in bits: Shannon's entropy of the characters, less what follows from the one before."""
    if not value:
        return 0.0
    for period in range(1, len(value) // 2 + 1):
        if (value[:period] * (len(value) // period + 1))[: len(value)] == value:
            value = value[:period]
            break
    counts = Counter(value)
    entropy = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    steps = Counter(ord(after) - ord(before) for before, after in itertools.pairwise(value))
    predictable = sum(steps[step] for step in (-1, 0, 1))
    return entropy * (len(value) - predictable)


def guessable_names(situation: Situation) -> set[str]:
    """Words of this site that an attacker would try as a secret, in small letters."""
    names = {*situation.variables, *situation.groups, *situation.contracts, *situation.roles}
    names |= {str(situation.site(name)) for name in ("site_name", "site_domain")}
    return {name.lower() for name in names if name}


# --------------------------------------------------------------------------------------------------------- variables


@rule()
def unknown_variable(situation: Situation) -> Iterator[str]:
    """A variable under a role's prefix is one of that role; one under no prefix is no misspelling of ours."""
    secrets = {wanted.name for contract in situation.contracts.values() for wanted in contract.secrets}
    known = {*situation.options, *SITE_VARIABLES, *HOST_VARIABLES, *OTHER_VARIABLES, *secrets}
    prefixes = tuple(f"{name}_" for name in (*situation.roles, "site", "host", "preflight"))
    for name, hosts in _by_variable(situation).items():
        if name in known or name.startswith(FREE_PREFIXES):
            continue
        if name.startswith(prefixes):
            hint = nearest(name, known) or ": take it out."
            yield f"{who(situation, hosts)}: {name} is no variable of any role{hint}"
            continue
        near = nearest_word(name, known, cutoff=0.88)
        if near:
            yield f"{who(situation, hosts)}: {name} is no variable of any role, did you mean {near}?"


@rule()
def boolean(situation: Situation) -> Iterator[str]:
    """A text such as "false" is true wherever it is tested."""
    for name, hosts in _by_variable(situation).items():
        option = situation.options.get(name)
        if option is None or option.type != "bool":
            continue
        wrong = [host for host in hosts if isinstance(situation.variables[host][name], str)]
        if wrong:
            yield (
                f"{who(situation, wrong)}: {name} is a text where true or false is wanted: "
                f"write it without quotes, on the command line as -e '{{\"{name}\": true}}'."
            )


@rule()
def table_key(situation: Situation) -> Iterator[str]:
    """The rows of the site's tables have the keys that are read, and no others."""
    wanted = {"site_networks": (("subnet",), ("gateway",)), "site_vips": (("address", "network", "vrid"), ())}
    for table, (needed, optional) in wanted.items():
        value = situation.site(table)
        if value is None and table == "site_vips":
            continue
        if not isinstance(value, Mapping):
            yield f"all hosts: {table} is no mapping: give it a name and {', '.join(needed)} for each row."
            continue
        for name, row in value.items():
            keys = row if isinstance(row, Mapping) else ()
            for key in keys:
                if key not in needed and key not in optional:
                    hint = nearest(str(key), (*needed, *optional)) or ": take it out."
                    yield f"all hosts: {table}.{name}.{key} is unknown{hint}"
            for key in needed:
                if key not in keys:
                    yield f"all hosts: {table}.{name}.{key} is missing: set it."


@rule()
def condition(situation: Situation) -> Iterator[str]:
    """Which ports are open depends on some variables; all firewalls of a site must go by the same values."""
    for name in sorted({one.variable for one in conditions(situation.contracts)}):
        values = {host: str(situation.value(host, name)) for host in situation.variables}
        if len(set(values.values())) > 1:
            said = {
                value: who(situation, [host for host in values if values[host] == value]) for value in values.values()
            }
            yield (
                f"{name} is {' and '.join(f'{value} for {hosts}' for value, hosts in said.items())}: "
                "set it for all hosts, in group_vars/all, because each host's firewall goes by it."
            )


@rule()
def patroni_timers(situation: Situation) -> Iterator[str]:
    """A slow store must not demote a healthy primary: loop_wait + 2 * retry_timeout <= ttl, ttl >= 20 (Patroni)."""
    names = ("postgres_ttl", "postgres_loop_wait", "postgres_retry_timeout")
    for host in situation.hosts("postgres"):
        ttl, wait, retry = (_seconds(situation.value(host, name)) for name in names)
        if ttl is None or wait is None or retry is None:
            continue
        if ttl < 20:  # noqa: PLR2004 - Patroni's own floor
            yield f"{host}: postgres_ttl {ttl:g} is below 20, the least that Patroni takes: raise it."
        if wait + 2 * retry > ttl:
            yield (
                f"{host}: postgres_loop_wait {wait:g} + 2 * postgres_retry_timeout {retry:g} is more "
                f"than postgres_ttl {ttl:g}: raise the ttl or lower the others."
            )


@rule()
def mirror_lacks(situation: Situation) -> Iterator[str]:
    """What roles install and run is among what the mirror publishes."""
    if not situation.members("mirror"):
        return
    listed = situation.site("mirror_artifacts")
    rows = [row for row in listed if isinstance(row, Mapping)] if isinstance(listed, (list, tuple)) else []
    files = {(str(row.get("name")), version) for row in rows for version in ("", str(row.get("version")))}
    images = {str(row.get("destination")).removeprefix("images/") for row in rows}
    missing: dict[str, dict[str, None]] = defaultdict(dict)
    for need in situation.needs:
        if need.name not in images if need.image else (need.name, need.version) not in files:
            missing[need.role][need.label] = None
    for role, labels in missing.items():
        yield (
            f"{role}: mirror_artifacts does not list {', '.join(labels)}, which the role takes from the mirror: "
            f"add {'it' if len(labels) == 1 else 'them'} with a checksum."
        )


# -------------------------------------------------------------------------------------------------------- Kubernetes


@rule()
def kubernetes_subnets(situation: Situation) -> Iterator[str]:
    """Pods and services have addresses that nothing else of the site has, and enough of them for all nodes."""
    nodes = situation.hosts(KUBERNETES)
    if not nodes:
        return
    found: dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network] = {}
    for name in ("kubernetes_pod_subnet", "kubernetes_service_subnet"):
        value = situation.value(nodes[0], name)
        net = _subnet(value)
        if net is None:
            yield (
                f"kubernetes: {name} is {value!r}: write it as a network address and prefix length, "
                f"such as 10.244.0.0/16."
            )
            continue
        for owner, other in (*found.items(), *_places(situation).items()):
            if net.version == other.version and net.overlaps(other):
                what = other.network_address if other.prefixlen == other.max_prefixlen else other
                yield (
                    f"kubernetes: {name} {net} overlaps {owner} {what}: "
                    f"choose a range that no network, host or VIP of the site has."
                )
        found[name] = net
    pods, services = (found.get(name) for name in ("kubernetes_pod_subnet", "kubernetes_service_subnet"))
    if pods is not None:
        each = NODE_PREFIX[pods.version]
        room = 2 ** (each - pods.prefixlen) if pods.prefixlen <= each else 0
        if room < len(nodes):
            yield (
                f"kubernetes: kubernetes_pod_subnet {pods} has room for {count(room, 'node')} at a /{each} each, "
                f"and group kubernetes has {len(nodes)}: choose a larger range."
            )
    dns = situation.value(nodes[0], "kubernetes_dns_address")
    if services is not None and dns is not None and (_address(dns) is None or _address(dns) not in services):
        yield f"kubernetes: kubernetes_dns_address {dns} is not in {services}: choose one of kubernetes_service_subnet."


def _places(situation: Situation) -> dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """All addresses of the site by the variable that states them: its networks, then what lies in none of them."""
    places: dict[str, ipaddress.IPv4Network | ipaddress.IPv6Network] = {
        f"site_networks.{name}.subnet": net for name, net in situation.subnets().items()
    }
    networks = list(places.values())
    single = {f"site_vips.{name}.address": row.get("address") for name, row in situation.table("site_vips").items()}
    single |= {f"host_addresses.{network} of {host}": address for host, network, address in situation.legs()}
    for owner, value in single.items():
        number = _address(value)
        if number is not None and not any(number in net for net in networks):
            places[owner] = ipaddress.ip_network(number)
    return places


@rule()
def kubernetes_etcd(situation: Situation) -> Iterator[str]:
    """A control plane without an etcd of its own is told which one is its."""
    members = situation.hosts("kubernetes_control_plane")
    outside = [host for host in members if situation.value(host, "kubernetes_control_plane_etcd") == "external"]
    told = "kubernetes_control_plane_etcd_endpoints"
    lost = [host for host in outside if not situation.members("etcd") and not situation.value(host, told)]
    if lost:
        yield (
            f"{who(situation, lost)}: kubernetes_control_plane_etcd is external, and group etcd has no host: "
            f"list the URLs of its members in {told}."
        )


@rule()
def kubernetes_version(situation: Situation) -> Iterator[str]:
    """What live nodes run is changed by `kubernetes_upgrade.yml` alone, one minor at a time and never back."""
    upgrade = situation.purpose == "upgrade"
    name = "kubernetes_upgrade_version" if upgrade else "kubernetes_version"
    nodes = situation.hosts(KUBERNETES)
    if not nodes:
        return
    text = situation.value(nodes[0], name)
    wanted = _version(text)
    if wanted is None:
        yield f"kubernetes: {name} is {text!r}: write the version in full, such as 1.34.4."
        return
    for running, hosts in _running(situation).items():
        does = f"{', '.join(hosts)}: {'runs' if len(hosts) == 1 else 'run'} Kubernetes {_dotted(running)}, and {name}"
        if wanted < running:
            yield f"{does} {text} is older: there is no way back, so set {name} to {_dotted(max(_running(situation)))}."
        elif wanted[0] != running[0] or wanted[1] > running[1] + 1:
            step = f"{running[0]}.{running[1] + 1}"
            yield (
                f"{does} {text} is more than one minor newer: go to a release of {step} first, by "
                f"playbooks/kubernetes_upgrade.yml -e kubernetes_upgrade_version=."
            )
        elif wanted > running and not upgrade:
            yield (
                f"{does} is {text}: a live node is changed by playbooks/kubernetes_upgrade.yml "
                f"-e kubernetes_upgrade_version={text}, which empties it first."
            )


@rule(repairable=True)
def kubernetes_skew(situation: Situation) -> Iterator[str]:
    """API servers are at most one minor apart, and no kubelet is newer than one of them or over three minors older."""
    servers = _running(situation, "manifest_version")
    if not servers:
        return
    oldest, newest = min(servers), max(servers)
    if newest[:2] > (oldest[0], oldest[1] + 1):
        yield (
            f"{', '.join(servers[oldest])}: the API server is {_dotted(oldest)} beside {_dotted(newest)} on "
            f"{', '.join(servers[newest])}, more than one minor apart: bring the older ones up to date first."
        )
    for running, hosts in _running(situation, "kubelet_version").items():
        if running[:2] > oldest[:2]:
            yield (
                f"{', '.join(hosts)}: kubelet {_dotted(running)} is newer than API server {_dotted(oldest)} of "
                f"{', '.join(servers[oldest])}: put the kubelet back or upgrade the API server first."
            )
        elif (running[0], running[1] + KUBELET_SKEW) < newest[:2]:
            yield (
                f"{', '.join(hosts)}: kubelet {_dotted(running)} is more than {KUBELET_SKEW} minors older than API "
                f"server {_dotted(newest)} of {', '.join(servers[newest])}: upgrade the node first."
            )


def _running(situation: Situation, *keys: str) -> dict[tuple[int, int, int], list[str]]:
    """The versions that hosts which belong to a cluster run, oldest first, with their hosts.

    Args:
        situation: where to look.
        keys: what of a host counts; both the kubelet and the API server when none is given.
    """
    found: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for host in situation.hosts(KUBERNETES):
        state = situation.states.get(host, {}).get("kubernetes") or {}
        if not state.get("joined"):
            continue
        for key in keys or ("kubelet_version", "manifest_version"):
            number = _version(state.get(key))
            if number is not None and host not in found[number]:
                found[number].append(host)
    return {number: found[number] for number in sorted(found) if found[number]}


def _version(value: object) -> tuple[int, int, int] | None:
    """A release as numbers; None for what is none."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", str(value))
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _dotted(number: tuple[int, int, int]) -> str:
    return ".".join(map(str, number))


# ------------------------------------------------------------------------------------------------ state of the hosts


@rule(repairable=True)
def memory(situation: Situation) -> Iterator[str]:
    """A host has the memory that its services together need at least."""
    for host, state in situation.states.items():
        contracts = [contract for contract in situation.present() if host in situation.members(contract.group)]
        needed = sum(contract.size.memory_mb for contract in contracts)
        there = state.get("memory_mb")
        if there is not None and there < needed * MEMORY_TOLERANCE:
            services = ", ".join(f"{contract.service} {contract.size.memory_mb}" for contract in contracts)
            yield (
                f"{host}: {there} MB of memory are less than the {needed} MB of its services ({services}): "
                f"add memory or move a service to another host."
            )


@rule(repairable=True)
def disk(situation: Situation) -> Iterator[str]:
    """A file system has the room that the services with data on it need; what is installed has taken its own."""
    for host, state in situation.states.items():
        places: dict[Any, list[tuple[Mapping[str, Any], Contract]]] = defaultdict(list)
        filesystems = state.get("filesystems") or {}
        for contract in situation.present():
            path = contract.data[0].path if contract.data else "/"
            if host in situation.members(contract.group) and path in filesystems:
                places[filesystems[path]["device"]].append((filesystems[path], contract))
        for parts in places.values():
            place = parts[0][0]
            checks = (
                (place["size_gb"], "in all", [contract for _, contract in parts]),
                (place["free_gb"], "free", [contract for part, contract in parts if not part["populated"]]),
            )
            for there, which, contracts in checks:
                needed = sum(contract.size.disk_gb for contract in contracts)
                if there < needed:
                    services = ", ".join(f"{contract.service} {contract.size.disk_gb:g}" for contract in contracts)
                    yield (
                        f"{host}: {there:.1f} GB {which} at {place['mount']} are less than the {needed:g} GB of its "
                        f"services ({services}): enlarge the file system or move a service to another host."
                    )
                    break


@rule(repairable=True)
def clock(situation: Situation) -> Iterator[str]:
    """The clocks of controller and host differ by less than half a second, as far as the round trip lets one see."""
    for host, state in situation.states.items():
        limits = state.get("clock")
        if not limits:
            continue
        ahead, behind = limits["minimum"], -limits["maximum"]
        if max(ahead, behind) > CLOCK_LIMIT:
            way = "ahead of" if ahead > behind else "behind"
            yield (
                f"{host}: its clock is at least {max(ahead, behind):.1f} s {way} the controller's, "
                f"more than {CLOCK_LIMIT} s: set the wrong one of the two."
            )


@rule(repairable=True)
def time_daemon(situation: Situation) -> Iterator[str]:
    """One daemon sets the clock: two fight; none is refused where the site brings its own."""
    for host, state in situation.states.items():
        daemons = state.get("time_daemons")
        if daemons is None:
            continue
        if len(daemons) > 1:
            yield f"{host}: {' and '.join(daemons)} both set the clock: stop and disable all but one."
        if not daemons and situation.variables[host].get("time_provider") == "external":
            yield (
                f"{host}: nothing sets the clock, and time_provider is external: start the site's own time daemon, "
                f"or let the role time bring one."
            )


# ------------------------------------------------------------------------------------------------------------- parts


def argument_options(roles_directories: Iterable[Path | str]) -> dict[str, Option]:
    """The variables of all roles, as their `meta/argument_specs.yml` state them, and those that playbooks take.

    The playbooks beside a roles directory state theirs in `playbooks/meta/argument_specs.yml`, in the form of a role's.

    Raises:
        ContractError: a file that is no such specification.
    """
    options: dict[str, Option] = {}
    for directory in map(Path, roles_directories):
        playbooks = directory.parent / "playbooks" / "meta" / "argument_specs.yml"
        for path in (*sorted(directory.glob("*/meta/argument_specs.yml")), playbooks):
            if path == playbooks and not path.exists():
                continue
            owner = path.parent.parent.name
            label = "/".join(path.parts[-4:] if path != playbooks else path.parts[-3:])
            content = parse_yaml(path, label)
            specs = content.get("argument_specs") if isinstance(content, Mapping) else None
            if not isinstance(specs, Mapping):
                raise ContractError([f"{label}: argument_specs: missing"])
            for entry in specs.values():
                for name, spec in (entry.get("options") or {}).items():
                    options[name] = Option(name, owner, spec.get("type", "str"), spec.get("default"))
    return options


ARTIFACT = "groundplane.onprem.artifact"


def role_artifacts(directory: Path) -> list[Need]:
    """The artifacts that a role's tasks install whatever its variables say, with versions as the tasks write them.

    Raises:
        ContractError: a file of tasks that is no YAML.
    """
    found: dict[Need, None] = {}
    for path in sorted((directory / "tasks").rglob("*.yml")):
        if ARTIFACT not in path.read_text(encoding="utf-8"):
            continue
        tasks = parse_yaml(path, "/".join(path.parts[-4:]))
        for task in _tasks(tasks if isinstance(tasks, list) else []):
            arguments, loop = task.get(ARTIFACT), task.get("loop")
            if not isinstance(arguments, Mapping) or "when" in task:
                continue
            for row in arguments.get("artifacts") or [arguments]:
                names = loop if row.get("name") == "{{ item }}" and isinstance(loop, list) else [row.get("name")]
                for name in names:
                    if isinstance(name, str) and "{{" not in name:
                        found[Need(directory.name, name, str(row.get("version") or ""))] = None
    return list(found)


_IMAGE = re.compile(r"\b(\w+_image_repository)\b\W*?/([\w.-]+):\W*(\w+_tag)\b")


def role_images(directory: Path) -> list[str]:
    """The images that a role's templates and variables name, as templates themselves.

    An image is written as `{{ role_image_repository }}/name:{{ role_name_tag }}`, or as the same joined by `~`.
    """
    files = [*(directory / "templates").rglob("*.j2"), *(directory / "vars").glob("*.yml")]
    found = {match for path in files for match in _IMAGE.findall(path.read_text(encoding="utf-8"))}
    return [f"{{{{ {repository} }}}}/{name}:{{{{ {tag} }}}}" for repository, name, tag in sorted(found)]


def _tasks(tasks: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    """All tasks of a list, those of its blocks included."""
    for task in tasks:
        if isinstance(task, Mapping):
            yield task
            for part in ("block", "rescue", "always"):
                yield from _tasks(task.get(part) or ())


def group_of(role: str, contracts: Mapping[str, Contract], groups: Mapping[str, Any]) -> str | None:
    """The group whose hosts a role makes: its contract's, else the one that its name begins with; None without one."""
    if role in contracts:
        return contracts[role].group
    parts = role.split("_")
    names = ("_".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((name for name in names if name in groups), None)


def role_names(roles_directories: Iterable[Path | str]) -> list[str]:
    """The names of all roles, each once, sorted."""
    return sorted(
        {
            path.parent.name
            for directory in roles_directories
            for path in Path(directory).glob("*/meta")
            if path.is_dir()
        }
    )


def _by_variable(situation: Situation) -> dict[str, list[str]]:
    """The hosts that have a variable, by its name, sorted."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for host, values in situation.variables.items():
        for name in values:
            hosts[str(name)].append(host)
    return dict(sorted(hosts.items()))


def who(situation: Situation, hosts: Sequence[str]) -> str:
    """Hosts as a sentence begins with them."""
    return "all hosts" if len(hosts) > 1 and len(hosts) == len(situation.variables) else ", ".join(hosts)


def each(situation: Situation, said: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What is said of some hosts, each sentence once.

    Args:
        situation: what there is.
        said: sentence to the hosts that it is about.
    """
    for sentence, hosts in said.items():
        yield f"{who(situation, hosts)}: {sentence}"


def unlike(situation: Situation, group: str, hosts: Sequence[str], names: Iterable[str]) -> Iterator[str]:
    """What hosts of a group have to have alike and have not.

    Args:
        situation: what there is.
        group: whose hosts.
        hosts: of it.
        names: of variables.
    """
    for name in names:
        values = {host: situation.variables.get(host, {}).get(name) for host in hosts}
        if any(isinstance(value, Unreadable) for value in values.values()):
            continue
        others = [host for host in hosts if values[host] != values[hosts[0]]]
        if others:
            yield f"{hosts[0]} and {', '.join(others)}: {name} differs between them: set it once for group {group}."


def stored(situation: Situation, group: str, stem: str) -> Iterator[str]:
    """What is missing to put copies into the object store.

    Args:
        situation: what there is.
        group: whose hosts do.
        stem: how the variables begin that say where: `_bucket`, `_servers`, `_access_key`, `_secret_key` and `_keep`.
    """
    said: dict[str, list[str]] = defaultdict(list)
    names = guessable_names(situation)
    bucket = f"{stem}_bucket"
    for host in situation.hosts(group):
        if not situation.value(host, bucket):
            continue
        own = situation.variables.get(host, {})
        if not situation.value(host, f"{stem}_servers") and not situation.members("object_store"):
            said[f"{bucket} is set, and there is no group object_store: name the store in {stem}_servers."].append(host)
        if not own.get(f"{stem}_access_key"):
            said[f"{bucket} is set, and {stem}_access_key is not: name who writes there."].append(host)
        problem = _secret_key_problem(own.get(f"{stem}_secret_key"), bucket, names)
        if problem:
            said[f"{stem}_secret_key {problem}"].append(host)
        keep = whole_number(situation.value(host, f"{stem}_keep"))
        if keep is not None and keep < 1:
            said[f"{stem}_keep is {keep}: keep 1 at least."].append(host)
    yield from each(situation, said)


def _secret_key_problem(secret: Any, bucket: str, names: set[str]) -> str:
    if isinstance(secret, Unreadable):
        return "cannot be read: check its template, or where it comes from."
    if not secret:
        return f"is missing: set it to the secret key of a user who may write to {bucket}."
    weakness = weakness_of(str(secret), SECRET_KEY_LENGTH, names)
    if not weakness:
        return ""
    return f"is weak, because {weakness}: replace it by at least {SECRET_KEY_LENGTH} random characters."


def whole_number(value: object) -> int | None:
    """A whole number, also one in a text; None for anything else."""
    return int(str(value)) if not isinstance(value, bool) and re.fullmatch(r"-?\d+", str(value)) else None


def count(number: int, what: str) -> str:
    """A number of things, in the plural where there is one."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _subnet(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(str(value))
    except ValueError:
        return None


def _address(value: object) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(str(value))
    except ValueError:
        return None


def _usable(
    number: ipaddress.IPv4Address | ipaddress.IPv6Address, net: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> bool:
    """Whether a host may have the address: in the subnet, and neither its first nor its last."""
    if number not in net:
        return False
    return net.prefixlen >= net.max_prefixlen - 1 or number not in (net.network_address, net.broadcast_address)


def _seconds(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None
