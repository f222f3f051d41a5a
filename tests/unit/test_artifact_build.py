# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder of the bundle: what it reads, and that the same inputs give the same list, bill and bytes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
MODULE = """module example.org/product

go 1.20

tool example.org/product/cmd/hello

require example.org/other v1.2.3 // indirect
"""
# Nothing is imported: each build compiles its part of the standard library anew, and `fmt` alone would double that.
MAIN = 'package main\n\nfunc main() { println("hello") }\n'


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with a cache and products of the test's own."""
    spec = importlib.util.spec_from_file_location("artifact_build", ROOT / "lab/artifacts/build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "artifact_build", module)
    monkeypatch.syspath_prepend(str(ROOT / "lab/artifacts"))
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    here = tmp_path / "lab/artifacts"
    here.mkdir(parents=True)
    (tmp_path / "requirements.lock").write_text("# pinned\nPyYAML==6.0.2 \\\n    --hash=sha256:00\nnetaddr==1.3.0\n")
    monkeypatch.setattr(module, "HERE", here)
    return module


def product(builder: Any, text: str = MODULE) -> Path:
    """A product beside the script."""
    directory: Path = builder.HERE / "product"
    (directory / "cmd/hello").mkdir(parents=True, exist_ok=True)
    (directory / "go.mod").write_text(text)
    (directory / "go.sum").touch()
    (directory / "cmd/hello/main.go").write_text(MAIN)
    return directory


def test_a_product_is_its_go_mod(builder: Any) -> None:
    blocks = (
        "module m\ngo 1.25.1\ntool (\n\texample.org/a/cmd/x\n\texample.org/a/sub/cmd/y\n)\n"
        "require (\n\texample.org/a v1.0.0 // indirect\n\texample.org/a/sub v2.0.0\n)\n"
    )
    read = builder.read_product(product(builder, blocks))
    assert read.tools == ("example.org/a/cmd/x", "example.org/a/sub/cmd/y")
    assert read.go == (1, 25, 1)
    assert [read.version_of(tool) for tool in read.tools] == ["1.0.0", "2.0.0"]


def test_what_is_incomplete_is_refused_by_name(builder: Any) -> None:
    directory = product(builder, "module m\ngo 1.25\n")
    with pytest.raises(builder.BuildError, match=r"product: go\.mod names no tool"):
        builder.read_product(directory)
    with pytest.raises(builder.BuildError, match=r"product: go\.mod requires no module that holds example\.org/b"):
        builder.read_product(product(builder)).version_of("example.org/b")
    (directory / "go.sum").unlink()
    with pytest.raises(builder.BuildError, match=r"product: has no go\.sum"):
        builder.read_product(directory)


def test_every_product_of_the_repository_is_read(builder: Any) -> None:
    artifacts = ROOT / "lab/artifacts"
    directories = {path.parent for name in builder.MANIFESTS for path in artifacts.glob(f"*/{name}")}
    products = [builder.read_product(directory) for directory in sorted(directories)]
    assert {"kubernetes", "envoy", "kafka"} <= {product.name for product in products}
    contents: dict[str, set[str]] = {}
    for product in products:
        assert all(product.version_of(tool) for tool in product.tools)
        names = {product.name_of(tool) for tool in product.tools}
        assert set(product.files or ()) <= names
        assert set(product.names) <= {builder.built_name(tool) for tool in product.tools}
        assert builder.linker_flags(product)
        contents.setdefault(product.name, set()).update(names, product.content)
    for image in builder.read_plan(artifacts / "images.yml").images:
        assert {source for _, source in image.files} <= contents.get(image.product, set()), image.name


def test_a_product_says_how_it_is_built_and_called(builder: Any) -> None:
    directory = product(
        builder, "module m\ngo 1.25\ntool example.org/x/server/v3\nrequire example.org/x/server/v3 v3.6.5\n"
    )
    (directory / "product.yml").write_text(
        "files: []\nset: upgrade\nlike: store\nnames: {server: store}\n"
        "ldflags:\n  - -X x.version=v{version}\n  - -X 'x.what={major} {minor}'\n"
        "content: {data: {module: example.org/x, path: d, without: [tests]}}\n"
    )
    read = builder.read_product(directory)
    assert (read.name, read.group, read.version, read.files) == ("store", "upgrade", "3.6.5", ())
    assert [read.name_of(tool) for tool in read.tools] == ["store"]
    assert builder.linker_flags(read) == "-s -w -buildid= -X x.version=v3.6.5 -X 'x.what=3 6'"
    assert read.content == {"data": builder.Content("d", "example.org/x", ("tests",))}
    (directory / "product.yml").write_text("flags: []\n")
    with pytest.raises(builder.BuildError, match=r"product: product\.yml: unknown key flags"):
        builder.read_product(directory)
    (directory / "product.yml").write_text("content: {data: {paths: d}}\n")
    with pytest.raises(builder.BuildError, match=r"product: product\.yml: data: unknown key paths"):
        builder.read_product(directory)


def test_a_product_has_what_it_does_not_say_from_the_one_that_it_is_like(builder: ModuleType) -> None:
    directory = product(
        builder, "module m\ngo 1.25\ntool example.org/x/server/v3\nrequire example.org/x/server/v3 v3.6.6\n"
    )
    (directory.parent / "store").mkdir()
    (directory.parent / "store" / "product.yml").write_text(
        "files: [ctl]\nnames: {server: store}\nldflags: ['-X x.version=v{version}']\n"
    )
    (directory / "product.yml").write_text("set: upgrade\nlike: store\nfiles: []\n")
    read = builder.read_product(directory)
    assert (read.name, read.group, read.files, read.names) == ("store", "upgrade", (), {"server": "store"})
    assert builder.linker_flags(read) == "-s -w -buildid= -X x.version=v3.6.6"


def test_a_wheel_is_a_product(builder: Any) -> None:
    directory = builder.HERE / "proxy"
    directory.mkdir()
    (directory / "requirements.txt").write_text("# why\nproxy-server==1.39.3 \\\n    --hash=sha256:00\n")
    with pytest.raises(builder.BuildError, match=r"proxy: requirements\.txt pins no single wheel, or nothing is taken"):
        builder.read_product(directory)
    (directory / "product.yml").write_text("content: {proxy: {path: bin/proxy}}\n")
    assert builder.read_product(directory).version == "1.39.3"


POM = """<project>
  <artifactId>log</artifactId>
  <version>4.4.0</version>
  <dependencies>
    <dependency><groupId>org.example</groupId><artifactId>log_2.13</artifactId><version>${project.version}</version></dependency>
    <dependency><groupId>org.example</groupId><artifactId>other</artifactId><version>1.0</version></dependency>
  </dependencies>
</project>
"""
JARS = {"org/example/log_2.13/4.4.0/log_2.13-4.4.0.jar": b"log", "org/example/other/1.0/other-1.0.jar": b"other"}
MAVEN = """#!{python}
import pathlib, sys
target = next(pathlib.Path(word[18:]) for word in sys.argv if word.startswith("-DoutputDirectory="))
for path, content in {jars!r}.items():
    (target / path).parent.mkdir(parents=True, exist_ok=True)
    (target / path).write_bytes(content)
"""


def locked(jars: dict[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(jars[path]).hexdigest()}  {path}\n" for path in sorted(jars))


@pytest.fixture
def log(builder: Any) -> Path:
    """A product of two jars."""
    directory: Path = builder.HERE / "log"
    directory.mkdir()
    (directory / "pom.xml").write_text(POM)
    (directory / "maven.lock").write_text(locked(JARS))
    return directory


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, bytes]], None]:
    """Lets a program stand for Maven, which brings these jars: registries are no part of unit tests."""

    def put(jars: dict[str, bytes]) -> None:
        program = tmp_path / "bin/mvn"
        program.parent.mkdir()
        program.write_text(MAVEN.format(python=sys.executable, jars=jars))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return put


def test_jars_are_one_archive_with_the_same_bytes_each_time(
    builder: Any, log: Path, resolved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved(JARS)
    bundle, again = tmp_path / "bundle", tmp_path / "again"
    sums = builder.bundle(bundle)
    assert list(sums) == ["log-4.4.0.tar"]
    with tarfile.open(bundle / "log-4.4.0.tar") as archive:
        members = archive.getmembers()
    assert [one.name for one in members] == ["libs", "libs/log_2.13-4.4.0.jar", "libs/other-1.0.jar"]
    assert {(one.mtime, one.uid, one.uname) for one in members} == {(0, 0, "")}
    assert yaml.safe_load((bundle / "artifacts.yml").read_text()) == [
        {"name": "log", "version": "4.4.0", "path": "log-4.4.0.tar", "destination": "files/log/4.4.0/log.tar"}
    ]
    parts = json.loads((bundle / "sbom.cdx.json").read_text())["components"][0]["components"]
    assert [part["purl"] for part in parts] == [
        "pkg:maven/org.example/log_2.13@4.4.0",
        "pkg:maven/org.example/other@1.0",
    ]
    assert parts[1]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"other").hexdigest()}]
    shutil.rmtree(builder.CACHE)
    assert builder.bundle(again) == sums
    # What is in the cache needs no Maven.
    monkeypatch.setenv("PATH", "")
    assert builder.bundle(again) == sums


@pytest.mark.parametrize(
    ("brought", "said"),
    [
        ({**JARS, "org/example/other/1.0/other-1.0.jar": b"OTHER"}, r"other-1\.0\.jar has SHA-256 \w{64}, not \w{64}$"),
        ({**JARS, "org/example/new/1/new-1.jar": b""}, r"new-1\.jar was resolved and is not in maven\.lock$"),
        (
            {"org/example/other/1.0/other-1.0.jar": b"other"},
            r"log_2\.13-4\.4\.0\.jar is in maven\.lock and was not resolved$",
        ),
    ],
)
def test_jars_that_are_not_those_of_the_lock_file_are_refused(
    builder: Any, log: Path, resolved: Any, brought: dict[str, bytes], said: str
) -> None:
    resolved(brought)
    with pytest.raises(builder.BuildError, match=r"log: org/example/" + ".*" + said):
        builder.build(builder.read_product(log))
    assert not (builder.CACHE / "log").is_dir() or not list((builder.CACHE / "log").iterdir())


def test_a_product_of_jars_that_is_incomplete_is_refused(
    builder: Any, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(builder.BuildError, match=r"log: there is no mvn on this machine: install Debian's maven"):
        builder.build(builder.read_product(log))
    for text, said in (
        (locked(JARS) * 2, "stands twice"),
        ("x  y.jar\n", "no line of a lock file"),
        ("", "names no jar"),
    ):
        (log / "maven.lock").write_text(text)
        with pytest.raises(builder.BuildError, match=rf"log: maven\.lock: .*{said}"):
            builder.read_product(log)
    (log / "maven.lock").unlink()
    with pytest.raises(builder.BuildError, match=r"log: pom\.xml has no version, or there is no maven\.lock"):
        builder.read_product(log)


def test_two_jars_of_one_name_are_refused(builder: Any, tmp_path: Path) -> None:
    with pytest.raises(builder.jars.JarError, match=r"b/x/1/x-1\.jar and a/x/1/x-1\.jar have one name"):
        builder.jars.write_archive(tmp_path, ["a/x/1/x-1.jar", "b/x/1/x-1.jar"], tmp_path / "x.tar")


def test_the_bill_names_what_was_linked(builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "tool: go1.26.8\n\tpath\texample.org/tool\n\tdep\texample.org/a\tv1.0.0\th1:x=\n"
        "\tdep\texample.org/b\tv1.1.0\n\t=>\texample.org/c\tv2.0.0\th1:y=\n"
        "\tdep\texample.org/d\tv0.5.2\n\t=>\t./stub\t(devel)\t\n"
    )
    monkeypatch.setattr(builder, "run", lambda *_args: said)
    monkeypatch.setattr(builder, "_go_version", lambda _go: (1, 26, 8))
    assert [(part["name"], part["version"]) for part in builder.go_components("go", Path("tool"))] == [
        ("go", "1.26.8"),
        ("example.org/a", "v1.0.0"),
        ("example.org/c", "v2.0.0"),
        ("example.org/d", "(devel)"),
    ]


def test_what_lies_under_an_image_is_known_by_its_packages(builder: Any) -> None:
    assert builder.package_version("libgmp10_2%3a6.3.0+dfsg-3_amd64.deb") == ("libgmp10", "2:6.3.0+dfsg-3")
    kept = ["/etc/iproute2/x", "/usr/bin/nft", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/os-release", "/dev"]
    dropped = ["/usr/share/doc/x", "/dev/null", "/var/cache/apt/archives/x.deb", "/usr/lib/x86_64-linux-gnu/gconv/A.so"]
    assert [path for path in (*kept, *dropped) if not builder.UNWANTED.match(path)] == kept


def test_images_yml_is_read_strictly(builder: Any, tmp_path: Path) -> None:
    path = tmp_path / "images.yml"
    assert builder.read_plan(path).images == []
    path.write_text("repository: r\nimages: {}\n")
    with pytest.raises(builder.BuildError, match=r"images\.yml: has no debian"):
        builder.read_plan(path)
    path.write_text("repository: r\nimages: {}\ndebian: {suite: s, as_of: 2026-01-01}\nbase: x\n")
    with pytest.raises(builder.BuildError, match=r"images\.yml: unknown key base"):
        builder.read_plan(path)


def test_the_bill_of_materials_is_a_function_of_what_is_in_the_bundle(builder: Any) -> None:
    parts = [builder._library("example.org/a", "v1.0.0", "pkg:golang/example.org/a@v1.0.0")]
    lock = (builder.HERE.parents[1] / "requirements.lock").read_text()
    bill = builder.sbom({"tool-1": ("a" * 64, parts)}, lock)
    assert bill == builder.sbom({"tool-1": ("a" * 64, parts)}, lock)
    assert bill["serialNumber"] != builder.sbom({"tool-1": ("b" * 64, parts)}, lock)["serialNumber"]
    file, controller = bill["components"]
    assert file["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert [part["purl"] for part in file["components"]] == ["pkg:golang/example.org/a@v1.0.0"]
    assert [part["purl"] for part in controller["components"]] == ["pkg:pypi/pyyaml@6.0.2", "pkg:pypi/netaddr@1.3.0"]


IMAGES = """
repository: test
debian: {suite: trixie, as_of: 2026-01-01}
images:
  hello:
    product: product
    tag: v{version}
    user: "65532"
    files: {/hello: hello, /data: data}
    entrypoint: [/hello]
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go on this machine, and a toolchain is large")
def test_the_same_inputs_give_the_same_bundle(builder: Any, tmp_path: Path) -> None:
    directory = product(builder, MODULE.replace("require example.org/other v1.2.3 // indirect\n", ""))
    (directory / "data").mkdir()
    (directory / "data/file").write_text("data\n")
    (directory / "product.yml").write_text(
        "version: '1.0'\ncontent: {data: {module: example.org/product, path: data}}\n"
    )
    (builder.HERE / "images.yml").write_text(IMAGES)
    bundle = tmp_path / "bundle"
    (bundle).mkdir()
    (bundle / "of-a-version-before").touch()
    first = builder.bundle(bundle)
    assert list(first) == ["hello-1.0", "hello-v1.0.oci.tar"]
    assert sorted(path.name for path in bundle.iterdir()) == [
        "SHA256SUMS",
        "artifacts.yml",
        "hello-1.0",
        "hello-v1.0.oci.tar",
        "sbom.cdx.json",
    ]
    assert yaml.safe_load((bundle / "artifacts.yml").read_text()) == [
        {"name": "hello", "version": "1.0", "path": "hello-1.0", "destination": "files/hello/1.0/hello"},
        {
            "name": "test/hello",
            "version": "v1.0",
            "path": "hello-v1.0.oci.tar",
            "destination": "images/test/hello:v1.0",
        },
    ]
    for file in json.loads((bundle / "sbom.cdx.json").read_text())["components"][:2]:
        assert [part["name"] for part in file["components"]] == ["go"]
    assert not (builder.CACHE / builder.COMPILED).exists()

    shutil.rmtree(tmp_path / "cache")
    again = tmp_path / "again"
    assert builder.bundle(again) == first
    for path in bundle.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()

    # What is in the cache needs no compiler; what was altered in the bundle is put right.
    (again / "hello-1.0").write_bytes(b"altered")
    assert builder.bundle(again) == first
    assert (again / "hello-1.0").read_bytes() == (bundle / "hello-1.0").read_bytes()
    with pytest.raises(builder.BuildError, match="no product is in the set other"):
        builder.bundle(again, ["lab", "other"])
