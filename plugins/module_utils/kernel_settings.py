# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel settings: what a boot would give, and where the running kernel differs from it.

Pure text work over sysctl.d(5): of two files with the same name the one in the earlier directory counts, files are read
in the order of their names, and the last value of a key holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DIRECTORIES: Final = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")
"""Below the root of the file system, the most important one first (sysctl.d(5), "Configuration directories")."""

_SWAP: Final = str.maketrans("./", "/.")
"""Between a key and its path below /proc/sys: dots and slashes change places."""


class KernelSettingsError(Exception):
    """The settings cannot be read or set; the text says which file."""


def parse(text: str) -> dict[str, str]:
    """Keys and values of one file; patterns and excluded keys are left out.

    Args:
        text: lines of `key = value`. A key may be written with slashes, and with a `-` before it, which says that a
            failure is to be ignored.
    """
    found: dict[str, str] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        key, equals, value = line.partition("=")
        name = key.strip().removeprefix("-")
        if equals and not set(name) & set("*?["):
            found[_dotted(name)] = " ".join(value.split())
    return found


def _dotted(name: str) -> str:
    """A key with dots between its parts. One that begins with a part and a slash has dots in its parts (eth0.100)."""
    separator = next((character for character in name if character in "./"), ".")
    return name.translate(_SWAP) if separator == "/" else name


def of_a_boot(root: Path = Path("/"), pending: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The values that the files of a host give at its next boot.

    Args:
        root: where the file system of the host begins.
        pending: path on the host to the text of a file that is still to be written; None for one that is to go.

    Raises:
        OSError: a file cannot be read.
    """
    texts = {root / path.lstrip("/"): text for path, text in (pending or {}).items()}
    files: dict[str, Path] = {}
    for directory in reversed(DIRECTORIES):
        place = root / directory
        there = {*place.glob("*.conf"), *(path for path in texts if path.parent == place and path.suffix == ".conf")}
        files |= {path.name: path for path in there if path not in texts or texts[path] is not None}
    values: dict[str, str] = {}
    for name in sorted(files):
        text = texts.get(files[name])
        values |= parse(files[name].read_text(encoding="utf-8") if text is None else text)
    return values


def path_of(key: str, root: Path = Path("/")) -> Path:
    """Where the kernel shows a setting."""
    return root / "proc/sys" / key.translate(_SWAP)


def running(keys: Iterable[str], root: Path = Path("/")) -> dict[str, str]:
    """What the kernel has now, for those of the keys that it knows and shows.

    Args:
        keys: with dots between their parts.
        root: where the file system of the host begins.
    """
    found: dict[str, str] = {}
    for key in keys:
        try:
            found[key] = " ".join(path_of(key, root).read_text(encoding="utf-8").split())
        except (FileNotFoundError, PermissionError):
            continue  # a newer kernel's, or one that can only be written
    return found


def drift(wanted: Mapping[str, str], has: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Settings that differ: key to what is and what should be."""
    return {key: (has[key], wanted[key]) for key in sorted(wanted) if key in has and has[key] != wanted[key]}


def bring(
    keys: Iterable[str], *, check: bool, pending: Mapping[str, str | None] | None = None, root: Path = Path("/")
) -> dict[str, Any]:
    """Give the running kernel what a boot would give it; give the result of the module `kernel_settings`.

    Args:
        keys: the settings to compare, with dots between their parts.
        check: only look.
        pending: what `of_a_boot` takes.
        root: where the file system of the host begins.

    Raises:
        KernelSettingsError: a file cannot be read or written.
    """
    keys = list(keys)
    try:
        boot = of_a_boot(root, pending)
        different = drift({key: boot[key] for key in keys if key in boot}, running(keys, root))
        for key, (_, value) in different.items():
            if not check:
                path_of(key, root).write_text(f"{value}\n", encoding="utf-8")
    except OSError as error:
        raise KernelSettingsError(f"{error.filename}: {error.strerror}") from error
    return {
        "changed": bool(different),
        "changed_settings": {key: value for key, (_, value) in different.items()},
        "diff": {
            "before_header": "running kernel",
            "after_header": "sysctl.d",
            "before": "".join(f"{key} = {value}\n" for key, (value, _) in different.items()),
            "after": "".join(f"{key} = {value}\n" for key, (_, value) in different.items()),
        },
    }
