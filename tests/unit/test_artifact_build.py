# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder of the bundle: what it reads, and that the same inputs give the same list, bill and bytes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
MODULE = """module example.org/product

go 1.20

tool example.org/product/cmd/hello

require example.org/other v1.2.3 // indirect
"""
MAIN = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with a cache and products of the test's own."""
    spec = importlib.util.spec_from_file_location("artifact_build", ROOT / "lab/artifacts/build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "artifact_build", module)
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
    modules = sorted((ROOT / "lab/artifacts").glob("*/go.mod"))
    assert modules
    for module in modules:
        read = builder.read_product(module.parent)
        assert all(read.version_of(tool) for tool in read.tools)


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


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go on this machine, and a toolchain is large")
def test_the_same_inputs_give_the_same_bundle(builder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product(builder, MODULE.replace("require example.org/other v1.2.3 // indirect\n", ""))
    monkeypatch.setattr(builder.Product, "version_of", lambda _self, _tool: "1.0")
    bundle = tmp_path / "bundle"
    (bundle).mkdir()
    (bundle / "of-a-version-before").touch()
    first = builder.bundle(bundle)
    assert list(first) == ["hello-1.0"]
    assert sorted(path.name for path in bundle.iterdir()) == ["SHA256SUMS", "hello-1.0", "sbom.cdx.json"]
    names = [part["name"] for part in json.loads((bundle / "sbom.cdx.json").read_text())["components"][0]["components"]]
    assert names == ["go"]

    shutil.rmtree(tmp_path / "cache")
    again = tmp_path / "again"
    assert builder.bundle(again) == first
    for name in ("hello-1.0", "SHA256SUMS", "sbom.cdx.json"):
        assert (again / name).read_bytes() == (bundle / name).read_bytes()
