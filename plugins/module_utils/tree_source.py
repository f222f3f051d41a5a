# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of a tree: join a directory of sources with the declared paths into entries and contents.

No Ansible in here: rendering is a function that the caller brings.
"""

from __future__ import annotations

import os
import posixpath
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import (
    STATES,
    Entry,
    State,
    TreeError,
    check_paths,
    digest,
    parse_mode,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

TEMPLATE_SUFFIX = ".j2"
SECRET_MODE = 0o600  # unless another is declared; the task's default is meant for what anybody may read
PATH_KEYS = frozenset(
    {
        "before_packages",
        "content",
        "group",
        "mode",
        "notify",
        "owner",
        "recurse",
        "secret",
        "state",
        "target",
        "template",
        "validate",
        "vars",
    }
)
# Which keys say something for which state. An ignored key is a misunderstanding, so it is an error.
_KEYS_OF = {
    "file": PATH_KEYS - {"recurse", "target"},
    "directory": frozenset({"state", "owner", "group", "mode", "notify", "before_packages"}),
    "link": frozenset({"state", "owner", "group", "target", "notify", "before_packages"}),
    "absent": frozenset({"state", "recurse", "notify", "before_packages"}),
    "skip": PATH_KEYS,
}


@dataclass(frozen=True)
class Defaults:
    """What holds for each path that says nothing else; modes are permission bits."""

    owner: str = "root"
    group: str = "root"
    mode: int = 0o644
    directory_mode: int = 0o755


class Renderer(Protocol):
    """Finds and renders templates; the caller brings it."""

    def find(self, name: str) -> str:
        """Give the file for the `template` name of a path."""
        ...

    def render(self, source: str, path: str, extra: Mapping[str, Any]) -> str:
        """Give the text of template file `source` for a path on the host, with additional variables."""
        ...


@dataclass(frozen=True)
class Source:
    """A file under the source directory: where it is, and whether it is to be rendered."""

    file: str
    template: bool
    executable: bool


@dataclass
class Tree:
    """Entries in order of their paths, contents by SHA-256, and the handlers that single paths notify."""

    entries: list[Entry] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    notify: dict[str, list[str]] = field(default_factory=dict)

    def add_content(self, content: bytes) -> tuple[str, int]:
        """Keep a content; give its name and its length in bytes."""
        name = digest(content)
        self.contents[name] = content
        return name, len(content)


def scan(root: str) -> dict[str, Source]:
    """List the files under `root` by the path that each will have on the host.

    Raises:
        TreeError: there is a link or something that is no file (a link can be declared with `state: link`), or two
            sources make one path, such as `a` and `a.j2`.
    """
    found: dict[str, Source] = {}
    pending = [root]
    while pending:
        directory = pending.pop()
        with os.scandir(directory) as listing:
            for item in listing:
                if item.is_dir(follow_symlinks=False):
                    pending.append(item.path)
                    continue
                if not item.is_file(follow_symlinks=False):
                    raise TreeError(f"{item.path}: only files and directories may be in a source tree")
                template = item.name.endswith(TEMPLATE_SUFFIX)
                relative = os.path.relpath(item.path, root)
                path = "/" + (relative.removesuffix(TEMPLATE_SUFFIX) if template else relative)
                if path in found:
                    raise TreeError(f"{path}: both {found[path].file} and {item.path} make it")
                found[path] = Source(item.path, template, bool(item.stat().st_mode & stat.S_IXUSR))
    return found


def build(
    sources: Mapping[str, Source],
    paths: Mapping[str, Mapping[str, Any]],
    defaults: Defaults,
    renderer: Renderer,
) -> Tree:
    """Join sources and declared paths.

    Args:
        sources: what `scan` found.
        paths: path on the host to what is declared for it.
        defaults: what holds otherwise.
        renderer: finds and renders templates.

    Raises:
        TreeError: a declaration is not understood or contradicts another.
    """
    tree = Tree()
    for path in sorted({*sources, *paths}):
        declared = paths.get(path) or {}
        state = _checked_state(path, declared)
        if state == "skip":
            continue
        if declared.get("notify"):
            tree.notify[path] = _names(declared["notify"], path)
        if state == "file":
            content, mode = _content(path, declared, sources.get(path), defaults, renderer)
            tree.entries.append(_file(path, declared, defaults, mode, tree.add_content(content)))
        else:
            tree.entries.append(_no_file(path, state, declared, defaults, sources.get(path)))
    check_paths(tree.entries)
    return tree


def _no_file(path: str, state: State, declared: Mapping[str, Any], defaults: Defaults, source: Source | None) -> Entry:
    """Make the entry of a directory, a link or an absent path."""
    if source is not None and state != "absent":
        raise TreeError(f"{path}: is a {state}, but {source.file} is a file for it")
    target = _text(declared.get("target", ""), path, "target")
    if state == "link" and not target:
        raise TreeError(f"{path}: a link needs a target")
    return Entry(
        path=path,
        state=state,
        owner=_text(declared.get("owner", defaults.owner), path, "owner"),
        group=_text(declared.get("group", defaults.group), path, "group"),
        mode=parse_mode(declared["mode"], path) if "mode" in declared else defaults.directory_mode,
        target=target,
        recurse=_flag(declared.get("recurse", False), path, "recurse"),
        before_packages=_flag(declared.get("before_packages", False), path, "before_packages"),
    )


def _content(
    path: str, declared: Mapping[str, Any], source: Source | None, defaults: Defaults, renderer: Renderer
) -> tuple[bytes, int]:
    """Give a file's content, and its permission bits where none are declared."""
    extra = declared.get("vars") or {}
    if declared.get("content") is not None:
        if declared.get("template") is not None:
            raise TreeError(f"{path}: content and template exclude each other")
        # Text, or a number that a variable held. Not all that has a text form: a dictionary's would be Python's own,
        # and so would true and false.
        if not isinstance(declared["content"], (str, int, float)) or isinstance(declared["content"], bool):
            kind = type(declared["content"]).__name__
            raise TreeError(f"{path}: content must be text, not {kind}; use to_nice_json or to_nice_yaml")
        return str(declared["content"]).encode(), defaults.mode
    if declared.get("template") is not None:
        found = renderer.find(_text(declared["template"], path, "template"))
        return renderer.render(found, path, extra).encode(), defaults.mode
    if source is None:
        raise TreeError(f"{path}: has no source file, and neither content, template nor another state is declared")
    # Whoever may read it may run it: the bit that version control keeps, within the declared mode.
    mode = defaults.mode | ((defaults.mode & 0o444) >> 2 if source.executable else 0)
    if source.template:
        return renderer.render(source.file, path, extra).encode(), mode
    return Path(source.file).read_bytes(), mode


def _file(path: str, declared: Mapping[str, Any], defaults: Defaults, mode: int, content: tuple[str, int]) -> Entry:
    """Make the entry of a file."""
    secret = _flag(declared.get("secret", False), path, "secret")
    if "mode" in declared:
        mode = parse_mode(declared["mode"], path)
    elif secret:
        mode = SECRET_MODE
    return Entry(
        path=path,
        owner=_text(declared.get("owner", defaults.owner), path, "owner"),
        group=_text(declared.get("group", defaults.group), path, "group"),
        mode=mode,
        sha256=content[0],
        size=content[1],
        validate=_validate(declared.get("validate"), path),
        secret=secret,
        before_packages=_flag(declared.get("before_packages", False), path, "before_packages"),
    )


def _checked_state(path: str, declared: Mapping[str, Any]) -> Any:
    """Prove path and keys of a declaration; give its state, which may also be `skip`."""
    if not path.startswith("/") or posixpath.normpath(path) != path or path == "/" or "\0" in path:
        raise TreeError(f"{path}: must be an absolute path without '.', '..' and a trailing slash")
    unknown = set(declared) - PATH_KEYS
    if unknown:
        raise TreeError(f"{path}: unknown key {', '.join(sorted(unknown))}; known are {', '.join(sorted(PATH_KEYS))}")
    state = declared.get("state", "file")
    if state != "skip" and state not in STATES:
        raise TreeError(f"{path}: unknown state {state}; known are {', '.join(STATES)}, skip")
    unused = {key for key, value in declared.items() if value is not None} - _KEYS_OF[state]
    if unused:
        raise TreeError(f"{path}: {', '.join(sorted(unused))} says nothing for state {state}")
    return state


def _validate(command: object, path: str) -> str:
    """Prove a validation command now, before anything is sent."""
    if not command:
        return ""
    text = _text(command, path, "validate")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise TreeError(f"{path}: validate cannot be split into words: {error}") from error
    if not any("%s" in word for word in words[1:]):
        raise TreeError(f"{path}: validate needs a %s where the staged file's name goes")
    return text


def _flag(value: object, path: str, key: str) -> bool:
    if not isinstance(value, bool):
        raise TreeError(f"{path}: {key} must be true or false, not {value!r}")
    return value


def _text(value: object, path: str, key: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key in ("owner", "group"):
        return str(value)
    if not isinstance(value, str):
        raise TreeError(f"{path}: {key} must be text, not {type(value).__name__}")
    return str(value)


def _names(value: object, path: str) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TreeError(f"{path}: notify must be the name of a handler or a list of names")
    return cast("list[str]", names)
