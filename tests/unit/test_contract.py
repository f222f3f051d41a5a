# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A contract that breaks its schema is named by file and key, with the nearest right word."""

# ruff: noqa: E501 - a table reads best with a row a line

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils.contract import (
    OWN_ROLES,
    Contract,
    ContractError,
    discover,
    load,
    parse_yaml,
    roles_directories,
)
from hypothesis import given
from hypothesis import strategies as st

REPOSITORY = Path(__file__).resolve().parents[2]


def architecture_example() -> dict[str, Any]:
    """The contract that docs/architecture.md promises, with its dots filled in."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    block = re.search(r"^```yaml\n(service: .*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    example: dict[str, Any] = yaml.safe_load(block[1].replace("...", "text"))
    example["listens"] += [
        {"name": "pooler", "port": 6432, "tls": "mutual"},
        {"name": "rest", "port": 8008, "tls": "mutual"},
    ]
    return example


def minimal(**changes: Any) -> dict[str, Any]:
    listen = {"name": "api", "port": 80, "tls": "mutual"}
    return {"service": "thing", "group": "thing", "listens": [listen], **changes}


def problems(content: Any) -> list[str]:
    with pytest.raises(ContractError) as caught:
        load(content, "roles/thing/meta/service.yml")
    return [problem.removeprefix("roles/thing/meta/service.yml: ") for problem in caught.value.problems]


def test_the_example_of_the_architecture_is_a_contract() -> None:
    contract = load(architecture_example())
    assert contract.service == "postgres"
    assert contract.listen("database").from_ == ("postgres", "load_balancer")
    assert contract.endpoints[0].check is not None
    assert contract.endpoints[0].check.path == "/primary"
    assert contract.quorum is not None
    assert contract.quorum.engine == "patroni"
    assert contract.size.memory_mb == 512


def test_as_mapping_is_a_contract_again_and_json() -> None:
    contract = load(architecture_example())
    mapping = json.loads(json.dumps(contract.as_mapping()))
    assert mapping["listens"][0]["from"] == ["postgres", "load_balancer"]

    def without_nulls(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_nulls(item) for key, item in value.items() if item is not None}
        return [without_nulls(item) for item in value] if isinstance(value, list) else value

    assert load(without_nulls(mapping)) == contract


LISTEN = {"name": "api", "port": 80, "tls": "mutual"}
ENDPOINT = {"name": "web", "vip": "public", "port": 443, "listen": "api"}
CERTIFICATE = {"name": "thing", "directory": "/etc/thing"}
SOMETIMES = {"variable": "a", "is": "b", "default": "c"}

BROKEN: list[tuple[dict[str, Any], list[str]]] = [
    ({"sevice": 1}, ["sevice: unknown key, did you mean service?"]),
    ({"listens": [{**LISTEN, "tsl": "none"}]}, ["listens[0].tsl: unknown key, did you mean tls?"]),
    ({"listens": [{**LISTEN, "zzz": 1}]}, ["listens[0].zzz: unknown key"]),
    ({"listens": [{"name": "api", "port": 80}]}, ["listens[0].tls: missing"]),
    ({"listens": [{"name": "api", "tls": "mutual"}]}, ["listens[0].port: missing"]),
    ({"listens": [{"port": 80, "tls": "mutual"}]}, ["listens[0].name: missing"]),
    ({"listens": [{**LISTEN, "port": 65536}]}, ["listens[0].port: 65536 is not a whole number from 1 to 65535"]),
    ({"listens": [{**LISTEN, "port": "80"}]}, ["listens[0].port: '80' is not a whole number from 1 to 65535"]),
    ({"listens": [{**LISTEN, "port": True}]}, ["listens[0].port: True is not a whole number from 1 to 65535"]),
    ({"listens": [{**LISTEN, "protocol": "tpc"}]}, ["listens[0].protocol: 'tpc' is not one of tcp, udp, vrrp, did you mean tcp?"]),
    ({"listens": [{**LISTEN, "tls": "none"}]}, ["listens[0].reason: missing, and tls: none needs one"]),
    ({"listens": [{**LISTEN, "tls": "server", "reason": " "}]}, ["listens[0].reason: ' ' is not text"]),
    ({"listens": [{"name": "v", "protocol": "vrrp", "port": 112}]}, ["listens[0].port: VRRP has no ports"]),
    ({"listens": [{"name": "v", "protocol": "vrrp", "tls": "mutual"}]}, ["listens[0].tls: VRRP has no TLS"]),
    ({"listens": [{"name": "v", "protocol": "vrrp", "authority": "/ca.crt"}]}, ["listens[0].authority: VRRP has no TLS"]),
    ({"listens": [{**LISTEN, "tls": "none", "reason": "r", "authority": "/ca.crt"}]}, ["listens[0].authority: nobody vouches for a port with tls: none"]),
    ({"listens": [{"name": "v", "protocol": "vrrp", "starttls": "postgres"}]}, ["listens[0].starttls: VRRP has no TLS"]),
    ({"listens": [{**LISTEN, "tls": "none", "reason": "r", "starttls": "postgres"}]}, ["listens[0].starttls: a port with tls: none starts none"]),
    ({"listens": [{**LISTEN, "starttls": "ldap"}]}, ["listens[0].starttls: 'ldap' is not one of postgres"]),
    ({"listens": [{**LISTEN, "authority": "ca.crt"}]}, ["listens[0].authority: 'ca.crt' is not an absolute path"]),
    ({"listens": [{**LISTEN, "from": ["a", "a"]}]}, ["listens[0].from[1]: 'a' is there twice"]),
    ({"listens": [{**LISTEN, "from": ["Data Base"]}]}, ["listens[0].from[0]: 'Data Base' is not a name of lower-case letters, digits and underscores"]),
    ({"listens": [LISTEN, {**LISTEN, "port": 81}]}, ["listens[1]: the same api as listens[0]"]),
    ({"listens": [LISTEN, {**LISTEN, "name": "b"}]}, ["listens[1]: the same tcp 80 as listens[0]"]),
    ({"listens": [{**LISTEN, "when": {"variable": "a", "is": "b"}}]}, ["listens[0].when.default: missing"]),
    ({"listens": [{**LISTEN, "when": SOMETIMES}, {**LISTEN, "name": "b", "when": SOMETIMES}]}, ["listens[1]: the same tcp 80 when a is b as listens[0]"]),
    ({"listens": [{**LISTEN, "when": SOMETIMES}], "endpoints": [ENDPOINT]}, ["endpoints[0].listen: 'api' is not on every site: it has a condition"]),
    ({"listens": "api"}, ["listens: 'api' is not a list"]),
    ({"listens": ["api"]}, ["listens[0]: 'api' is not a mapping"]),
    ({"endpoints": [{**ENDPOINT, "listen": "apo"}]}, ["endpoints[0].listen: no listen is named 'apo', did you mean api?"]),
    ({"endpoints": [{**ENDPOINT, "check": {"listen": "rest"}}]}, ["endpoints[0].check.listen: no listen is named 'rest'"]),
    ({"endpoints": [{**ENDPOINT, "check": {"listen": "api", "paht": "/"}}]}, ["endpoints[0].check.paht: unknown key, did you mean path?"]),
    ({"endpoints": [{**ENDPOINT, "check": {"listen": "api", "path": "health"}}]}, ["endpoints[0].check.path: 'health' is not an absolute path"]),
    ({"endpoints": [{**ENDPOINT, "members": "leader", "check": {"listen": "api", "protocol": "redis", "path": "/a"}}]}, ["endpoints[0].check: path, status and method are those of http, and protocol: redis has none"]),
    ({"endpoints": [{**ENDPOINT, "check": {"listen": "api", "protocol": "redis"}}]}, ["endpoints[0].members: 'all', and protocol: redis finds the leader"]),
    ({"endpoints": [{**ENDPOINT, "members": "leader"}]}, ["endpoints[0].check: missing, and members: leader needs one"]),
    ({"endpoints": [{**ENDPOINT, "tls": "none"}]}, ["endpoints[0].reason: missing, and tls: none needs one"]),
    ({"endpoints": [ENDPOINT, {**ENDPOINT, "name": "b"}]}, ["endpoints[1]: the same public 443 as endpoints[0]"]),
    ({"listens": [{**LISTEN, "protocol": "udp"}], "endpoints": [ENDPOINT]}, ["endpoints[0].listen: 'api' is not a TCP listen"]),
    ({"metrics": [{"listen": "metrics"}]}, ["metrics[0].listen: no listen is named 'metrics'"]),
    ({"quorum": {"minimum": 3}}, ["quorum.engine: missing"]),
    ({"quorum": {"minimum": 3, "odd": "yes", "engine": "etcd"}}, ["quorum.odd: 'yes' is not true or false"]),
    ({"certificates": [{**CERTIFICATE, "mode": "640"}]}, ["certificates[0].mode: '640' is not a quoted octal mode such as \"0600\""]),
    ({"certificates": [{**CERTIFICATE, "usages": ["client", "sign"]}]}, ["certificates[0].usages[1]: 'sign' is not one of server, client"]),
    ({"certificates": [{**CERTIFICATE, "endpoints": ["web"]}]}, ["certificates[0].endpoints[0]: no endpoint is named 'web'"]),
    ({"certificates": [{**CERTIFICATE, "reload": ["nginx"]}]}, ["certificates[0].reload[0]: 'nginx' is not a unit such as nginx.service"]),
    ({"certificates": [CERTIFICATE, CERTIFICATE]}, ["certificates[1]: the same /etc/thing thing as certificates[0]"]),
    ({"secrets": [{"name": "thing_password", "minimum_length": 4}]}, ["secrets[0].minimum_length: 4 is not a whole number from 8 to 4096"]),
    ({"size": {"memory_mb": -1}}, ["size.memory_mb: -1 is not a whole number from 0 to 16777216"]),
    ({"size": {"cpu": "half"}}, ["size.cpu: 'half' is not a number from 0 to 4096"]),
    ({"egress": [{"name": "out", "to": "10.0.0.1/8", "ports": [80], "reason": "r"}]}, ["egress[0].to[0]: '10.0.0.1/8' is neither 'any' nor an address range (10.0.0.1/8 has host bits set)"]),
    ({"egress": [{"name": "out", "to": "any", "ports": [80]}]}, ["egress[0].reason: missing"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), BROKEN, ids=[case[1][0] for case in BROKEN])
def test_what_is_wrong_is_named_with_its_key(changes: dict[str, Any], expected: list[str]) -> None:
    assert problems(minimal(**changes)) == expected


def test_all_problems_of_a_file_are_told_at_once() -> None:
    assert problems(minimal(group=3, listens=[{**LISTEN, "tsl": 1, "port": 0}])) == [
        "group: 3 is not a name of lower-case letters, digits and underscores",
        "listens[0].tsl: unknown key, did you mean tls?",
        "listens[0].port: 0 is not a whole number from 1 to 65535",
    ]


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_file_that_is_no_mapping(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "service.yml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ContractError, match=r"service\.yml: the file: .* is not a mapping"):
        load(file)


def write(roles: Path, role: str, content: str) -> Path:
    path = roles / role / "meta" / "service.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_a_key_twice_and_broken_yaml_are_told_with_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "roles", "thing", "service: thing\ngroup: a\ngroup: b\n")
    with pytest.raises(ContractError, match=r"roles/thing/meta/service\.yml:3: 'group' is there twice"):
        load(path)
    path.write_text("service: [\n")
    with pytest.raises(ContractError, match=r"roles/thing/meta/service\.yml: not YAML: .*line 2"):
        load(path)


def test_discover_tells_the_problems_of_all_files(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a" / "roles", tmp_path / "b" / "roles"
    write(ours, "one", "service: one\ngroup: one\n")
    write(ours, "two", "service: too\ngroup: two\n")
    write(theirs, "one", "service: one\ngroup: one\n")
    write(theirs, "three", "service: three\n")
    with pytest.raises(ContractError) as caught:
        discover([ours, theirs])
    assert caught.value.problems == [
        "roles/two/meta/service.yml: service: 'too' is not the name of its role, 'two'",
        "roles/one/meta/service.yml: service: 'one' is also stated by roles/one/meta/service.yml",
        "roles/three/meta/service.yml: group: missing",
    ]


def test_discover_parses_again_what_has_changed_and_only_that(tmp_path: Path) -> None:
    path = write(tmp_path, "one", "service: one\ngroup: one\n")
    first = discover([tmp_path])["one"]
    assert discover([tmp_path])["one"] is first
    path.write_text("service: one\ngroup: two\n")
    os.utime(path, ns=(1, 1))
    assert discover([tmp_path])["one"].group == "two"


def test_roles_of_other_collections_take_part(tmp_path: Path) -> None:
    assert roles_directories({}) == [OWN_ROLES]
    assert roles_directories({"site_role_paths": [str(tmp_path)]}) == [OWN_ROLES, tmp_path]


def test_the_contracts_of_this_collection_are_valid_and_of_their_role() -> None:
    contracts = discover([REPOSITORY / "roles"])
    assert list(contracts) == sorted(contracts)
    ports: dict[tuple[str, str, int | None], str] = {}
    for contract in contracts.values():
        for listen in contract.listens:
            if listen.protocol != "vrrp" and contract.group != "all":
                owner = ports.setdefault((contract.group, listen.protocol, listen.port), contract.service)
                assert owner == contract.service


def test_only_known_tls_exceptions_are_without_a_client_certificate() -> None:
    for contract in discover([REPOSITORY / "roles"]).values():
        for listen in contract.listens:
            assert listen.protocol == "vrrp" or listen.tls == "mutual" or len(listen.reason or "") > 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from([*minimal(), "endpoints", "quorum", "certificates", "size", "egress", "data"])


@given(KEYS, JSON)
def test_no_content_breaks_the_validation(key: str, value: Any) -> None:
    """Whatever a file holds, the answer is a contract or a list of problems, never another error."""
    with suppress(ContractError):
        assert isinstance(load(minimal(**{key: value})), Contract)


def test_parse_yaml_reads_what_the_safe_loader_reads(tmp_path: Path) -> None:
    file = tmp_path / "x.yml"
    file.write_text("a: &x {b: [1, 2]}\nc: {<<: *x, d: 3}\n")
    assert parse_yaml(file, "x.yml") == yaml.safe_load(file.read_text())
