# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of objects against a real API server."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import kubernetes_api, kubernetes_set
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import Api, UnreachableError
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_config import load
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_manifest import ManifestError, declare
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_set import ObjectSet, Outcome, SetError

from tests.programs.cluster import free_port

if TYPE_CHECKING:
    from tests.programs.cluster import Cluster, Hands


class Sets:
    """Runs of one set in a namespace of its own."""

    def __init__(self, cluster: Cluster, hands: Hands) -> None:
        self.cluster, self.hands = cluster, hands
        self.name = self.namespace = hands.namespace
        self.requests = 0

    def run(self, *documents: dict[str, Any], check: bool = False, wait: float = 0, **options: Any) -> Outcome:
        """Converge; documents may leave their namespace to the test's."""
        api = self.cluster.api()
        name = options.pop("name", self.name)
        declared = declare([(f"{index}.yaml", document) for index, document in enumerate(documents)], name)
        converger = ObjectSet(api, name, declared, check=check, wait_seconds=wait, **options)
        try:
            return converger.converge()
        finally:
            self.requests = api.requests
            api.close()

    def both(self, *documents: dict[str, Any], **options: Any) -> Outcome:
        """Predict, then do; the two must say the same."""
        predicted = self.run(*documents, check=True, **options)
        done = self.run(*documents, **options)
        assert predicted == done
        return done

    def untouched(self, *documents: dict[str, Any], kinds: int, **options: Any) -> None:
        """A run that finds everything as it left it, by one request for the record and one for each kind."""
        outcome = self.run(*documents, **options)
        assert (outcome.changed, outcome.unchanged, outcome.differences) == (False, len(documents), [])
        assert self.requests == 1 + kinds

    def record(self) -> str:
        """What the last run left."""
        name = f"groundplane-set-{self.name}"
        found = self.hands.api.get(kubernetes_api.CONFIG_MAPS, "kube-system", name)
        return str(found["data"]["record"])

    # ----------------------------------------------------------------------------------------------------- documents

    def meta(self, name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "namespace": self.namespace, **more}

    def config(self, name: str = "a", **data: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": self.meta(name), "data": data or {"k": "v"}}

    def secret(self, name: str = "s", **data: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Secret", "metadata": self.meta(name), "stringData": data}

    def deployment(self, name: str = "web", image: str = "web:1", **spec: Any) -> dict[str, Any]:
        container = {
            "name": "web",
            "image": image,
            "ports": [{"containerPort": 80}],
            "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"cpu": 1}},
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
        }
        labels = {"app": name}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.meta(name),
            "spec": {"selector": {"matchLabels": labels}, "template": template, **spec},
        }

    def service(self, name: str = "web") -> dict[str, Any]:
        spec = {"selector": {"app": name}, "ports": [{"port": 80}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": self.meta(name), "spec": spec}


@pytest.fixture
def sets(cluster: Cluster, hands: Hands) -> Sets:
    return Sets(cluster, hands)


def definition(group: str, kind: str = "Widget", **properties: Any) -> dict[str, Any]:
    plural = kind.lower() + "s"
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "creationTimestamp": None},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
        "status": {"conditions": [], "storedVersions": []},
    }


def widget(sets: Sets, group: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": f"{group}/v1", "kind": "Widget", "metadata": sets.meta("w"), "spec": spec}


# ------------------------------------------------------------------------------------------------------ idempotence


def test_what_was_applied_is_known_again_by_one_request_a_kind(sets: Sets) -> None:
    documents = [sets.deployment(), sets.service(), sets.config(), sets.config("b"), sets.secret(password="p")]
    outcome = sets.both(*documents)
    assert outcome.created == [
        f"ConfigMap {sets.namespace}/a",
        f"ConfigMap {sets.namespace}/b",
        f"Secret {sets.namespace}/s",
        f"Service {sets.namespace}/web",
        f"Deployment {sets.namespace}/web",
    ]
    sets.untouched(*documents, kinds=4)
    sets.untouched(*documents, kinds=4, check=True)


def test_defaults_and_notations_of_the_server_are_no_difference(sets: Sets) -> None:
    documents = [sets.deployment(), sets.service()]
    sets.run(*documents)
    live = sets.hands.get("Deployment", "web", "apps/v1")
    assert live["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}
    # The same without the record, as after it was lost: compared by the server, and found equal.
    sets.hands.api.delete(kubernetes_api.CONFIG_MAPS, "kube-system", f"groundplane-set-{sets.name}")
    for check in (True, False):
        outcome = sets.run(*documents, check=check)
        assert (outcome.changed, outcome.unchanged) == (False, 2)
    sets.untouched(*documents, kinds=2)


def test_status_and_fields_of_others_are_not_looked_at(sets: Sets) -> None:
    document = sets.deployment()
    sets.run(document)
    sets.hands.status("Deployment", "web", {"replicas": 1, "observedGeneration": 1}, "apps/v1")
    note = {"metadata": {"annotations": {"deployment.kubernetes.io/revision": "1"}, "labels": {"team": "x"}}}
    sets.hands.edit("Deployment", "web", note, "apps/v1", who="kube-controller-manager")
    sets.untouched(document, kinds=1)


def test_what_an_autoscaler_scales_is_left_to_it(sets: Sets) -> None:
    document = sets.deployment()
    sets.run(document)
    sets.hands.edit("Deployment", "web", {"spec": {"replicas": 7}}, "apps/v1", who="kube-controller-manager")
    sets.untouched(document, kinds=1)
    assert sets.both(sets.deployment(image="web:2")).configured == [f"Deployment {sets.namespace}/web"]
    assert sets.hands.get("Deployment", "web", "apps/v1")["spec"]["replicas"] == 7


def test_a_bundle_that_somebody_injects_stays(sets: Sets) -> None:
    hook = {
        "name": "x.example.org",
        "clientConfig": {"service": {"name": "x", "namespace": sets.namespace}},
        "rules": [{"apiGroups": ["x"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["x"]}],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    document = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": sets.namespace},
        "webhooks": [hook],
    }
    sets.run(document)
    hooks = sets.hands.resource("ValidatingWebhookConfiguration", "admissionregistration.k8s.io/v1")
    sets.hands.api.request(
        "PATCH",
        hooks.path("", sets.namespace),
        query={"fieldManager": "cainjector"},
        body={"webhooks": [{"name": "x.example.org", "clientConfig": {"caBundle": "Y2E="}}]},
        content_type="application/strategic-merge-patch+json",
    )
    sets.untouched(document, kinds=1)
    document["webhooks"][0]["timeoutSeconds"] = 5  # type: ignore[index]
    assert sets.both(document).configured
    live = sets.hands.api.get(hooks, "", sets.namespace)
    assert live["webhooks"][0]["clientConfig"]["caBundle"] == "Y2E="
    sets.run()


# ------------------------------------------------------------------------------------------------------------ drift


@pytest.mark.parametrize(
    ("patch", "before", "after"),
    [
        ({"data": {"k": "other"}}, {"data": {"k": "other"}}, {"data": {"k": "v"}}),
        ({"data": {"k": None, "x": "y"}}, {"data": {}}, {"data": {"k": "v"}}),
        ({"data": None}, {}, {"data": {"k": "v", "l": "w"}}),
    ],
)
def test_what_somebody_changed_is_seen_and_undone(sets: Sets, patch: Any, before: Any, after: Any) -> None:
    document = sets.config(k="v", l="w")
    sets.run(document)
    sets.hands.edit("ConfigMap", "a", patch)
    outcome = sets.both(document)
    assert outcome.configured == [f"ConfigMap {sets.namespace}/a"]
    assert outcome.differences == [{"object": f"ConfigMap {sets.namespace}/a", "before": before, "after": after}]
    assert {"k": "v", "l": "w"}.items() <= sets.hands.get("ConfigMap", "a")["data"].items()
    sets.untouched(document, kinds=1)


def test_what_somebody_deleted_is_back(sets: Sets) -> None:
    sets.run(sets.config(), sets.config("b"))
    sets.hands.api.delete(kubernetes_api.CONFIG_MAPS, sets.namespace, "a")
    assert sets.both(sets.config(), sets.config("b")).created == [f"ConfigMap {sets.namespace}/a"]
    sets.untouched(sets.config(), sets.config("b"), kinds=1)


def test_the_label_of_the_set_is_declared_too(sets: Sets) -> None:
    sets.run(sets.config())
    sets.hands.edit("ConfigMap", "a", {"metadata": {"labels": {"groundplane.onprem/set": None}}})
    assert sets.both(sets.config()).configured == [f"ConfigMap {sets.namespace}/a"]


def test_a_value_changed_there_and_back_is_taken_over_once(sets: Sets) -> None:
    sets.run(sets.config())
    sets.hands.edit("ConfigMap", "a", {"data": {"k": "x"}})
    sets.hands.edit("ConfigMap", "a", {"data": {"k": "v"}})
    outcome = sets.both(sets.config())
    assert outcome.configured == [f"ConfigMap {sets.namespace}/a"]
    assert "managedFields" in str(outcome.differences)
    sets.untouched(sets.config(), kinds=1)


def test_a_field_that_is_no_longer_declared_goes(sets: Sets) -> None:
    sets.run(sets.config(k="v", l="w"))
    assert sets.both(sets.config(k="v")).differences[0]["before"] == {"data": {"l": "w"}}
    assert sets.hands.get("ConfigMap", "a")["data"] == {"k": "v"}


def test_only_what_differs_is_sent(sets: Sets) -> None:
    many = [sets.config(f"c{index}") for index in range(20)]
    sets.run(*many)
    many[3] = sets.config("c3", k="new")
    assert sets.run(*many).configured == [f"ConfigMap {sets.namespace}/c3"]
    # The record, the list, the record before and after, and the object read and written.
    assert sets.requests == 6


def test_lists_come_in_pages(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [sets.config(f"c{index}") for index in range(7)]
    sets.run(*many)
    monkeypatch.setattr(kubernetes_api, "PAGE", 3)
    assert sets.run(*many).unchanged == 7
    assert sets.requests == 1 + 3


# ---------------------------------------------------------------------------------------------------------- secrets


def test_values_of_a_secret_are_compared_and_never_shown(sets: Sets) -> None:
    first, second, third = (sets.secret(password=value) for value in ("geheim-eins", "geheim-zwei", "geheim-drei"))
    outcome = sets.both(first)
    assert outcome.differences[0]["after"]["data"] == {"password": "(secret)"}
    sets.untouched(first, kinds=1)
    outcome = sets.both(second)
    shown = outcome.differences[0]
    assert (shown["before"], shown["after"]) == (
        {"data": {"password": "(secret)"}},
        {"data": {"password": "(secret, another one)"}},
    )
    sets.hands.edit("Secret", "s", {"stringData": {"password": "geheim-drei"}})
    assert sets.both(second).configured
    assert not sets.run(second).changed
    assert sets.both(third).configured
    assert "geheim" not in sets.record()


def test_the_record_says_nothing_of_a_secret_s_value(sets: Sets) -> None:
    sets.run(sets.secret(password="one"))
    one = json.loads(sets.record())["objects"][0][4]
    sets.run(sets.secret(password="two"))
    assert json.loads(sets.record())["objects"][0][4] == one


def test_what_is_wrong_with_a_secret_is_told_without_its_value(sets: Sets) -> None:
    document = sets.secret(password="geheim")
    sets.run({**document, "immutable": True})
    with pytest.raises(SetError, match=r"0.yaml: Secret t\d+/s: data: FieldValueForbidden") as caught:
        sets.run({**sets.secret(password="geheimer"), "immutable": True})
    assert "geheim" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ prune


def test_what_is_no_longer_declared_is_deleted(sets: Sets) -> None:
    sets.run(sets.config(), sets.config("b"), sets.service())
    outcome = sets.both(sets.config())
    assert outcome.pruned == [f"Service {sets.namespace}/web", f"ConfigMap {sets.namespace}/b"]
    assert sets.hands.find("ConfigMap", "b") is None
    assert sets.hands.find("Service", "web") is None
    assert not sets.run(sets.config()).changed
    sets.untouched(sets.config(), kinds=1)


def test_what_others_made_under_our_label_is_deleted_and_what_a_controller_made_is_not(sets: Sets) -> None:
    sets.run(sets.config())
    label = {"groundplane.onprem/set": sets.name}
    owner = sets.hands.get("ConfigMap", "a")["metadata"]["uid"]
    by = {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": owner, "controller": True}
    sets.hands.create({**sets.config("stray"), "metadata": sets.meta("stray", labels=label)})
    sets.hands.create({**sets.config("made"), "metadata": sets.meta("made", labels=label, ownerReferences=[by])})
    assert sets.both(sets.config()).pruned == [f"ConfigMap {sets.namespace}/stray"]
    assert sets.hands.find("ConfigMap", "made") is not None


def test_what_would_take_data_along_is_kept_until_it_is_named(sets: Sets) -> None:
    name = sets.namespace
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": sets.meta("data"),
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"{name}-x"}}
    sets.run(claim, space, sets.config())
    for _ in range(2):
        outcome = sets.both(sets.config())
        assert (outcome.changed, outcome.kept) == (False, [f"Namespace {name}-x", f"PersistentVolumeClaim {name}/data"])
        assert f"prune_allow names PersistentVolumeClaim/{name}/data" in outcome.warnings[1]
    allowed = [f"PersistentVolumeClaim/{name}/data", f"Namespace/{name}-x", "Namespace/kube-system"]
    outcome = sets.both(sets.config(), prune_allow=allowed)
    assert outcome.pruned == [f"PersistentVolumeClaim {name}/data", f"Namespace {name}-x"]
    assert outcome.kept == []


def test_a_set_of_nothing_deletes_all_of_it(sets: Sets) -> None:
    sets.run(sets.config(), sets.deployment())
    assert len(sets.both().pruned) == 2
    assert json.loads(sets.record())["objects"] == []


def test_an_object_of_another_set_is_refused(sets: Sets) -> None:
    sets.run(sets.config())
    for check in (True, False):
        with pytest.raises(SetError, match=rf"0.yaml: ConfigMap {sets.namespace}/a belongs to the set {sets.name}:"):
            sets.run(sets.config(), name=f"{sets.name}-other", check=check)


# ------------------------------------------------------------------------------------------------- errors and conflicts


def test_fields_of_another_manager_are_taken_over(sets: Sets) -> None:
    sets.hands.create(sets.config(k="theirs"))
    assert sets.both(sets.config(k="ours")).configured
    assert sets.hands.get("ConfigMap", "a")["data"] == {"k": "ours"}
    sets.untouched(sets.config(k="ours"), kinds=1)


def test_an_immutable_field_is_named(sets: Sets) -> None:
    sets.run(sets.deployment())
    changed = sets.deployment()
    changed["spec"]["selector"] = {"matchLabels": {"app": "other"}}
    changed["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    for check in (True, False):
        with pytest.raises(SetError, match=rf"0.yaml: Deployment {sets.namespace}/web: spec.selector: .*immutable"):
            sets.run(changed, check=check)
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": sets.meta("job"),
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x:1"}]}}},
    }
    sets.run(job)
    job["spec"]["template"]["spec"]["containers"][0]["image"] = "x:2"  # type: ignore[index]
    with pytest.raises(SetError, match=rf"0.yaml: Job {sets.namespace}/job: spec.template: .*immutable"):
        sets.run(job)


@pytest.mark.parametrize("check", [True, False])
def test_a_field_that_does_not_exist_is_refused(sets: Sets, check: bool) -> None:
    with pytest.raises(SetError, match=r"0.yaml: Deployment .*/web: .*replica.*"):
        sets.run(sets.deployment(replica=3), check=check)


@pytest.mark.parametrize("check", [True, False])
def test_a_kind_that_does_not_exist_is_refused(sets: Sets, check: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_set, "SHORT_WAIT", 0.5)
    with pytest.raises(SetError, match=r"0.yaml: Deploymint .* this cluster has no Deploymint of apps/v1"):
        sets.run({**sets.deployment(), "kind": "Deploymint"}, check=check)
    custom = {"apiVersion": "x.example.org/v1", "kind": "X", "metadata": sets.meta("x")}
    if check:
        outcome = sets.run(custom, check=True)
        assert (outcome.created, "has no X of x.example.org/v1 yet" in outcome.warnings[0]) == (
            [f"X {sets.namespace}/x"],
            True,
        )
    else:
        with pytest.raises(SetError, match=r"this cluster has no X of x.example.org/v1$"):
            sets.run(custom)


def test_a_namespace_that_does_not_exist(sets: Sets) -> None:
    document = {**sets.config(), "metadata": {"name": "a", "namespace": f"{sets.namespace}-new"}}
    outcome = sets.run(document, check=True)
    assert f"there is no Namespace {sets.namespace}-new yet" in outcome.warnings[0]
    with pytest.raises(SetError, match=r'namespaces "t\d+-new" not found'):
        sets.run(document)
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"{sets.namespace}-new"}}
    assert sets.both(document, space).created == [
        f"Namespace {sets.namespace}-new",
        f"ConfigMap {sets.namespace}-new/a",
    ]


def test_an_interrupted_run_is_finished_by_the_next(sets: Sets) -> None:
    old = [sets.config("a", k="1"), sets.config("b", k="1"), sets.deployment()]
    sets.run(*old)
    new = [sets.config("a", k="2"), sets.config("b", k="2"), sets.deployment(replicas="no number")]
    with pytest.raises(SetError, match="Deployment"):
        sets.run(*new)
    # Back to the old declaration: what the killed run wrote does not pass for untouched.
    assert sets.both(*old).configured == [f"ConfigMap {sets.namespace}/a", f"ConfigMap {sets.namespace}/b"]
    sets.untouched(*old, kinds=2)


def test_what_a_killed_run_made_is_known_to_the_next(sets: Sets) -> None:
    bad = sets.deployment(replicas="no number")
    with pytest.raises(SetError, match="Deployment"):
        sets.run(sets.config(), bad)
    assert sets.both().pruned == [f"ConfigMap {sets.namespace}/a"]


# -------------------------------------------------------------------------------------------------- custom resources


def test_a_definition_and_its_objects_in_one_set(sets: Sets) -> None:
    group = f"{sets.name}.example.org"
    documents = [widget(sets, group, size=1), definition(group, size={"type": "integer"})]
    outcome = sets.both(*documents)
    assert outcome.created == [f"CustomResourceDefinition widgets.{group}", f"Widget {sets.namespace}/w"]
    sets.untouched(*documents, kinds=2)
    # A field that both the definition and the object gain in one run.
    documents = [
        widget(sets, group, size=1, colour="red"),
        definition(group, size={"type": "integer"}, colour={"type": "string"}),
    ]
    assert sets.both(*documents).configured == [
        f"CustomResourceDefinition widgets.{group}",
        f"Widget {sets.namespace}/w",
    ]
    assert sets.hands.get("Widget", "w", f"{group}/v1")["spec"] == {"size": 1, "colour": "red"}
    sets.untouched(*documents, kinds=2)
    # The definition is kept, its objects are not.
    outcome = sets.both()
    assert (outcome.pruned, outcome.kept) == (
        [f"Widget {sets.namespace}/w"],
        [f"CustomResourceDefinition widgets.{group}"],
    )
    assert sets.both(prune_allow=[f"CustomResourceDefinition/widgets.{group}"]).pruned == [
        f"CustomResourceDefinition widgets.{group}"
    ]


def test_a_custom_object_in_no_namespace_is_refused(sets: Sets) -> None:
    group = f"{sets.name}.example.org"
    document = widget(sets, group)
    del document["metadata"]["namespace"]
    with pytest.raises(ManifestError, match=r"0.yaml: Widget w names no namespace"):
        sets.run(document, definition(group))
    sets.run(definition(group), name=f"{sets.name}-crd")
    with pytest.raises(ManifestError, match=r"0.yaml: Widget w names no namespace"):
        sets.run(document)


def test_a_definition_that_was_deleted_with_its_objects_comes_back(sets: Sets) -> None:
    group = f"{sets.name}.example.org"
    documents = [definition(group, size={"type": "integer"}), widget(sets, group, size=1)]
    sets.run(*documents)
    resource = sets.hands.resource("CustomResourceDefinition", "apiextensions.k8s.io/v1")
    sets.hands.api.delete(resource, "", f"widgets.{group}")
    deadline = time.monotonic() + 20
    while sets.hands.api.find(resource, "", f"widgets.{group}") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(sets.both(*documents).created) == 2
    sets.untouched(*documents, kinds=2)


# ----------------------------------------------------------------------------------------------------------- waiting


def test_a_rollout_that_does_not_come_is_named_with_its_pods(sets: Sets) -> None:
    document = sets.deployment(replicas=2)
    sets.run(document)
    template = document["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": sets.meta("web-1", labels={"app": "web"}),
        "spec": template["spec"],
    }
    sets.hands.create(pod)
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "web:1"'}
    status = {
        "name": "web",
        "state": {"waiting": waiting},
        "ready": False,
        "restartCount": 0,
        "image": "",
        "imageID": "",
    }
    sets.hands.status("Pod", "web-1", {"phase": "Pending", "containerStatuses": [status]})
    for _ in range(2):  # an untouched set that is not ready is waited for, too
        with pytest.raises(SetError) as caught:
            sets.run(document, wait=0.4)
        assert str(caught.value).startswith(f"not ready after 0.4 s: Deployment {sets.namespace}/web: ")
        assert 'web-1: container web waits (ImagePullBackOff: Back-off pulling image "web:1")' in str(caught.value)


def test_a_rollout_is_waited_for(sets: Sets) -> None:
    document = sets.deployment(replicas=2)
    ready = {"observedGeneration": 9, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2}
    later = threading.Timer(1.5, lambda: sets.hands.status("Deployment", "web", ready, "apps/v1"))
    later.start()
    started = time.monotonic()
    assert sets.run(document, wait=30).created
    assert time.monotonic() - started > 1
    sets.untouched(document, kinds=1, wait=30)


def test_pods_on_a_node_that_is_gone_are_not_waited_for(sets: Sets) -> None:
    labels = {"app": "agent"}
    spec = {"containers": [{"name": "agent", "image": "agent:1"}]}
    document = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": sets.meta("agent"),
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }
    sets.run(document)
    counts = {"desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberReady": 1, "numberMisscheduled": 0}
    rolled = {"observedGeneration": 1, "updatedNumberScheduled": 2, "numberAvailable": 1, **counts}
    sets.hands.status("DaemonSet", "agent", rolled, "apps/v1")
    node = f"{sets.namespace}-node"
    sets.hands.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": sets.meta("agent-1", labels=labels)}
    sets.hands.create({**pod, "spec": {**spec, "nodeName": node}})

    def report(ready: str) -> None:
        sets.hands.status("Node", node, {"conditions": [{"type": "Ready", "status": ready, "reason": "x"}]})

    report("False")  # it reports, and may become ready
    with pytest.raises(SetError, match=r"DaemonSet t\d+/agent: 1 of 2 pods are available"):
        sets.run(document, wait=0.3)
    report("Unknown")
    outcome = sets.run(document, wait=5)
    assert outcome.warnings == [f"DaemonSet {sets.namespace}/agent: 1 of 2 pods are available; no word from {node}"]
    sets.hands.api.delete(kubernetes_api.NODES, "", node)


# ---------------------------------------------------------------------------------------------------------- the way


def test_another_server_answers_when_the_first_does_not(cluster: Cluster) -> None:
    dead = cluster.write_kubeconfig("elsewhere", "system:masters", server=f"https://127.0.0.1:{free_port()}")
    live = f"https://127.0.0.1:{cluster.port}"
    assert Api(load(str(dead)), [live], patience=5).get(
        kubernetes_api.NODES.__class__("", "v1", "Namespace", "namespaces", namespaced=False), "", "default"
    )
    with pytest.raises(UnreachableError, match="connection refused"):
        Api(load(str(dead)), patience=1).request("GET", "/version")
