# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Service contracts: what a role's service is, stated once in `roles/<role>/meta/service.yml`.

The dataclasses below are the schema: each field says in its metadata which rule its value must keep. To let contracts
grow a key, add a field. Controller side only; no Ansible import.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Rule = Callable[[object, str, list[str]], Any]


class ContractError(ValueError):
    """A contract that breaks its schema.

    Attributes:
        problems: one sentence each, with the file and the path of the key.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        """Join the problems into one message, a line each."""
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


# ---------------------------------------------------------------- rules: value, where it stands, problems -> value kept


def text(pattern: str = r".*\S.*", what: str = "text") -> Rule:
    """A string that matches a pattern as a whole."""
    expression = re.compile(pattern, re.DOTALL)

    def check(value: object, at: str, problems: list[str]) -> Any:
        if not isinstance(value, str) or not expression.fullmatch(value):
            problems.append(f"{at}: {value!r} is not {what}")
        return value

    return check


def choice(*allowed: str) -> Rule:
    """One of a few words; the nearest is suggested."""

    def check(value: object, at: str, problems: list[str]) -> Any:
        if value not in allowed:
            problems.append(f"{at}: {value!r} is not one of {', '.join(allowed)}{nearest(str(value), allowed)}")
        return value

    return check


def number(minimum: float, maximum: float, *, whole: bool = True) -> Rule:
    """A number within limits; True and False are no numbers here."""

    def check(value: object, at: str, problems: list[str]) -> Any:
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not minimum <= value <= maximum:
            kind = "a whole number" if whole else "a number"
            problems.append(f"{at}: {value!r} is not {kind} from {minimum} to {maximum}")
        return value

    return check


def flag(value: object, at: str, problems: list[str]) -> Any:
    """A real boolean: a quoted "false" would be true in many places."""
    if not isinstance(value, bool):
        problems.append(f"{at}: {value!r} is not true or false")
    return value


def anything(value: object, _at: str, _problems: list[str]) -> Any:
    """A value that only people read."""
    return value


def destination(value: object, at: str, problems: list[str]) -> Any:
    """`any`, or an address range in CIDR notation without host bits."""
    if value == "any":
        return value
    try:
        return str(ipaddress.ip_network(str(value)))
    except ValueError as error:
        problems.append(f"{at}: {value!r} is neither 'any' nor an address range ({error})")
        return value


def list_of(rule: Rule, *, single: bool = False) -> Rule:
    """A list without duplicates, kept as a tuple; with `single` one bare value stands for a list of it."""

    def check(value: object, at: str, problems: list[str]) -> Any:
        if single and not isinstance(value, list):
            value = [value]
        if not isinstance(value, list):
            problems.append(f"{at}: {value!r} is not a list")
            return ()
        items = [rule(item, f"{at}[{index}]", problems) for index, item in enumerate(value)]
        for index, item in enumerate(items):
            if isinstance(item, (str, int)) and item in items[:index]:
                problems.append(f"{at}[{index}]: {item!r} is there twice")
        return tuple(items)

    return check


def section(kind: type) -> Rule:
    """A mapping with the keys of a dataclass, kept as an instance of it; None when it cannot be built."""

    def check(value: object, at: str, problems: list[str]) -> Any:
        return _build(kind, value, at, problems)

    return check


NAME = text(r"[a-z][a-z0-9_]*", "a name of lower-case letters, digits and underscores")
NAMES = list_of(NAME, single=True)

PORT = number(1, 65535)
DNS_NAME = text(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", "a DNS name such as '*.apps' or 'a.kube-system.svc.'")
PATH = text(r"/\S*", "an absolute path")
TLS = choice("mutual", "server", "none")


# ----------------------------------------------------------------------------------------------------------- the schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A site-wide variable and the value that it must have."""

    variable: str = field(metadata={"rule": NAME})
    is_: str = field(metadata={"rule": text()})
    default: str = field(metadata={"rule": text()})  # what a site that does not set the variable has

    def holds(self, variables: Mapping[str, Any]) -> bool:
        """Whether it does, among the variables of any host."""
        return str(variables.get(self.variable, self.default)) == self.is_


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """A port (or VRRP) that the service opens, and who may connect to it."""

    name: str = field(metadata={"rule": NAME})
    protocol: str = field(default="tcp", metadata={"rule": choice("tcp", "udp", "vrrp")})
    port: int | None = field(default=None, metadata={"rule": PORT})
    tls: str | None = field(default=None, metadata={"rule": TLS})
    reason: str | None = field(default=None, metadata={"rule": text()})
    network: str | None = field(default=None, metadata={"rule": NAME})  # None: the primary one; any: all legs
    from_: tuple[str, ...] = field(default=(), metadata={"rule": NAMES})  # groups, all, any, pods
    from_networks: tuple[str, ...] = field(default=(), metadata={"rule": NAMES})
    authority: str | None = field(default=None, metadata={"rule": PATH})  # None: the site's anchor
    starttls: str | None = field(default=None, metadata={"rule": choice("postgres")})  # None: TLS from the first byte
    when: Condition | None = field(default=None, metadata={"rule": section(Condition)})  # None: always


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How the load balancer asks a member whether it may get traffic."""

    listen: str = field(metadata={"rule": NAME})
    # redis: the member says over its own protocol that it is the master. It has no path, no status and no method.
    protocol: str = field(default="http", metadata={"rule": choice("http", "redis")})
    path: str = field(default="/", metadata={"rule": PATH})
    status: int = field(default=200, metadata={"rule": number(100, 599)})
    # HEAD where the status is the whole answer. Some servers let a stranger GET what they do not let him HEAD.
    method: str = field(default="HEAD", metadata={"rule": choice("HEAD", "GET")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What clients reach by a VIP."""

    name: str = field(metadata={"rule": NAME})
    vip: str = field(metadata={"rule": NAME})
    port: int = field(metadata={"rule": PORT})
    listen: str = field(metadata={"rule": NAME})
    mode: str = field(default="tcp", metadata={"rule": choice("tcp", "http")})
    tls: str = field(default="mutual", metadata={"rule": TLS})
    reason: str | None = field(default=None, metadata={"rule": text()})
    check: Check | None = field(default=None, metadata={"rule": section(Check)})
    members: str = field(default="all", metadata={"rule": choice("leader", "replicas", "all")})
    from_: tuple[str, ...] = field(default=(), metadata={"rule": NAMES})
    from_networks: tuple[str, ...] = field(default=(), metadata={"rule": NAMES})
    on_marked_down: str | None = field(default=None, metadata={"rule": choice("shutdown-sessions")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """A way out of the site. What other contracts let in needs none."""

    name: str = field(metadata={"rule": NAME})
    to: tuple[str, ...] = field(metadata={"rule": list_of(destination, single=True)})
    ports: tuple[int, ...] = field(metadata={"rule": list_of(PORT)})
    protocol: str = field(default="tcp", metadata={"rule": choice("tcp", "udp")})
    reason: str = field(metadata={"rule": text()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quorum:
    """How many members must vote, and which reader of the gate asks them."""

    minimum: int = field(metadata={"rule": number(1, 99)})
    odd: bool = field(default=True, metadata={"rule": flag})
    engine: str = field(metadata={"rule": NAME})


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate on each member: `<name>.crt` and `<name>.key` in `directory`."""

    name: str = field(metadata={"rule": text(r"[a-z][a-z0-9_-]*", "a file name")})
    directory: str = field(metadata={"rule": PATH})
    owner: str = field(default="root", metadata={"rule": text()})
    group: str = field(default="root", metadata={"rule": text()})
    mode: str = field(default="0600", metadata={"rule": text(r"0[0-7]{3}", 'a quoted octal mode such as "0600"')})
    usages: tuple[str, ...] = field(
        default=("server", "client"), metadata={"rule": list_of(choice("server", "client"))}
    )
    common_name: str = field(default="host", metadata={"rule": text()})
    endpoints: tuple[str, ...] = field(default=(), metadata={"rule": NAMES})
    # Further names: below the site's domain, or whole when they end in a dot.
    names: tuple[str, ...] = field(default=(), metadata={"rule": list_of(DNS_NAME)})
    reload: tuple[str, ...] = field(
        default=(), metadata={"rule": list_of(text(r"[\w@.:-]+\.\w+", "a unit such as nginx.service"))}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A variable whose value nobody may guess."""

    name: str = field(metadata={"rule": NAME})
    minimum_length: int = field(default=24, metadata={"rule": number(8, 4096)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A directory that must outlive the host, and how that is proven."""

    path: str = field(metadata={"rule": PATH})
    backup: str = field(metadata={"rule": text()})
    restore: str = field(metadata={"rule": text()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Where the service is scraped."""

    listen: str = field(metadata={"rule": NAME})
    path: str = field(default="/metrics", metadata={"rule": PATH})


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The floor below which the service is not put on a host."""

    memory_mb: int = field(default=0, metadata={"rule": number(0, 2**24)})
    disk_gb: float = field(default=0, metadata={"rule": number(0, 2**20, whole=False)})
    cpu: float = field(default=0, metadata={"rule": number(0, 4096, whole=False)})
    growth_per_1k_rps: Any = field(default=None, metadata={"rule": anything})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """All that the rest of the site needs to know of one service."""

    service: str = field(metadata={"rule": NAME})
    group: str = field(metadata={"rule": NAME})
    listens: tuple[Listen, ...] = field(default=(), metadata={"rule": list_of(section(Listen))})
    endpoints: tuple[Endpoint, ...] = field(default=(), metadata={"rule": list_of(section(Endpoint))})
    egress: tuple[Egress, ...] = field(default=(), metadata={"rule": list_of(section(Egress))})
    quorum: Quorum | None = field(default=None, metadata={"rule": section(Quorum)})
    certificates: tuple[Certificate, ...] = field(default=(), metadata={"rule": list_of(section(Certificate))})
    secrets: tuple[Secret, ...] = field(default=(), metadata={"rule": list_of(section(Secret))})
    data: tuple[Data, ...] = field(default=(), metadata={"rule": list_of(section(Data))})
    metrics: tuple[Metrics, ...] = field(default=(), metadata={"rule": list_of(section(Metrics))})
    size: Size = field(default=Size(), metadata={"rule": section(Size)})

    def listen(self, name: str) -> Listen:
        """The listen of that name; KeyError when there is none (validation has excluded it for references)."""
        for listen in self.listens:
            if listen.name == name:
                return listen
        raise KeyError(name)

    def under(self, variables: Mapping[str, Any]) -> Contract:
        """The contract as it is on a site with these variables: without ports that are not open there."""
        open_ = tuple(listen for listen in self.listens if listen.when is None or listen.when.holds(variables))
        return self if len(open_) == len(self.listens) else dataclasses.replace(self, listens=open_)

    def as_mapping(self) -> dict[str, Any]:
        """The contract as plain data with the keys of the file and every default filled in."""
        mapping = _plain(self)
        return dict(mapping)


# -------------------------------------------------------------------------------------------------------------- loading


def load(source: Path | str | Mapping[str, Any], label: str | None = None) -> Contract:
    """Read and validate one contract.

    Args:
        source: path of a `service.yml`, or its parsed content.
        label: the file's name in messages; the path itself when left out.

    Raises:
        ContractError: with every problem of the file at once.
        OSError: the file cannot be read.
    """
    if isinstance(source, Mapping):
        name = label or "contract"
        content: object = source
    else:
        name = label or _label(Path(source))
        content = parse_yaml(Path(source), name)
    problems: list[str] = []
    contract = _build(Contract, content, "", problems)
    if isinstance(contract, Contract) and not problems:
        _cross_check(contract, problems)
    if problems or not isinstance(contract, Contract):
        raise ContractError([f"{name}: {problem}" for problem in problems])
    return contract


def discover(roles_directories: Iterable[Path | str]) -> dict[str, Contract]:
    """All contracts under some roles directories, by service name, in the order of the names.

    A file that has not changed since this process last read it is not parsed again.

    Raises:
        ContractError: with the problems of all files, among them a service stated by two roles.
    """
    found: dict[str, tuple[Contract, str]] = {}
    problems: list[str] = []
    for directory in roles_directories:
        for path in sorted(Path(directory).glob("*/meta/service.yml")):
            label = _label(path)
            try:
                contract = _load_cached(path)
            except ContractError as error:
                problems += error.problems
                continue
            role = path.parent.parent.name
            if contract.service != role:
                problems.append(f"{label}: service: {contract.service!r} is not the name of its role, {role!r}")
            elif contract.service in found:
                problems.append(f"{label}: service: {role!r} is also stated by {found[role][1]}")
            else:
                found[role] = (contract, label)
    if problems:
        raise ContractError(problems)
    return {name: found[name][0] for name in sorted(found)}


OWN_ROLES = Path(__file__).resolve().parents[2] / "roles"


def roles_directories(variables: Mapping[str, Any]) -> list[Path]:
    """Where roles are: this collection's, and those that `site_role_paths` lists.

    Args:
        variables: of any host of the inventory.
    """
    return [OWN_ROLES, *(Path(path) for path in variables.get("site_role_paths", ()))]


_cache: dict[Path, tuple[tuple[int, int], Contract]] = {}


def _load_cached(path: Path) -> Contract:
    status = path.stat()
    version = (status.st_mtime_ns, status.st_size)
    cached = _cache.get(path)
    if cached is None or cached[0] != version:
        cached = _cache[path] = (version, load(path))
    return cached[1]


def _label(path: Path) -> str:
    """`roles/<role>/meta/service.yml`, wherever the roles are."""
    parts = path.parts[-4:]
    return "/".join(parts) if parts[-2:] == ("meta", "service.yml") else str(path)


def parse_yaml(path: Path, label: str) -> object:
    """The content of a YAML file.

    Raises:
        ContractError: no YAML, or a key that is there twice in one mapping.
        OSError: the file cannot be read.
    """
    import yaml  # noqa: PLC0415 - controllers have it; nothing that a host imports may need it

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """The safe loader, with a key that is there twice made an error."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        raise ContractError([f"{label}:{key.start_mark.line + 1}: {key.value!r} is there twice"])
                    seen.add((key.tag, key.value))
            return dict(super().construct_mapping(node, deep))

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - derived from the safe loader
    except yaml.YAMLError as error:
        raise ContractError([f"{label}: not YAML: {' '.join(str(error).split())}"]) from error


# ----------------------------------------------------------------------------------------------------------- validation


def nearest_word(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that is most like this one, from a likeness of `cutoff` (0 to 1) on."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff)
    return close[0] if close else None


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` for the known word nearest to this one, or nothing."""
    near = nearest_word(word, known)
    return f", did you mean {near}?" if near else ""


def _key(name: str) -> str:
    """The key in the file of a field: `from` is a word of Python, so that its field is `from_`."""
    return name.rstrip("_")


def _build(kind: type, value: object, at: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{at or 'the file'}: {value!r} is not a mapping")
        return None
    fields = {_key(item.name): item for item in dataclasses.fields(kind)}
    prefix = f"{at}." if at else ""
    before = len(problems)
    unknown = [key for key in value if key not in fields]
    problems += [f"{prefix}{key}: unknown key{nearest(str(key), fields)}" for key in unknown]
    arguments: dict[str, Any] = {}
    for key, item in fields.items():
        if key in value:
            arguments[item.name] = item.metadata["rule"](value[key], prefix + key, problems)
        elif item.default is MISSING:
            problems.append(f"{prefix}{key}: missing")
    return kind(**arguments) if len(problems) == before else None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {_key(item.name): _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _cross_check(contract: Contract, problems: list[str]) -> None:
    """The rules between keys of one contract."""
    _check_listens(contract, problems)
    _check_references(contract, problems)
    _check_certificates(contract, problems)
    for index, endpoint in enumerate(contract.endpoints):
        if endpoint.check is None and endpoint.members != "all":
            problems.append(f"endpoints[{index}].check: missing, and members: {endpoint.members} needs one")
        if endpoint.check is not None and endpoint.check.protocol == "redis":
            _check_redis(endpoint, f"endpoints[{index}]", problems)
        if endpoint.tls != "mutual" and endpoint.reason is None:
            problems.append(f"endpoints[{index}].reason: missing, and tls: {endpoint.tls} needs one")
    for key in ("listens", "endpoints", "egress", "secrets"):
        _check_unique(key, [(item.name,) for item in getattr(contract, key)], problems)
    _check_unique("certificates", [(item.directory, item.name) for item in contract.certificates], problems)
    _check_unique("endpoints", [(item.vip, str(item.port)) for item in contract.endpoints], problems)


def _check_redis(endpoint: Endpoint, at: str, problems: list[str]) -> None:
    if endpoint.check != Check(listen=endpoint.check.listen if endpoint.check else "", protocol="redis"):
        problems.append(f"{at}.check: path, status and method are those of http, and protocol: redis has none")
    if endpoint.members != "leader":
        problems.append(f"{at}.members: {endpoint.members!r}, and protocol: redis finds the leader")


def _check_listens(contract: Contract, problems: list[str]) -> None:
    places: list[tuple[str, ...]] = []
    for index, listen in enumerate(contract.listens):
        at = f"listens[{index}]"
        if listen.protocol == "vrrp":
            _check_vrrp(listen, at, problems)
            places.append((listen.protocol, listen.name))
            continue
        if listen.port is None:
            problems.append(f"{at}.port: missing")
        if listen.tls is None:
            problems.append(f"{at}.tls: missing")
        elif listen.tls != "mutual" and listen.reason is None:
            problems.append(f"{at}.reason: missing, and tls: {listen.tls} needs one")
        if listen.tls == "none":
            _check_no_tls(listen, at, problems)
        sometimes = f"when {listen.when.variable} is {listen.when.is_}" if listen.when else ""
        places.append((listen.protocol, str(listen.port), listen.network or "", sometimes))
    _check_unique("listens", places, problems)


def _check_vrrp(listen: Listen, at: str, problems: list[str]) -> None:
    if listen.port is not None:
        problems.append(f"{at}.port: VRRP has no ports")
    if listen.tls not in (None, "none"):
        problems.append(f"{at}.tls: VRRP has no TLS")
    problems += [
        f"{at}.{key}: VRRP has no TLS" for key in ("authority", "starttls") if getattr(listen, key) is not None
    ]


def _check_no_tls(listen: Listen, at: str, problems: list[str]) -> None:
    if listen.authority is not None:
        problems.append(f"{at}.authority: nobody vouches for a port with tls: none")
    if listen.starttls is not None:
        problems.append(f"{at}.starttls: a port with tls: none starts none")


def _check_references(contract: Contract, problems: list[str]) -> None:
    listens = {listen.name: listen for listen in contract.listens}

    def refer(at: str, name: str) -> None:
        if name not in listens:
            problems.append(f"{at}: no listen is named {name!r}{nearest(name, listens)}")
        elif listens[name].protocol != "tcp":
            problems.append(f"{at}: {name!r} is not a TCP listen")
        elif listens[name].when is not None:
            problems.append(f"{at}: {name!r} is not on every site: it has a condition")

    for index, endpoint in enumerate(contract.endpoints):
        refer(f"endpoints[{index}].listen", endpoint.listen)
        if endpoint.check is not None:
            refer(f"endpoints[{index}].check.listen", endpoint.check.listen)
    for index, metrics in enumerate(contract.metrics):
        refer(f"metrics[{index}].listen", metrics.listen)


def _check_certificates(contract: Contract, problems: list[str]) -> None:
    endpoints = [endpoint.name for endpoint in contract.endpoints]
    for index, certificate in enumerate(contract.certificates):
        for position, name in enumerate(certificate.endpoints):
            if name not in endpoints:
                at = f"certificates[{index}].endpoints[{position}]"
                problems.append(f"{at}: no endpoint is named {name!r}{nearest(name, endpoints)}")


def _check_unique(key: str, identities: Sequence[tuple[str, ...]], problems: list[str]) -> None:
    for index, identity in enumerate(identities):
        if identity in identities[:index]:
            first = identities.index(identity)
            problems.append(f"{key}[{index}]: the same {' '.join(filter(None, identity))} as {key}[{first}]")
