# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving a product to another release: which one is newer, and what becomes of its go.mod."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "lab/artifacts"))

import bump

GO_MOD = """module m

go 1.26.7

tool k8s.io/kubernetes/cmd/kubelet

require (
	example.org/a v1.0.0 // indirect
	k8s.io/kubernetes v1.34.4 // indirect
)

// Why these are here.
replace (
	k8s.io/api => k8s.io/api v0.34.4
	example.org/b => example.org/c v1.2.3
)

require example.org/d v1.0.0 // indirect
"""


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ([], ("", "")),
        (["v1.34.4", "v1.34.3", "v1.33.9"], ("", "")),
        (["v1.34.10", "v1.34.9", "v1.36.0", "v1.37.0-rc.1"], ("v1.34.10", "v1.36.0")),
        (["v1.35.0-alpha.1", "v2.0.0"], ("", "v2.0.0")),
    ],
)
def test_the_newest_release_of_the_minor_and_of_all(versions: list[str], found: tuple[str, str]) -> None:
    assert bump.newer("v1.34.4", versions) == found


def test_what_is_published_apart_follows_the_release() -> None:
    upstream = "replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/new => ./staging/src/k8s.io/new\n)\n"
    unpublished = bump.unpublished_of(upstream)
    assert unpublished == ["k8s.io/api", "k8s.io/new"]
    text = bump.rewritten(GO_MOD, ["k8s.io/kubernetes"], "v1.35.4", unpublished)
    assert text == (
        "module m\n\ngo 1.26.7\n\ntool k8s.io/kubernetes/cmd/kubelet\n\n"
        "require (\n\tk8s.io/kubernetes v1.35.4\n)\n\n"
        "// Why these are here.\nreplace (\n"
        "\tk8s.io/api => k8s.io/api v0.35.4\n\tk8s.io/new => k8s.io/new v0.35.4\n"
        "\texample.org/b => example.org/c v1.2.3\n)\n\n"
    )


def test_a_release_of_one_module_has_nothing_apart() -> None:
    text = bump.rewritten(GO_MOD, ["k8s.io/kubernetes"], "v1.34.5", [])
    assert "k8s.io/api => k8s.io/api v0.34.4\n" in text
    assert "example.org/a" not in text


POM = """<project>
  <version>4.3.0</version>
  <dependencies>
    <dependency><groupId>g</groupId><artifactId>a</artifactId><version>${project.version}</version></dependency>
    <dependency><groupId>g</groupId><artifactId>b</artifactId><version>1.0</version></dependency>
  </dependencies>
</project>
"""


def test_a_product_of_jars_is_moved_by_the_version_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pom.xml").write_text(POM)
    (tmp_path / "maven.lock").write_text(f"{'0' * 64}  g/a/4.3.0/a-4.3.0.jar\n")
    cache = tmp_path / "cache"
    monkeypatch.setattr(bump.build, "CACHE", cache)

    def maven(directory: Path, goal: str, settings: dict[str, str]) -> None:
        version = bump.build.read_product(directory).version
        if goal == bump.ASK_VERSIONS:
            (cache / "maven/g/a").mkdir(parents=True, exist_ok=True)
            names = "".join(f"<version>{name}</version>" for name in ("4.3.0", "4.3.1", "4.4.0-rc1", "4.4.0"))
            (cache / "maven/g/a/maven-metadata-x.xml").write_text(f"<versions>{names}</versions>")
        elif version == "9.9.9":
            raise bump.build.BuildError("no such release")
        else:
            jar = Path(settings["outputDirectory"]) / f"g/a/{version}/a-{version}.jar"
            jar.parent.mkdir(parents=True)
            jar.write_bytes(b"")

    monkeypatch.setattr(bump.build, "run_maven", maven)
    product = bump.build.read_product(tmp_path)
    assert bump.bump_jars(product, writes=False, version="").endswith(": v4.3.0: v4.3.1, v4.4.0")
    assert bump.bump_jars(product, writes=True, version="").endswith(": v4.3.1: v4.4.0")
    assert (tmp_path / "pom.xml").read_text() == POM.replace("4.3.0", "4.3.1")
    empty = hashlib.sha256(b"").hexdigest()
    assert (tmp_path / "maven.lock").read_text() == f"{empty}  g/a/4.3.1/a-4.3.1.jar\n"
    with pytest.raises(bump.build.BuildError, match="no such release"):
        bump.bump_jars(product, writes=True, version="9.9.9")
    assert bump.build.read_product(tmp_path).version == "4.3.1"
    assert bump.bump_jars(product, writes=True, version="4.4.0").endswith(": v4.4.0: nothing newer")
