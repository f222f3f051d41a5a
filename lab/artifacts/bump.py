#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says which newer releases there are of the products beside it, and moves one to another release.

Usage: lab/artifacts/bump.py [PRODUCT ...]
       lab/artifacts/bump.py --write PRODUCT [VERSION]

Go asks its module proxy. The first form prints the newest release of the same minor and of all. The second writes
`go.mod` and `go.sum` for the newest of the same minor, or for VERSION; what the release itself requires follows it.
What else has to change (a tag in `images.yml`, a variable of a role) is for a person to see: the diff is small.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import build


def modules_of(product: build.Product) -> list[str]:
    """Modules that the product's tools are in."""
    modules = []
    for tool in product.tools:
        holders = [module for module in product.versions if tool == module or tool.startswith(module + "/")]
        modules.append(max(holders, key=len))
    return sorted(set(modules))


def stable(versions: list[str]) -> list[str]:
    """Releases among versions, the newest last."""
    return sorted(
        (version for version in versions if re.fullmatch(r"v\d+\.\d+\.\d+", version)), key=build.parse_version
    )


def newer(current: str, versions: list[str]) -> tuple[str, str]:
    """The newest release of the same minor, and of all; empty when there is none after the current one.

    Args:
        current: such as `v1.34.4`.
        versions: those there are.
    """
    after = [version for version in stable(versions) if build.parse_version(version) > build.parse_version(current)]
    same = [version for version in after if build.parse_version(version)[:2] == build.parse_version(current)[:2]]
    return (same or [""])[-1], (after or [""])[-1]


def rewritten(go_mod: str, modules: list[str], version: str, unpublished: list[str]) -> str:
    """A product's `go.mod` for another release.

    Args:
        go_mod: the text.
        modules: modules that are moved.
        version: to which release, with the `v`.
        unpublished: modules that the release requires as a part of its own repository: they are published as v0.
    """
    required = "".join(f"\t{module} {version}\n" for module in modules)
    # What is required indirectly is what the release says: go mod tidy writes it again.
    blocks = re.compile(r"^require \((?:.|\n)*?^\)\n\n?|^require .*\n\n?", re.MULTILINE)
    text = blocks.sub(f"require (\n{required})\n\n", go_mod, count=1)
    first = blocks.search(text)
    assert first  # noqa: S101 - it was just written
    text = text[: first.end()] + blocks.sub("", text[first.end() :])
    if unpublished:
        part = f"v0.{version.split('.', 1)[1]}"
        text = re.sub(r"^\t(\S+) => \1 v0\.\S+\n", "", text, flags=re.MULTILINE)
        lines = "".join(f"\t{module} => {module} {part}\n" for module in unpublished)
        text = re.sub(r"^replace \(\n", f"replace (\n{lines}", text, count=1, flags=re.MULTILINE)
    return text


def unpublished_of(go_mod: str) -> list[str]:
    """Modules that a release's own `go.mod` takes from directories beside it, at no version."""
    return sorted(re.findall(r"^\t(\S+) => \./staging/\S+$", go_mod, re.MULTILINE))


def write(product: build.Product, go: str, version: str) -> None:
    """Move a product to another release.

    Raises:
        BuildError: there is no such release, or Go cannot make a list of its sources.
    """
    name, directory = product.directory.name, product.directory
    modules = modules_of(product)
    unpublished: set[str] = set()
    for module in modules:
        answer = json.loads(build.run([go, "mod", "download", "-json", f"{module}@{version}"], name, directory))
        unpublished |= set(unpublished_of(Path(answer["GoMod"]).read_text(encoding="utf-8")))
    path = directory / "go.mod"
    path.write_text(
        rewritten(path.read_text(encoding="utf-8"), modules, version, sorted(unpublished)), encoding="utf-8"
    )
    build.run([go, "mod", "tidy"], name, directory)


def listed(product: build.Product, go: str, module: str) -> list[str]:
    """Versions of a module that the proxy has."""
    command = [go, "list", "-m", "-versions", module]
    return build.run(command, product.directory.name, product.directory).split()[1:]


def best(product: build.Product, go: str) -> str:
    """The newest release of the same minor, or the current one."""
    module = modules_of(product)[0]
    return newer(product.versions[module], listed(product, go, module))[0] or product.versions[module]


def propose(product: build.Product, go: str) -> str:
    """One line on a product."""
    found = []
    for module in modules_of(product):
        current = product.versions[module]
        same, latest = newer(current, listed(product, go, module))
        choices = ", ".join(dict.fromkeys(filter(None, (same, latest)))) or "nothing newer"
        found.append(f"{module} {current}: {choices}")
    return f"{product.directory.name}: {'; '.join(found)}"


def main() -> int:
    """Do what the command line says."""
    words = sys.argv[1:]
    if any(word.startswith("-") and word != "--write" for word in words) or words == ["--write"]:
        print((__doc__ or "").split("\n\n")[1], file=sys.stderr)
        return 2
    writes = words[:1] == ["--write"]
    chosen = words[1:2] if writes else words or sorted(path.parent.name for path in build.HERE.glob("*/go.mod"))
    try:
        for name in chosen:
            product = build.read_product(build.HERE / name)
            go = build.find_go(product.go)
            if product.own_version or not product.tools:
                continue
            if writes:
                write(product, go, f"v{words[2].removeprefix('v')}" if words[2:] else best(product, go))
                product = build.read_product(build.HERE / name)
            print(propose(product, go))
    except (build.BuildError, OSError) as error:
        print(f"bump.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
