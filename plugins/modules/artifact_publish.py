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
  - An artifact for C(images/REPOSITORY:TAG) is an OCI archive. Once it is verified, it is pushed into the registry; the
    archive itself is not kept.
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
  registry:
    description: Base URL of the registry that images are pushed into. The default is this host, below C(site_domain).
    type: str
  ca_path:
    description: The authority that vouches for the registry.
    type: path
    default: /etc/groundplane/pki/ca.crt
  record:
    description: Where it is kept which checksum each file had, and which image each archive became. Empty for nowhere.
    type: path
    default: /var/lib/groundplane/artifacts.json
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
    description:
      - Published files are verified again on each run, by what their inode says. One that was altered is replaced.
      - An image whose tag names another manifest than its archive holds is pushed again.
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
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library
from ansible_collections.groundplane.onprem.plugins.module_utils.artifact_registry import Registry


def fetch(item: dict[str, Any], staged: dict[str, str], target: str) -> tuple[str, str] | None:
    """Bring a verified copy of one artifact beside its place.

    Args:
        item: an entry of the plan.
        staged: an artifact's label to the bundle's file on this host.
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
        elif item["label"] not in staged:
            return None
        else:
            part = library.part_of(target)
            with library.open_part(target) as out, Path(staged[item["label"]]).open("rb") as source:
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


class Publisher:
    """One run of the module: what came from where, what has to be sent first, and what the indexes list."""

    def __init__(self, params: dict[str, Any], *, check: bool) -> None:
        """Prepare; nothing is done yet."""
        self._root = Path(params["root"])
        self._staged: dict[str, str] = params["staged"]
        self._check = check
        self._record = library.Record(params["record"])
        self._registry_access = (params["registry"], params["ca_path"])
        self._came_from: dict[str, str] = {}
        self._needed: list[str] = []
        self._sums: dict[str, str] = {}

    @cached_property
    def _registry(self) -> Registry:
        # Not before it is needed: a host that is still to be set up has no trust anchor when it is only looked at.
        return Registry(*self._registry_access)

    def run(self, plan: list[dict[str, Any]]) -> dict[str, Any]:
        """Publish what is lacking.

        Raises:
            ArtifactError: see `fetch` and `Registry`.
        """
        try:
            for item in plan:
                if library.image_of(item["destination"]):
                    self._image(item)
                else:
                    self._file(item)
        finally:
            if not self._check:
                self._record.save()
        if self._needed:
            return {"changed": bool(self._came_from), "needed": self._needed, "origins": self._came_from}
        indexes = library.indexes(self._sums).items()
        lists = [path for path, content in indexes if write_index(self._root, path, content, check=self._check)]
        changed = [*(str(self._root / path) for path in lists)]
        changed += [path if library.image_of(path) else str(self._root / path) for path in self._came_from]
        return {
            "changed": bool(changed),
            "published": sorted(self._came_from),
            "origins": self._came_from,
            "diff": {"before": "", "after": "".join(f"{path}\n" for path in sorted(changed))},
        }

    def _file(self, item: dict[str, Any]) -> None:
        target = self._root / item["destination"]
        found = self._record.digest(str(target))
        if found in item["accepted"].values():
            self._sums[item["destination"]] = found
            return
        if self._check:
            self._came_from[item["destination"]], self._sums[item["destination"]] = next(iter(item["accepted"].items()))
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy := self._fetch(item, str(target)):
            path, origin = copy
            Path(path).chmod(0o644)
            Path(path).replace(target)
            self._came_from[item["destination"]] = origin
            self._sums[item["destination"]] = item["accepted"][origin]

    def _image(self, item: dict[str, Any]) -> None:
        repository, tag = library.image_of(item["destination"]) or ("", "")
        kept = self._record.image(item["destination"], item["accepted"].values())
        if kept and self._manifest(repository, tag) == kept:
            return
        if self._check:
            self._came_from[item["destination"]] = next(iter(item["accepted"]))
            return
        with tempfile.TemporaryDirectory(dir=self._root) as work:
            if copy := self._fetch(item, posixpath.join(work, "image")):
                path, origin = copy
                try:
                    digest = self._registry.push(item["label"], path, repository, tag)
                except library.UnreachableError as error:
                    raise library.ArtifactError(f"{item['label']}: {error}") from error
                self._record.keep_image(item["destination"], item["accepted"][origin], digest)
                self._came_from[item["destination"]] = origin

    def _manifest(self, repository: str, tag: str) -> str:
        try:
            return self._registry.manifest(repository, tag)
        except library.UnreachableError:
            # What would be started by a run may not run yet.
            if self._check:
                return ""
            raise

    def _fetch(self, item: dict[str, Any], target: str) -> tuple[str, str] | None:
        copy = fetch(item, self._staged, target)
        if copy is None:
            self._needed.append(item["label"])
        return copy


def main() -> None:
    """Read the call, publish, answer."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "plan": {"type": "list", "elements": "dict", "required": True},
            "staged": {"type": "dict", "default": {}},
            "registry": {"type": "str", "default": ""},
            "ca_path": {"type": "path", "default": "/etc/groundplane/pki/ca.crt"},
            "record": {"type": "path", "default": library.RECORD},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Publisher(module.params, check=module.check_mode).run(module.params["plan"]))
    except library.ArtifactError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
