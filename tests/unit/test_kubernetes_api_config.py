# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A kubeconfig is read without a YAML library, and its key touches no disk."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import kubernetes_config
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import Profile
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_config import (
    ConfigError,
    load,
    parse,
    parse_block_yaml,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.pki_site import Site


def config(**user: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "kubernetes", "cluster": {"certificate-authority-data": "", "server": "https://[::1]:6443"}}
        ],
        "contexts": [{"name": "a@kubernetes", "context": {"cluster": "kubernetes", "user": "a"}}],
        "current-context": "a@kubernetes",
        "preferences": {},
        "users": [{"name": "other", "user": {}}, {"name": "a", "user": user}],
    }


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@pytest.fixture(scope="module")
def material() -> tuple[str, str, bytes]:
    site = Site()
    return site.anchors, *site.issue(Profile(common_name="kubernetes-admin", usages=frozenset({"client"})))


@pytest.fixture
def complete(material: tuple[str, str, bytes]) -> dict[str, Any]:
    anchors, chain, key = material
    whole = config(**{"client-certificate-data": encoded(chain), "client-key-data": encoded(key)})
    whole["clusters"][0]["cluster"]["certificate-authority-data"] = encoded(anchors)
    return whole


@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps])
def test_what_kubeadm_writes_is_read(complete: dict[str, Any], dump: Any, material: tuple[str, str, bytes]) -> None:
    read = parse(dump(complete), "/etc/kubernetes/admin.conf")
    assert (read.server, read.ca, read.certificate, read.key.encode()) == ("https://[::1]:6443", *material)
    assert "PRIVATE" not in repr(read)


def test_the_key_is_used_from_memory(complete: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    context = parse(yaml.safe_dump(complete), "x").context()
    assert context.cert_store_stats()["x509_ca"] == 1
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_files_stand_beside_the_kubeconfig(complete: dict[str, Any], tmp_path: Path) -> None:
    user = complete["users"][1]["user"]
    (tmp_path / "both.pem").write_bytes(b"".join(base64.b64decode(value) for value in user.values()))
    complete["users"][1]["user"] = {"client-certificate": "both.pem", "client-key": str(tmp_path / "both.pem")}
    path = tmp_path / "kubelet.conf"
    path.write_text(yaml.safe_dump(complete))
    load(str(path)).context()
    (tmp_path / "both.pem").unlink()
    with pytest.raises(ConfigError, match=r"kubelet.conf: client-certificate both.pem: No such file"):
        load(str(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "Pod"}, "is not a kubeconfig"),
        ({"current-context": "b"}, "has no context 'b' below contexts"),
        ({"users": []}, "has no user 'a' below users"),
        ({"clusters": [{"name": "kubernetes", "cluster": {"server": "http://a"}}]}, "is not an https URL"),
        ({"clusters": [{"name": "kubernetes", "cluster": {"server": "https://a"}}]}, "names no certificate authority"),
        (
            {
                "clusters": [
                    {"name": "kubernetes", "cluster": {"server": "https://a", "insecure-skip-tls-verify": True}}
                ]
            },
            "not to verify the server",
        ),
        (
            {
                "clusters": [
                    {"name": "kubernetes", "cluster": {"server": "https://a", "certificate-authority-data": "?"}}
                ]
            },
            "certificate-authority-data is not PEM in base64",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(complete: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(yaml.safe_dump(complete | change), "x")


def test_a_key_of_another_certificate_is_refused_without_showing_it(complete: dict[str, Any]) -> None:
    other = Site().issue(Profile(common_name="x", usages=frozenset({"client"})))[1]
    complete["users"][1]["user"]["client-key-data"] = encoded(other)
    with pytest.raises(ConfigError, match=r"its client certificate and key cannot be used") as caught:
        parse(yaml.safe_dump(complete), "x").context()
    assert "PRIVATE" not in str(caught.value)


PLAIN = st.from_regex(r"[a-zA-Z0-9/][a-zA-Z0-9/@:._+=-]{0,20}[a-zA-Z0-9=]", fullmatch=True)
QUOTED = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12)
SCALAR = st.one_of(PLAIN, QUOTED, st.none())
KEY = st.from_regex(r"[a-z][a-z-]{0,8}[a-z]", fullmatch=True)
TREE = st.recursive(
    SCALAR, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=3))
)


class Text(yaml.SafeDumper):
    """Writes as Go's library does: lists are not indented below their key."""


@given(st.dictionaries(KEY, TREE, min_size=1, max_size=4))
def test_block_yaml_is_read_as_the_library_reads_it(whole: dict[str, Any]) -> None:
    text = yaml.dump(whole, Dumper=Text, width=10**9)
    try:
        read = parse_block_yaml(text)
    except ConfigError:
        return  # refused is not misread
    assert read == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x 1\n", "line 1 has a value in a notation"),
        ("a: 1\nb: |\n  text\n", "line 2 has a value in a notation"),
        ("a: [1, 2]\n", "line 1 has a value in a notation"),
        ("a: 1\na: 2\n", "line 2 has the key a a second time"),
        ("a: 1\n  b: 2\n", "line 2 is indented"),
        ("a\n", "line 1 is not"),
        ("a: 'x\n", "line 1 has a quoted text"),
    ],
)
def test_more_than_blocks_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_block_yaml(text)


def test_the_module_has_no_yaml_library() -> None:
    assert "import yaml" not in Path(kubernetes_config.__file__).read_text()
