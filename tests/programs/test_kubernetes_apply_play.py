# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`groundplane.onprem.kubernetes_apply` as a play runs it: from templates to a real API server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.programs.play import Answer, Role

if TYPE_CHECKING:
    from pathlib import Path

    from tests.programs.cluster import Cluster, Hands

KINDS = ("ConfigMap", "ConfigMap", "Secret")
CONFIG = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: NS}
data: {greeting: "{{ greeting }}", since: 2026-01-02}
---
# Nothing in here.
---
apiVersion: v1
kind: Secret
metadata: {name: s, namespace: NS}
stringData: {password: "{{ password }}"}
"""
PLAIN = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: b, namespace: NS}
data: {text: "{{ not a template }}"}
"""


class Play:
    """A role with a set, run against the API."""

    def __init__(self, cluster: Cluster, hands: Hands, directory: Path) -> None:
        self.cluster, self.hands, self.role = cluster, hands, Role(directory)
        self.variables = {"greeting": "hello", "password": "geheim-eins"}

    def template(self, name: str, text: str) -> None:
        self.role.template(f"cluster/{name}", text.replace("NS", self.hands.namespace))

    def run(self, *flags: str, **options: Any) -> Answer:
        given = {"set": self.hands.namespace, "src": "cluster", "kubeconfig": str(self.cluster.kubeconfig), **options}
        return self.role.run("kubernetes_apply", given, *flags, variables=self.variables)


@pytest.fixture
def play(cluster: Cluster, hands: Hands, tmp_path: Path) -> Play:
    play = Play(cluster, hands, tmp_path)
    play.template("one/config.yaml.j2", CONFIG)
    play.template("plain.yml", PLAIN)
    return play


def test_a_directory_of_templates_is_in_the_cluster(play: Play) -> None:
    predicted, done, again = play.run("--check", "--diff"), play.run("--diff"), play.run("--diff")
    names = [f"{kind} {play.hands.namespace}/{name}" for kind, name in zip(KINDS, "abs", strict=True)]
    for answer in (predicted, done):
        assert (answer.result["changed"], answer.result["created"]) == (True, names)
    assert predicted.result["diff"] == done.result["diff"]
    assert (again.result["changed"], again.result["unchanged"], again.result["requests"]) == (False, 3, 3)
    assert play.hands.get("ConfigMap", "a")["data"] == {"greeting": "hello", "since": "2026-01-02"}
    assert play.hands.get("ConfigMap", "b")["data"] == {"text": "{{ not a template }}"}
    assert yaml.safe_load(done.result["diff"][0]["after"])["data"] == {"greeting": "hello", "since": "2026-01-02"}
    assert "geheim" not in "".join(answer.output + answer.warnings for answer in (predicted, done, again))


def test_a_changed_secret_is_not_shown_however_loud_the_run(play: Play) -> None:
    play.run()
    play.variables = {"greeting": "bye", "password": "geheim-zwei"}
    answer = play.run("--diff", "-vvvv")
    assert len(answer.result["configured"]) == 2
    assert "secret, another one" in answer.output
    assert "geheim" not in answer.output + answer.warnings
    assert "Z2VoZWlt" not in answer.output + answer.warnings


def test_a_secret_that_is_refused_is_not_shown(play: Play) -> None:
    play.template("one/config.yaml.j2", CONFIG.replace("name: s,", "name: S_,"))
    answer = play.run("-vvv")
    assert re.search(r"one/config.yaml.j2: Secret t\d+/S_: metadata.name: FieldValueInvalid", answer.result["msg"])
    assert "geheim" not in answer.output + answer.warnings


def test_what_left_the_directory_is_pruned_and_the_protected_is_named(play: Play) -> None:
    space = f"{play.hands.namespace}-x"
    play.template("space.yaml", f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {space}}}\n")
    play.run()
    play.template("space.yaml", "")
    play.template("plain.yml", "")
    answer = play.run("--diff")
    assert answer.result["pruned"] == [f"ConfigMap {play.hands.namespace}/b"]
    assert answer.result["kept"] == [f"Namespace {space}"]
    assert any(f"Namespace {space} is no longer declared and was kept" in text for text in answer.result["warnings"])
    assert [one["after"] for one in answer.result["diff"]] == [""]
    assert play.run(prune_allow=[f"Namespace/{space}"]).result["pruned"] == [f"Namespace {space}"]


def test_a_definition_of_a_megabyte_travels(play: Play) -> None:
    group = f"{play.hands.namespace}.example.org"
    properties = {f"field{number}": {"type": "string", "description": f"{number} " * 70} for number in range(3000)}
    spec = {"type": "object", "properties": properties}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"bigs.{group}", "creationTimestamp": None},
        "spec": {
            "group": group,
            "names": {"kind": "Big", "plural": "bigs"},
            "scope": "Namespaced",
            "versions": [version],
        },
    }
    text = yaml.safe_dump(definition)
    assert len(text) > 1_000_000
    play.template("big.yaml", text)
    answer = play.run("--diff")
    assert answer.result.get("msg") is None
    assert {"prepared": f"CustomResourceDefinition bigs.{group}: is new (too long to show)\n"} in answer.result["diff"]
    assert not play.run().result["changed"]


@pytest.mark.parametrize("flags", [("--check",), ()])
def test_where_there_is_no_cluster_yet(play: Play, flags: tuple[str, ...], tmp_path: Path) -> None:
    answer = play.run(*flags, kubeconfig=str(tmp_path / "absent.conf"))
    if flags:
        assert len(answer.result["created"]) == 3
    else:
        assert answer.result["msg"] == f"set {play.hands.namespace}: {tmp_path}/absent.conf: No such file or directory"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.yaml", PLAIN, r"ConfigMap t\d+/b is declared in plain.yml and in x.yaml"),
        ("x.yaml", PLAIN.replace(", namespace: NS", ""), r"x.yaml: ConfigMap b names no namespace"),
        ("x.yaml", "a: [\n", r"x.yaml: is not valid YAML in line 2"),
        ("x.yaml", "kind: A\nkind: B\n", r"x.yaml: is not valid YAML in line 2: the key 'kind' stands a second time"),
        ("x.yaml", "- 1\n", r"x.yaml: holds list where an object belongs"),
        ("x.txt", "", r"x.txt: neither .yaml nor .yml"),
        ("x.yaml.j2", "{{ nothing_of_the_kind }}", r"x.yaml.j2 cannot be rendered"),
    ],
)
def test_what_contradicts_itself_is_refused_and_nothing_is_sent(play: Play, name: str, text: str, said: str) -> None:
    play.template(name, text)
    assert re.search(said, play.run().result["msg"])
    assert play.hands.find("ConfigMap", "a") is None


def test_who_may_not_is_told_so(play: Play) -> None:
    answer = play.run(kubeconfig=str(play.cluster.write_kubeconfig(f"nobody-{play.hands.namespace}")))
    assert "cannot get resource" in answer.result["msg"]
