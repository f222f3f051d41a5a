#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mirror's side of C(groundplane.onprem.artifact_publish); the action plugin of that name reads the bundle."""

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact_publish
short_description: The mirror offers the declared artifacts, each verified
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Takes each artifact from the first of its origins that answers, verifies its SHA-256, and only then gives it the
    name by which others fetch it. Writes C(files/SHA256SUMS) and a PEP 503 index of C(wheels/).
  - An origin that offers another file than declared ends the run with the artifact's name. It is not passed over for
    the next one, because it says that something is wrong.
  - Files of the bundle travel from the controller only when the mirror lacks them.
options:
  artifacts:
    description: What to publish, as the variable C(mirror_artifacts) of role C(mirror) describes it.
    type: list
    elements: dict
    required: true
  bundle:
    description: Directory on the controller with built files and their C(SHA256SUMS), for artifacts with a C(path).
    type: path
    default: ""
  root:
    description: The mirror's root directory.
    type: path
    required: true
  origins:
    description: In which order origins are asked.
    type: list
    elements: str
    choices: [upstream, modules]
    default: [upstream, modules]
attributes:
  check_mode:
    description: Says what would be published. Downloads nothing; the bundle is verified.
    support: full
  diff_mode:
    description: Lists the paths that change.
    support: full
  idempotent:
    description: Published files are verified again on each run, and one that was altered is replaced.
    support: full
"""

EXAMPLES = r"""
- name: The mirror offers the site's artifacts
  groundplane.onprem.artifact_publish:
    root: /srv/mirror
    bundle: /var/lib/groundplane/bundle
    artifacts:
      - name: oras
        version: 1.3.6
        destination: files/oras/1.3.6/oras
        path: oras-1.3.6
"""

RETURN = r"""
published:
  description: Destinations that were published or replaced.
  type: list
  elements: str
  returned: success
origins:
  description: For each of them, the origin it came from.
  type: dict
  returned: success
"""

import posixpath
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library


def fetch(item: dict[str, Any], staged: dict[str, str], target: str) -> tuple[str, str] | None:
    """Bring a verified copy of one artifact beside its place.

    Args:
        item: an entry of the plan.
        staged: artifact name to the bundle's file on this host.
        target: its place.

    Returns:
        The copy's path and its origin; None when the bundle's file has to be sent first.

    Raises:
        ArtifactError: no origin has it, or one offers another file.
    """
    refused: list[str] = []
    for origin, sha256 in item["accepted"].items():
        if origin == "upstream":
            try:
                return library.download(item["label"], item["url"], [sha256], target), origin
            except library.UnreachableError as error:
                refused.append(str(error))
        elif item["name"] not in staged:
            return None
        else:
            part = library.part_of(target)
            with library.open_part(target) as out, Path(staged[item["name"]]).open("rb") as source:
                shutil.copyfileobj(source, out)
            try:
                library.verify(item["label"], part, [sha256], "sent from the bundle")
            except library.ArtifactError:
                Path(part).unlink()
                raise
            return part, origin
    raise library.ArtifactError("; ".join(refused))


def write_index(root: Path, relative: str, content: str, *, check: bool) -> bool:
    """Write one index when it differs; say whether it does."""
    path = root / relative
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return False
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(library.part_of(str(path)))
        part.write_text(content, encoding="utf-8")
        part.chmod(0o644)
        part.replace(path)
    return True


def publish(params: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Publish what is lacking.

    Raises:
        ArtifactError: see `fetch`.
    """
    root = Path(params["root"])
    came_from: dict[str, str] = {}
    needed: list[str] = []
    sums: dict[str, str] = {}
    for item in params["plan"]:
        target = root / item["destination"]
        found = library.file_digest(str(target))
        if found in item["accepted"].values():
            sums[item["destination"]] = found
            continue
        if check:
            came_from[item["destination"]] = next(iter(item["accepted"]))
            sums[item["destination"]] = next(iter(item["accepted"].values()))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = fetch(item, params["staged"], str(target))
        if copy is None:
            needed.append(item["name"])
            continue
        path, origin = copy
        Path(path).chmod(0o644)
        Path(path).replace(target)
        came_from[item["destination"]] = origin
        sums[item["destination"]] = item["accepted"][origin]
    if needed:
        return {"changed": bool(came_from), "needed": needed, "origins": came_from}
    lists = [path for path, content in library.indexes(sums).items() if write_index(root, path, content, check=check)]
    changed = sorted([*came_from, *lists])
    return {
        "changed": bool(changed),
        "published": sorted(came_from),
        "origins": came_from,
        "diff": {"before": "", "after": "".join(f"{posixpath.join(str(root), path)}\n" for path in changed)},
    }


def main() -> None:
    """Read the call, publish, answer."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "plan": {"type": "list", "elements": "dict", "required": True},
            "staged": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**publish(module.params, check=module.check_mode))
    except library.ArtifactError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
