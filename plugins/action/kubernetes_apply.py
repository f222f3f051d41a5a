# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of C(groundplane.onprem.kubernetes_apply): render, prove, send, show the difference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.groundplane.onprem.plugins.action.tree import TaskRenderer
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_manifest import (
    Declared,
    ManifestError,
    declare,
    pack,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import TreeError
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_source import scan

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

OPTIONS = frozenset({"set", "src", "wait_seconds", "kubeconfig", "servers", "prune_allow"})
SUFFIXES = (".yaml", ".yml")
LONGEST = 30_000
"""Characters of one object's state that a diff shows; comparing more by lines takes seconds."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C reads definitions of megabytes in a tenth of the time


class StrictLoader(_Loader):  # type: ignore[misc]
    """Reads what the API reads: no dates, no key twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that stands twice: one of the two values would be lost."""
        seen = set()
        for key, _value in getattr(node, "value", ()):
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands a second time", key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


class ActionModule(ActionBase):  # type: ignore[misc]
    """Renders a directory of manifests and hands its objects to the module."""

    _supports_check_mode = True
    _supports_diff = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Converge one set."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            objects = self._objects(task_vars)
        except (ManifestError, TreeError) as error:
            raise AnsibleActionFail(f"kubernetes_apply: {error}") from error
        arguments = {key: value for key, value in self._task.args.items() if key != "src"}
        answer = self._execute_module(
            module_name="groundplane.onprem.kubernetes_apply",
            module_args={**arguments, "objects": pack(objects)},
            task_vars=task_vars,
        )
        answer.pop("invocation", None)
        differences = answer.pop("differences", [])
        if self._task.diff and differences:
            answer["diff"] = [shown(one) for one in differences]
        result.update(answer)
        return result

    def _objects(self, task_vars: dict[str, Any]) -> list[Declared]:
        """Find the manifests, render them, and prove the set.

        Raises:
            ManifestError: an option or a document is wrong.
            TreeError: a file is not rendered to text, or no file.
        """
        args = self._task.args
        unknown = set(args) - OPTIONS
        if unknown:
            raise ManifestError(f"unknown option {', '.join(sorted(unknown))}; known are {', '.join(sorted(OPTIONS))}")
        for name in ("set", "src"):
            if not isinstance(args.get(name), str):
                raise ManifestError(f"{name} is required, as text")
        root = self._find_needle("templates", args["src"])
        if not Path(root).is_dir():
            raise ManifestError(f"src: {root} is not a directory")
        return declare(self._documents(root, task_vars), args["set"])

    def _documents(self, root: str, task_vars: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """File and content of each document of each file."""
        renderer = TaskRenderer(self, root, task_vars)
        for path, source in sorted(scan(root).items()):
            file = str(Path(source.file).relative_to(root))
            if not path.endswith(SUFFIXES):
                raise ManifestError(f"{source.file}: neither .yaml nor .yml, with or without .j2")
            if source.template:
                text = renderer.render(source.file, path, {})
            else:
                text = Path(source.file).read_text(encoding="utf-8")
            for document in documents(text, file):
                yield file, document


def documents(text: str, file: str) -> list[Any]:
    """The documents of a file.

    Raises:
        ManifestError: it is not YAML; names file and line, and quotes nothing, since it may hold a Secret.
    """
    try:
        return list(yaml.load_all(text, Loader=StrictLoader))
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ManifestError(f"{file}: is not valid YAML{line}: {error.problem or error.context}") from None
    except yaml.YAMLError:
        raise ManifestError(f"{file}: is not valid YAML") from None


def shown(one: dict[str, Any]) -> dict[str, Any]:
    """One of Ansible's differences."""
    texts = {
        key: yaml.safe_dump(one[key], sort_keys=False, width=120) if one[key] is not None else ""
        for key in ("before", "after")
    }
    if max(map(len, texts.values())) > LONGEST:
        words = {"before": "is deleted", "after": "is new"}
        what = next((word for key, word in words.items() if one["after" if key == "before" else "before"] is None), "")
        return {"prepared": f"{one['object']}: {what or 'differs'} (too long to show)\n"}
    return {"before_header": one["object"], "after_header": one["object"], **texts}
