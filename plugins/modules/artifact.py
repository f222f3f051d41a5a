#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's side of C(groundplane.onprem.artifact); the action plugin of that name looks up the declaration."""

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact
short_description: Artifacts of the site are installed from the mirror, verified
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Fetches artifacts from the site's mirror and verifies their SHA-256 against the inventory, or against the bundle's
    list on the controller. The mirror is not asked for the checksum, so one that was broken into cannot change what
    hosts run.
  - A file that is installed already is verified again, and replaced when it is another. Its checksum is computed again
    when its size, times or inode changed.
  - All that a task names is installed in one round trip.
  - With O(unpack), a tar archive becomes a directory that holds exactly what the archive does. The directory is made
    beside O(dest) and takes its place once it is whole. Files that somebody changed, removed or added there are found
    on the next run, and the archive is unpacked again. The archive itself does not stay on the host.
options:
  name:
    description: The artifact's name in the variable C(mirror_artifacts). Either this or O(artifacts).
    type: str
  version:
    description: Which of them, when C(mirror_artifacts) has several of that name.
    type: str
  dest:
    description:
      - Where it is installed. Required with O(name).
      - With O(unpack), a directory. What it holds is listed beside it in I(dest).manifest, for C(sha256sum --check).
        A directory that is neither empty nor has such a list is left alone, and the task fails.
    type: path
  artifacts:
    description: Several artifacts.
    type: list
    elements: dict
    suboptions:
      name:
        description: As O(name).
        type: str
        required: true
      version:
        description: As O(version).
        type: str
      dest:
        description: As O(dest).
        type: path
        required: true
      owner:
        description: As O(owner), which is the default.
        type: str
      group:
        description: As O(group), which is the default.
        type: str
      mode:
        description: As O(mode), which is the default.
        type: str
      unpack:
        description: As O(unpack), which is the default.
        type: bool
  owner:
    description: Owner of the installed file; with O(unpack), of the directory and all in it.
    type: str
    default: root
  group:
    description: Group of the installed file; with O(unpack), of the directory and all in it.
    type: str
    default: root
  mode:
    description:
      - Permissions of the installed file, as a quoted octal string.
      - With O(unpack), those of each directory, and of each file that the archive says may be executed. Other files
        have the same without the right to execute, so V(0755) makes files V(0644), and V(0750) makes files V(0640).
    type: str
    default: "0755"
  unpack:
    description:
      - The artifact is a tar archive, plain or compressed, and O(dest) is the directory of what it holds.
      - Only files and directories are unpacked. An archive with a link, a device, an absolute path or a path with C(..)
        is refused, before anything of it is unpacked.
      - The directory above O(dest) has to be there, on the file system that O(dest) is to be on, and O(dest) is not a
        mount point.
    type: bool
    default: false
  mirror:
    description: Base URL of the mirror. The default is the first host of group C(mirror), below C(site_domain).
    type: str
  ca_path:
    description: The authority that vouches for the mirror.
    type: path
    default: /etc/groundplane/pki/ca.crt
  record:
    description: Where checksums are kept that were computed before. Empty for nowhere.
    type: path
    default: /var/lib/groundplane/artifacts.json
attributes:
  check_mode:
    description: Compares what is installed, with O(unpack) file by file; downloads nothing.
    support: full
  diff_mode:
    description:
      - Shows the checksum before and after. With O(unpack) it is the archive's, followed by the names of files that
        differ from what was unpacked, at most 20.
    support: full
  idempotent:
    description: A second run changes nothing; it downloads nothing, and reads no file whose inode is the same.
    support: full
"""

EXAMPLES = r"""
- name: The registry client is installed
  groundplane.onprem.artifact:
    name: oras
    dest: /usr/local/bin/oras

- name: The programs of a node are those of its release
  groundplane.onprem.artifact:
    artifacts:
      - {name: kubelet, version: 1.34.4, dest: /usr/local/bin/kubelet}
      - {name: kubectl, version: 1.34.4, dest: /usr/local/bin/kubectl}

- name: The jars of Kafka are those of its release
  groundplane.onprem.artifact:
    name: kafka
    version: 4.4.0
    dest: /opt/kafka/4.4.0
    unpack: true
"""

RETURN = r"""
sha256:
  description: Checksum of what is installed; with O(unpack), of the archive.
  type: str
  returned: with O(name)
installed:
  description: Checksum of what is installed, by path; of an unpacked archive, the archive's.
  type: dict
  returned: success
changed_paths:
  description:
    - Paths that were replaced, or would be; for C(groundplane.onprem.units). Of an unpacked archive, the directory.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact_archive as archives


def install(module: AnsibleModule, item: dict[str, Any], record: library.Record) -> archives.Outcome:
    """Bring one file, or one directory, to what is declared.

    Raises:
        ArtifactError: it cannot be had, or what is offered is another file.
    """
    if item["unpack"]:
        return archives.converge(item, record, module.params["ca_path"], check=module.check_mode)
    return archives.Outcome(*install_file(module, item, record), faults=[])


def install_file(module: AnsibleModule, item: dict[str, Any], record: library.Record) -> tuple[bool, str, str]:
    """Bring one file to what is declared.

    Returns:
        Whether something changed, and the checksums before and after.

    Raises:
        ArtifactError: it cannot be had, or what is offered is another file.
    """
    dest = Path(item["dest"])
    before = record.digest(str(dest))
    accepted: list[str] = item["accepted"]
    wrong = before not in accepted
    after = accepted[0] if wrong else before
    permissions = {key: item[key] for key in ("owner", "group", "mode")}
    if wrong and not module.check_mode:
        if not dest.parent.is_dir():
            raise library.ArtifactError(f"{item['label']}: {dest.parent} is not there")
        part = Path(library.download(item["label"], item["url"], accepted, str(dest), module.params["ca_path"]))
        after = library.file_digest(str(part))
        # The permissions are right before the name is: nobody runs it half made.
        _attributes(module, {**permissions, "path": str(part)}, changed=False)
        part.replace(dest)
    changed = wrong
    if not wrong or not module.check_mode:
        changed = _attributes(module, {**permissions, "path": str(dest)}, changed=wrong)
    return changed, before, after


def _attributes(module: AnsibleModule, wanted: dict[str, Any], *, changed: bool) -> bool:
    attributes = module.load_file_common_arguments({**module.params, **wanted})
    return bool(module.set_fs_attributes_if_different(attributes, changed=changed))


def _diff(path: str, outcome: archives.Outcome) -> dict[str, str]:
    before = [f"sha256 {outcome.before or 'absent'}", *archives.shown(outcome.faults)]
    return {
        "before_header": path,
        "after_header": path,
        "before": "".join(f"{line}\n" for line in before),
        "after": f"sha256 {outcome.after}\n",
    }


def install_all(module: AnsibleModule) -> dict[str, Any]:
    """Bring all files to what is declared, in the order of the task.

    Raises:
        ArtifactError: see `install`.
    """
    record = library.Record(module.params["record"])
    installed: dict[str, str] = {}
    changed_paths: list[str] = []
    diff: list[dict[str, str]] = []
    try:
        for item in module.params["artifacts"]:
            outcome = install(module, item, record)
            installed[item["dest"]] = outcome.after
            if outcome.changed:
                changed_paths.append(item["dest"])
            if outcome.before != outcome.after or outcome.faults:
                diff.append(_diff(item["dest"], outcome))
    finally:
        if not module.check_mode:
            record.save()
    result: dict[str, Any] = {
        "changed": bool(changed_paths),
        "changed_paths": changed_paths,
        "installed": installed,
    }
    if diff:
        result["diff"] = diff
    return result


def main() -> None:
    """Read the call, install, answer."""
    options = {
        **{key: {"type": "str", "required": True} for key in ("label", "url", "owner", "group", "mode")},
        "accepted": {"type": "list", "elements": "str", "required": True},
        "dest": {"type": "path", "required": True},
        "unpack": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "artifacts": {"type": "list", "elements": "dict", "options": options, "required": True},
            "ca_path": {"type": "path", "default": "/etc/groundplane/pki/ca.crt"},
            "record": {"type": "path", "default": library.RECORD},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    try:
        module.exit_json(**install_all(module))
    except library.ArtifactError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
