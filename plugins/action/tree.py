# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# The parts of an action work on its state, which Ansible keeps in attributes with an underscore:
# ruff: noqa: SLF001
"""The controller's side of C(groundplane.onprem.tree): render, send, show the difference."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import (
    Entry,
    TreeError,
    pack,
    parse_mode,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_source import Defaults, Tree, build, scan

if TYPE_CHECKING:
    from collections.abc import Mapping

FILES = frozenset({"src", "paths", "owner", "group", "mode", "directory_mode"})
# What the host is told as the task has it.
PARTS = frozenset(
    {"packages", "packages_absent", "package_lists", "kernel_settings", "units", "changed_paths", "settle"}
)
OPTIONS = FILES | PARTS
DEFAULT_SRC = "tree"
# Up to here all contents go with the first call, so that there is never a second one. Characters of compressed base64.
INLINE_LIMIT = 256 * 1024
MANAGED = "Ansible managed"


class ActionModule(ActionBase):  # type: ignore[misc]
    """Renders a role's directory and hands it to the module."""

    _supports_check_mode = True
    _supports_diff = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Converge one host's tree."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            defaults = self._defaults()
            tree = self._tree(defaults, task_vars)
        except TreeError as error:
            raise AnsibleActionFail(str(error)) from error
        answer = self._converge(tree, defaults, task_vars)
        answer.pop("invocation", None)
        changes, diffs = answer.pop("changes", []), answer.pop("diffs", {})
        if self._task.diff:
            files = differences(tree, changes, answer.get("created", []))
            before, after = (diffs.get("packages", []), [*diffs.get("kernel_settings", []), *diffs.get("units", [])])
            answer["diff"] = [*before, *files, *after]
        self._notify(tree, answer)
        result.update(answer)
        return result

    def _defaults(self) -> Defaults:
        """Read the options that hold for all paths."""
        args = self._task.args
        unknown = set(args) - OPTIONS
        if unknown:
            raise TreeError(f"unknown option {', '.join(sorted(unknown))}; known are {', '.join(sorted(OPTIONS))}")
        if not isinstance(args.get("paths") or {}, dict):
            raise TreeError("paths must be a dictionary of path to declaration")
        for path, declared in (args.get("paths") or {}).items():
            if not isinstance(path, str) or not isinstance(declared or {}, dict):
                raise TreeError(f"paths: {path} must be text, and its declaration a dictionary")
        return Defaults(
            owner=str(args.get("owner", "root")),
            group=str(args.get("group", "root")),
            mode=parse_mode(args.get("mode", "0644"), "mode"),
            directory_mode=parse_mode(args.get("directory_mode", "0755"), "directory_mode"),
        )

    def _tree(self, defaults: Defaults, task_vars: dict[str, Any]) -> Tree:
        """Find the sources and render them."""
        args = self._task.args
        try:
            root = self._find_needle("templates", args.get("src", DEFAULT_SRC))
        except AnsibleError:
            if "src" in args:
                raise
            root = None
        if root is not None and not Path(root).is_dir():
            raise TreeError(f"src: {root} is not a directory")
        # Ansible renders the values of a task, not the keys of its dictionaries.
        paths = {str(self._templar.template(path)): declared for path, declared in (args.get("paths") or {}).items()}
        return build(scan(root) if root else {}, paths, defaults, TaskRenderer(self, root, task_vars))

    def _converge(self, tree: Tree, defaults: Defaults, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Call the module: once when all contents fit or none is needed, else a second time with those it lacks."""
        args = {
            "entries": [entry.as_dict() for entry in tree.entries],
            "owner": defaults.owner,
            "group": defaults.group,
            "directory_mode": defaults.directory_mode,
            **{name: self._task.args[name] for name in PARTS & set(self._task.args)},
        }
        index, stream = pack(tree.contents)
        if len(stream) > INLINE_LIMIT:
            index, stream = [], ""
        for _round in range(2):
            answer: dict[str, Any] = self._execute_module(
                module_name="groundplane.onprem.tree",
                module_args={**args, "index": index, "stream": stream},
                task_vars=task_vars,
            )
            needed = answer.pop("needed", None)
            if not needed:
                return answer
            index, stream = pack({name: tree.contents[name] for name in needed})
        raise AnsibleActionFail("the host's files change while they are compared")

    def _notify(self, tree: Tree, answer: dict[str, Any]) -> None:
        """Add the handlers of single paths to the task's own.

        The executor copies the task's `notify` into the result right after the action has run, in this same process
        and on this copy of the task; so the addition is for this host and this item only.
        """
        names = [name for path in answer.get("changed_paths", []) for name in tree.notify.get(path, [])]
        if names:
            self._task.notify = list(dict.fromkeys([*(self._task.notify or []), *names]))


class TaskRenderer:
    """Renders templates as `ansible.builtin.template` does within the same task."""

    def __init__(self, action: ActionModule, root: str | None, task_vars: dict[str, Any]) -> None:
        """Take the places where this task finds its files; `root` is the source directory."""
        self._action = action
        self._root = root or os.devnull
        self._variables = task_vars
        bases = [*task_vars.get("ansible_search_path", []), action._loader.get_basedir(), *([root] if root else [])]
        self._searchpath = [str(place) for base in bases for place in (Path(base, "templates"), base)]

    def find(self, name: str) -> str:
        """Find a template of the role or the playbook."""
        return str(self._action._find_needle("templates", name))

    def render(self, source: str, path: str, extra: Mapping[str, Any]) -> str:
        """Render one file.

        Raises:
            AnsibleActionFail: the template is wrong or a variable undefined.
            TreeError: the outcome is not text.
        """
        file = Path(source)
        variables = {
            "ansible_managed": MANAGED,
            **self._variables,
            # Nothing that differs between two runs or two checkouts, such as times: it would change files.
            "template_host": os.uname().nodename,
            "template_path": str(file.relative_to(self._root)) if file.is_relative_to(self._root) else file.name,
            "template_fullpath": source,
            "template_destpath": path,
            "template_uid": _user(file.stat().st_uid),
            **extra,
        }
        templar = self._action._templar.copy_with_new_env(
            searchpath=[*self._searchpath, str(file.parent)], available_variables=variables
        )
        try:
            text = templar.template(
                trust_as_template(self._action._loader.get_text_file_contents(source)),
                escape_backslashes=False,
                overrides={"trim_blocks": True, "lstrip_blocks": False},
            )
        except AnsibleError as error:
            raise AnsibleActionFail(f"{path}: {source} cannot be rendered: {error}") from error
        if text is None:
            return ""
        # A template that is a single expression gives the value itself.
        if not isinstance(text, (str, int, float)):
            raise TreeError(f"{path}: {source} renders to {type(text).__name__}, not to text; use to_nice_json")
        return str(text)


def differences(tree: Tree, changes: list[dict[str, Any]], created: list[str]) -> list[dict[str, Any]]:
    """Make Ansible's list of differences from what the host answered and what was sent."""
    entries = {entry.path: entry for entry in tree.entries}
    shown = []
    for change in changes:
        entry = entries[change["path"]]
        if entry.state == "file" or change["kind"] == "file":
            shown.extend(_content_difference(entry, change, tree))
        attributes = _attribute_difference(entry, change)
        if attributes:
            shown.append(attributes)
    parents = [path for path in created if path not in entries]
    return shown + [_pair(path, {"state": "absent"}, {"state": "directory"}) for path in parents]


def _content_difference(entry: Entry, change: dict[str, Any], tree: Tree) -> list[dict[str, Any]]:
    if not {"content", "kind"} & set(change["reasons"]):
        return []
    if entry.secret:
        return [{"prepared": f"{entry.path}: content differs (secret, not shown)\n"}]
    before = change["before"] if change["kind"] == "file" else ""
    after: str | None = ""
    note = change["before_note"]
    if entry.state == "file":
        try:
            after = tree.contents[entry.sha256].decode()
        except UnicodeDecodeError:
            after = None
        if after is None or "\0" in after:
            after, note = None, "binary"
    if before is None or after is None:
        return [{"prepared": f"{entry.path}: content differs ({note}, not shown)\n"}]
    return [
        {
            "before_header": entry.path,
            "after_header": entry.path,
            "before": before,
            "after": after,
        }
    ]


def _attribute_difference(entry: Entry, change: dict[str, Any]) -> dict[str, Any] | None:
    """Give what differs besides the content."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    if "kind" in change["reasons"]:
        before["state"], after["state"] = change["kind"], entry.state
    wanted = {"owner": entry.owner, "group": entry.group, "mode": f"{entry.mode:04o}", "target": entry.target}
    for key, value in wanted.items():
        new = change["kind"] == "absent" and not (key == "target" and entry.state != "link")
        if key in change["reasons"] or (new and not (key == "mode" and entry.state == "link")):
            after[key] = value
            if not new:
                before[key] = change[key]
    return _pair(entry.path, before, after) if after else None


def _pair(path: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {"before_header": path, "after_header": path, "before": before, "after": after}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
