# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What judges a cluster, judged: checks of CIS see what is wrong, and figures of drills are what clients saw."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.faults.drill import Attempt, Record
from tests.faults.kubernetes_clients import errors_for, in_order
from tests.integration import test_kubernetes_cis as cis

GOOD = {"apiVersion": "audit.k8s.io/v1", "rules": [
    {"level": "None", "users": ["system:kube-proxy"], "resources": [{"group": "", "resources": ["secrets"]}]},
    {"level": "None", "nonResourceURLs": ["/healthz*"]},
    {"level": "Metadata", "resources": [
        {"group": "", "resources": ["secrets", "configmaps", "serviceaccounts/token"]},
        {"group": "authentication.k8s.io", "resources": ["tokenreviews"]},
    ]},
    {"level": "RequestResponse", "verbs": ["create", "update", "patch", "delete"]},
    {"level": "Metadata"},
]}  # fmt: skip


def facts(**of_the_host: Any) -> cis.Facts:
    """Facts of one host of the control plane."""
    names = ["cp1"]
    cluster = SimpleNamespace(control_plane=names, workers=[], nodes=names)
    host = {"files": {}, "commands": {}, "listening": [], "encryption": [], **of_the_host}
    kinds = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Pod", "Namespace", "NetworkPolicy")
    return cis.Facts(cast("Any", cluster), {"cp1": host}, {}, {kind: [] for kind in kinds})


@pytest.mark.parametrize(
    ("command", "expected", "wrong"),
    [
        (["--profiling=false"], {"equals": "false"}, False),
        (["--profiling=true"], {"equals": "false"}, True),
        ([], {"equals": "false"}, True),
        ([], {"equals": "true", "default": "true"}, False),
        (["--profiling=a,b"], {"has": "b"}, False),
        (["--profiling=a,b"], {"has": "c"}, True),
        (["--profiling=a,b"], {"lacks": "b"}, True),
        ([], {"lacks": "b", "default": ""}, False),
        (["--profiling=30"], {"least": 30}, False),
        (["--profiling=29"], {"least": 30}, True),
        (["--profiling=a"], {"within": ("a", "b")}, False),
        (["--profiling=a,c"], {"within": ("a", "b")}, True),
        ([], {"given": True}, True),
        (["--profiling="], {"given": True}, True),
        ([], {"absent": True}, False),
        (["--profiling=x"], {"absent": True}, True),
    ],
)
def test_a_flag_is_held_against_what_is_expected(command: list[str], expected: dict[str, Any], wrong: bool) -> None:
    seen = facts(commands={"kube-apiserver": ["kube-apiserver", "--secure-port=6443", *command]})
    assert bool(cis.flag("kube-apiserver", "profiling", **expected)(seen)) is wrong


def test_a_program_that_does_not_run_is_no_good_sign() -> None:
    assert cis.flag("etcd", "auto-tls", equals="false", default="false")(facts()) == ["cp1: etcd does not run"]


def test_files_are_held_against_rights_and_must_exist() -> None:
    seen = facts(files={
        "/a/x.key": {"mode": 0o640, "owner": "root:etcd", "directory": False},
        "/a/y.key": {"mode": 0o400, "owner": "root:root", "directory": False},
    })  # fmt: skip
    assert cis.mode(r"/a/.*\.key", 0o600)(seen) == ["cp1: /a/x.key 640"]
    assert cis.owner(r"/a/.*\.key")(seen) == ["cp1: /a/x.key root:etcd"]
    assert cis.mode(r"/b/.*", 0o600)(seen) == ["cp1: nothing is /b/.*"]


@pytest.mark.parametrize(
    ("verb", "group", "resource", "level"),
    [
        ("get", "", "secrets", "Metadata"),
        ("create", "", "serviceaccounts/token", "Metadata"),
        ("create", "", "pods/exec", "RequestResponse"),
        ("get", "", "pods/proxy", "Metadata"),
    ],
)
def test_the_first_rule_of_an_audit_policy_that_fits_decides(verb: str, group: str, resource: str, level: str) -> None:
    assert cis.level(GOOD, verb, group, resource) == level


def test_an_audit_policy_that_keeps_contents_of_secrets_is_seen() -> None:
    bad = {"rules": [{"level": "RequestResponse"}]}
    wrong = cis.audit_policy(facts(audit_policy=str(bad)))
    assert "cp1: get secrets is logged at RequestResponse" in wrong
    assert cis.audit_policy(facts(audit_policy=str(GOOD))) == []


def test_who_may_do_what_is_found_through_bindings_of_both_kinds() -> None:
    seen = facts()
    rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    group = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    seen.objects["ClusterRole"] = [
        {"kind": "ClusterRole", "metadata": {"name": "reader"}, "rules": [rule]},
        {"kind": "ClusterRole", "metadata": {"name": "all"}, "rules": [group]},
    ]
    seen.objects["ClusterRoleBinding"] = [
        {"metadata": {"name": "one"}, "roleRef": {"kind": "ClusterRole", "name": "all"},
         "subjects": [{"kind": "Group", "name": "everybody"}]},
        {"metadata": {"name": "system:own"}, "roleRef": {"kind": "ClusterRole", "name": "all"},
         "subjects": [{"kind": "User", "name": "own"}]},
    ]  # fmt: skip
    seen.objects["RoleBinding"] = [
        {"metadata": {"name": "two", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
         "subjects": [{"kind": "ServiceAccount", "name": "s", "namespace": "a"}]},
    ]  # fmt: skip
    assert seen.holders("secrets", "get", "list") == {"Group:/everybody", "ServiceAccount:a/s"}
    assert seen.holders("pods", "create") == {"Group:/everybody"}
    assert len(cis.wildcards(seen)) == 1
    assert cis.only(cis.NOBODY, ("nodes/proxy", "", "get"))(seen) == ["Group:/everybody"]


def test_errors_are_timed_from_the_first_to_the_last_and_versions_only_grow() -> None:
    answers = [
        Attempt(0, 0.0, 0.1, answer="5 10.0.0.1"),
        Attempt(1, 1.0, None, "timed out"),
        Attempt(2, 3.5, None, "reset"),
        Attempt(3, 4.0, 4.1, answer="7 10.0.0.1"),
        Attempt(4, 5.0, 5.1, answer="7 10.0.0.1"),
    ]
    record = Record(answers)
    assert errors_for(record) == 2.5
    assert errors_for(Record(answers[3:])) == 0
    assert in_order(record, strictly=False)
    assert not in_order(record, strictly=True)
    assert not in_order(Record([*answers, Attempt(5, 6.0, 6.1, answer="6 10.0.0.1")]), strictly=False)
