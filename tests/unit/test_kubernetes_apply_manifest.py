# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a set of declared objects is, before it goes to a cluster."""

from __future__ import annotations

import random
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.action.kubernetes_apply import LONGEST, documents, shown
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_manifest import (
    SET_LABEL,
    Declared,
    ManifestError,
    declare,
    pack,
    unpack,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_set import Record, path


def config(name: str = "a", namespace: str = "n", **more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, **more}


def kind(api_version: str, name: str, namespace: str = "n", **more: Any) -> dict[str, Any]:
    metadata = {"name": name.lower(), **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": api_version, "kind": name, "metadata": metadata, **more}


def secret(**more: Any) -> dict[str, Any]:
    return kind("v1", "Secret", **more)


def one(document: dict[str, Any]) -> Declared:
    return declare([("f.yaml", document)], "s")[0]


def test_what_others_depend_on_comes_first() -> None:
    expected = [
        kind("v1", "Namespace", ""),
        kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", ""),
        kind("v1", "ServiceAccount"),
        kind("rbac.authorization.k8s.io/v1", "ClusterRole", ""),
        kind("networking.k8s.io/v1", "NetworkPolicy"),
        config(),
        kind("v1", "Service"),
        kind("apps/v1", "Deployment"),
        kind("apiregistration.k8s.io/v1", "APIService", ""),
        kind("events.k8s.io/v1", "Event"),
        # A custom kind that is called like a built-in one is a custom one.
        kind("example.org/v1", "Namespace"),
    ]
    documents = [("f.yaml", document) for document in expected]
    random.Random(1).shuffle(documents)
    assert [found.body["kind"] for found in declare(documents, "s")] == [document["kind"] for document in expected]


def test_lists_are_taken_apart_and_empty_documents_left_out() -> None:
    nested = {"kind": "ConfigMapList", "apiVersion": "v1", "items": [config("b"), None]}
    found = declare(
        [("f.yaml", None), ("f.yaml", {"kind": "List", "apiVersion": "v1", "items": [config(), nested]})], "s"
    )
    assert [str(declared.identity) for declared in found] == ["ConfigMap n/a", "ConfigMap n/b"]


def test_each_object_carries_its_set_and_nothing_that_generators_print() -> None:
    document = config(status={"x": 1})
    document["metadata"].update(creationTimestamp=None, labels={"app": "x"})
    body = one(document).body
    assert body["metadata"] == {"name": "a", "namespace": "n", "labels": {"app": "x", SET_LABEL: "s"}}
    assert "status" not in body
    assert document["metadata"]["labels"] == {"app": "x"}, "what was given is not changed"


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([config(), config()], r"ConfigMap n/a is declared twice in 0.yaml|in 0.yaml and in 1.yaml"),
        ([kind("apps/v1", "Deployment"), kind("apps/v1beta1", "Deployment")], "is declared in 0.yaml and in 1.yaml"),
        (["text"], "0.yaml: holds str where an object belongs"),
        ([{"kind": "A"}], "0.yaml: an object without apiVersion"),
        ([{"apiVersion": "v1"}], "0.yaml: an object without kind"),
        ([{"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "a"}}], "a Pod without metadata.name"),
        ([kind("v1", "ConfigMap", "")], "0.yaml: ConfigMap configmap names no namespace"),
        ([kind("v1", "Namespace", "n")], "0.yaml: Namespace n/namespace names a namespace, and its kind is in none"),
        ([{**config(), "metadata": {"name": "a", "namespace": "n", "labels": []}}], None),
        ([{**config(), "metadata": {"name": "a", "namespace": "n", "labels": ["x"]}}], "labels is not a mapping"),
        (
            [{**config(), "metadata": {"name": "a", "namespace": "n", "labels": {SET_LABEL: "t"}}}],
            "carries the label groundplane.onprem/set=t, and belongs to the set s",
        ),
        ([secret(data={"a": "?"})], r"0.yaml: Secret secret: data.a is not base64"),
        ([secret(stringData={"a": 1})], r"0.yaml: Secret secret: stringData.a is not text; quote it"),
    ],
)
def test_what_contradicts_itself_is_refused(documents: list[Any], said: str | None) -> None:
    given = [(f"{index}.yaml", document) for index, document in enumerate(documents)]
    if said is None:
        assert declare(given, "s")
        return
    with pytest.raises(ManifestError, match=said):
        declare(given, "s")


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a" * 41, "a\n"])
def test_a_set_whose_name_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(ManifestError, match="lower-case letters"):
        declare([], name)


def test_the_scope_of_a_custom_kind_is_what_its_definition_says() -> None:
    spec = {"group": "example.org", "names": {"kind": "X"}, "scope": "Cluster"}
    definition = kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", spec=spec)
    assert declare([("f", definition), ("f", kind("example.org/v1", "X", ""))], "s")
    with pytest.raises(ManifestError, match="f: X n/x names a namespace"):
        declare([("f", definition), ("f", kind("example.org/v1", "X"))], "s")
    assert declare([("f", kind("example.org/v1", "X", "")), ("f", kind("example.org/v1", "Y"))], "s")


def test_two_that_set_the_same_number_are_refused() -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "deployment"}
    scaler = kind("autoscaling/v2", "HorizontalPodAutoscaler", spec={"scaleTargetRef": target})
    with pytest.raises(ManifestError, match=r"f: Deployment n/deployment declares spec.replicas, which Horizontal"):
        declare([("f", scaler), ("f", kind("apps/v1", "Deployment", spec={"replicas": 2}))], "s")
    assert declare([("f", scaler), ("f", kind("apps/v1", "Deployment", spec={}))], "s")
    assert declare([("f", scaler), ("f", kind("apps/v1", "Deployment", "other", spec={"replicas": 2}))], "s")


def test_a_secret_has_one_notation_and_a_checksum_that_says_nothing_of_its_values() -> None:
    plain, encoded = (
        secret(stringData={"a": "x" * 60}),
        secret(data={"a": ("eHh4" * 20)[:40] + "\n" + "eHh4" * 10 + "\n"}),
    )
    assert one(plain).body == one(encoded).body
    assert one(plain).checksum == one(secret(stringData={"a": "other"})).checksum
    assert one(plain).checksum != one(secret(stringData={"a": "x"}, type="kubernetes.io/tls")).checksum
    assert one(config(data={"a": "1"})).checksum != one(config(data={"a": "2"})).checksum


def test_what_was_packed_arrives_or_is_refused() -> None:
    objects = declare([("f.yaml", config()), ("g.yaml", secret(stringData={"a": "ä"}))], "s")
    stream = pack(objects)
    assert unpack(stream) == objects
    for broken in ("", stream[:-8], "x" + stream[1:], "é"):
        with pytest.raises(ManifestError, match="did not arrive whole"):
            unpack(broken)


def test_a_record_is_read_as_it_was_written_and_a_broken_one_is_none() -> None:
    kinds, objects = '[["apps","v1","Deployment","deployments",true]]', '[["apps","Deployment","n","a","1","2"]]'
    text = f'{{"resources":{kinds},"objects":{objects}}}'
    assert Record.from_text(text).text() == text
    for broken in ("", "[]", "{}", '{"resources":[["a"]],"objects":[]}', '{"resources":[],"objects":[["a"]]}'):
        assert Record.from_text(broken) == Record()


def test_names_for_prune_allow() -> None:
    assert path(one(config()).identity) == "ConfigMap/n/a"
    assert path(one(kind("v1", "Namespace", "")).identity) == "Namespace/namespace"


# ------------------------------------------------------------------------------------------------------------- files


def test_yaml_is_read_as_the_api_reads_it() -> None:
    text = "a: 2026-01-02\nb: 010\nc: &x {d: on}\n---\n---\ne: ~\n"
    assert documents(text, "f") == [{"a": "2026-01-02", "b": 8, "c": {"d": True}}, None, {"e": None}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "f: is not valid YAML in line 4: the key 'c' stands a second time"),
        ("a: [geheim\n", "f: is not valid YAML in line 2: "),
        ("a: !!python/object:os.system geheim\n", "f: is not valid YAML in line 1: could not determine a constructor"),
        ("a: \0geheim\n", "f: is not valid YAML$"),
    ],
)
def test_broken_yaml_is_refused_and_not_quoted(text: str, said: str) -> None:
    with pytest.raises(ManifestError, match=said) as caught:
        documents(text, "f")
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_difference_that_nobody_would_read_is_told_in_a_word() -> None:
    long = {"a": "x" * (LONGEST + 1)}
    assert shown({"object": "X a", "before": None, "after": long}) == {"prepared": "X a: is new (too long to show)\n"}
    assert shown({"object": "X a", "before": long, "after": None}) == {
        "prepared": "X a: is deleted (too long to show)\n"
    }
    assert shown({"object": "X a", "before": long, "after": {}}) == {"prepared": "X a: differs (too long to show)\n"}
    short = shown({"object": "X a", "before": {"a": 1}, "after": None})
    assert short == {"before_header": "X a", "after_header": "X a", "before": "a: 1\n", "after": ""}
