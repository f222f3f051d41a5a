#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says which newer releases there are of the products beside it, and moves one to another release.

Usage: lab/artifacts/bump.py [PRODUCT ...]
       lab/artifacts/bump.py --write PRODUCT [VERSION]

Go asks its module proxy, Maven its repositories. The first form prints the newest release of the same minor and of all.
The second writes `go.mod` and `go.sum`, or `pom.xml` and `maven.lock`, for the newest of the same minor, or for
VERSION; what the release itself requires follows it.
What else has to change (a tag in `images.yml`, a variable of a role) is for a person to see: the diff is small.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import build
import jars

# Asks for all versions of what a pom.xml requires; what it found stays in Maven's own repository, where we read it.
ASK_VERSIONS = "org.codehaus.mojo:versions-maven-plugin:2.18.0:display-dependency-updates"


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


def jars_listed(product: build.Product) -> list[str]:
    """Versions that Maven's repositories have of the first thing that a product's `pom.xml` requires, with a `v`.

    Raises:
        BuildError: it requires nothing, or Maven fails.
    """
    found = re.search(
        r"<dependency>\s*<groupId>([^<]+)</groupId>\s*<artifactId>([^<]+)</artifactId>",
        (product.directory / "pom.xml").read_text(encoding="utf-8"),
    )
    if found is None:
        raise build.BuildError(f"{product.directory.name}: pom.xml requires nothing")
    build.run_maven(product.directory, ASK_VERSIONS, {})
    place = build.CACHE / build.MAVEN / found[1].replace(".", "/") / found[2]
    texts = [path.read_text(encoding="utf-8") for path in sorted(place.glob("maven-metadata-*.xml"))]
    return [f"v{version}" for text in texts for version in re.findall(r"<version>([^<]+)</version>", text)]


def moved_pom(text: str, version: str) -> str:
    """A product's `pom.xml` for another release: its own version is the first in it, and what follows refers to that.

    Args:
        text: of the file.
        version: without the `v`.
    """
    return re.sub(r"<version>[\w.-]+</version>", f"<version>{version}</version>", text, count=1)


def write_jars(product: build.Product, version: str) -> None:
    """Move a product of jars to another release, and write down what Maven brings for it.

    Args:
        product: it.
        version: without the `v`.

    Raises:
        BuildError: there is no such release; `pom.xml` is then as it was.
    """
    pom = product.directory / "pom.xml"
    before = pom.read_text(encoding="utf-8")
    pom.write_text(moved_pom(before, version), encoding="utf-8")
    with tempfile.TemporaryDirectory() as target:
        try:
            sums = build.resolve_jars(product.directory, Path(target))
        except build.BuildError:
            pom.write_text(before, encoding="utf-8")
            raise
    (product.directory / "maven.lock").write_text(jars.lock_text(sums), encoding="utf-8")


def bump_jars(product: build.Product, *, writes: bool, version: str) -> str:
    """One line on a product of jars, which is moved first when that is asked for."""
    versions = jars_listed(product)
    if writes:
        write_jars(product, version or newer(f"v{product.version}", versions)[0].removeprefix("v") or product.version)
        product = build.read_product(product.directory)
    choices = ", ".join(dict.fromkeys(filter(None, newer(f"v{product.version}", versions)))) or "nothing newer"
    return f"{product.directory.name}: v{product.version}: {choices}"


def main() -> int:
    """Do what the command line says."""
    words = sys.argv[1:]
    if any(word.startswith("-") and word != "--write" for word in words) or words == ["--write"]:
        print((__doc__ or "").split("\n\n")[1], file=sys.stderr)
        return 2
    writes = words[:1] == ["--write"]
    manifests = [path for name in ("go.mod", "pom.xml") for path in build.HERE.glob(f"*/{name}")]
    chosen = words[1:2] if writes else words or sorted(path.parent.name for path in manifests)
    try:
        for name in chosen:
            product = build.read_product(build.HERE / name)
            if product.jars:
                print(bump_jars(product, writes=writes, version="".join(words[2:]).removeprefix("v")))
                continue
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
