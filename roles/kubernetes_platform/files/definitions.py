#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the kinds of the Gateway API and of Envoy Gateway as this role keeps them.

For whoever raises a version: both are Apache-2.0 and come as Go modules, which `go mod download` fetches and verifies.
Kept is all that the API server acts on. Left out are the descriptions, two thirds of the text, which only
`kubectl explain` shows, and what a definition says of its own status. One file a kind, named as upstream names it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

MODULES = {
    "sigs.k8s.io/gateway-api": "config/crd/standard",
    "github.com/envoyproxy/gateway": "charts/gateway-helm/charts/crds/crds/generated",
}
TARGET = Path(__file__).resolve().parent.parent / "templates" / "cluster" / "gateway" / "definitions"
HEADER = """\
# yamllint disable-file
# {name} of {module} {version}, Apache-2.0, without descriptions. Written by files/definitions.py.
"""


def directory_of(module: str, version: str) -> Path:
    """Where Go keeps a module on this machine, fetched when it is not there; its checksum is verified."""
    done = subprocess.run(  # noqa: S603 - fixed words; the version comes from the person who runs this
        ["go", "mod", "download", "-json", f"{module}@{version}"],  # noqa: S607 - whichever Go is installed
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(json.loads(done.stdout)["Dir"])


def bare(schema: Any) -> Any:
    """A schema without its descriptions; a property of that name is none."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key == "description" and isinstance(value, str):
            continue
        if key == "properties":
            kept[key] = {name: bare(property_) for name, property_ in value.items()}
        elif key in ("default", "enum", "example"):
            kept[key] = value
        else:
            kept[key] = bare(value)
    return kept


def definition(document: dict[str, Any]) -> dict[str, Any]:
    """A CustomResourceDefinition as it is kept."""
    document.pop("status", None)
    document["metadata"].pop("creationTimestamp", None)
    for version in document["spec"]["versions"]:
        version["schema"] = bare(version["schema"])
    return document


def write(module: str, version: str) -> int:
    """Write all kinds of a module; how many there were."""
    count = 0
    for path in sorted((directory_of(module, version) / MODULES[module]).glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if not document or document["kind"] != "CustomResourceDefinition":
                continue
            text = yaml.safe_dump(definition(document), sort_keys=False, width=160)
            header = HEADER.format(name=document["metadata"]["name"], module=module, version=version)
            (TARGET / path.name).write_text(header + text, encoding="utf-8")
            count += 1
    return count


def main() -> None:
    """Write the kinds of both modules at the versions given."""
    parser = argparse.ArgumentParser(description="Write the kinds of the Gateway API and of Envoy Gateway.")
    parser.add_argument("--gateway-api", required=True, metavar="VERSION", help="such as v1.6.1")
    parser.add_argument("--envoy-gateway", required=True, metavar="VERSION", help="such as v1.9.1")
    options = parser.parse_args()
    TARGET.mkdir(parents=True, exist_ok=True)
    for old in TARGET.glob("*.yaml"):
        old.unlink()
    versions = {
        "sigs.k8s.io/gateway-api": options.gateway_api,
        "github.com/envoyproxy/gateway": options.envoy_gateway,
    }
    for module, version in versions.items():
        print(f"{module} {version}: {write(module, version)} kinds")  # noqa: T201 - it is a program for people


if __name__ == "__main__":
    main()
