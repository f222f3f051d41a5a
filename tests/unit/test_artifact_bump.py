# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving a product to another release: which one is newer, and what becomes of its go.mod."""

from __future__ import annotations

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
