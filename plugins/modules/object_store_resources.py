#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Buckets, users and policies of an object store, converged over one session."""

from __future__ import annotations

DOCUMENTATION = r"""
module: object_store_resources
short_description: Buckets, users and policies of an object store are as declared
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Compares an object store with what is declared and changes what differs, over one kept-alive TLS connection on which
    every request is signed.
  - What contradicts itself, or what the store cannot do, is refused before anything is touched, all reasons at once.
  - Nothing is deleted but what is declared absent by its name, and no bucket that is not empty. What the store has
    beyond that is returned.
  - After a change the store is read again until it shows what is declared.
options:
  servers:
    description: Servers of the store, as V(https://host:port). The first that answers is used.
    type: list
    elements: str
    required: true
  access_key:
    description: Who we are.
    type: str
    required: true
  secret_key:
    description: Our secret. It signs requests and is never sent.
    type: str
    required: true
  ca:
    description: The authority that vouches for the servers.
    type: path
    default: /etc/groundplane/pki/ca.crt
  region:
    description: The region that the store says it is in.
    type: str
    default: us-east-1
  provider:
    description:
      - Whose administration we speak beyond S3. V(minio) has limits of buckets, users and policies.
      - V(s3) is any server, and has buckets alone.
    type: str
    choices: [minio, s3]
    default: minio
  wait_seconds:
    description: How long the store may take until it shows a change.
    type: float
    default: 30
  buckets:
    description: Buckets. Those that are not listed are left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the bucket.
        type: str
        required: true
      versioning:
        description:
          - Whether an object that is written again or deleted stays as an older version.
          - Once enabled it can only be suspended. Without it, it is left as it is.
        type: str
        choices: [enabled, suspended]
      object_lock:
        description:
          - Whether objects can be locked against deletion, which needs and enables versions.
          - It is settled when a bucket is made. Another value than the bucket has is refused.
        type: bool
      retention:
        description: How new objects are locked whose writer says nothing. Without it, it is left as it is.
        type: dict
        suboptions:
          mode:
            description:
              - V(governance) can be lifted by who has the right, V(compliance) by nobody until its time is over.
              - V(none) locks no new objects.
            type: str
            choices: [governance, compliance, none]
            required: true
          days:
            description: For how many days. Either this or O(buckets[].retention.years).
            type: int
          years:
            description: For how many years.
            type: int
      lifecycle:
        description: All rules by which objects go. An empty list for none. Without it, they are left as they are.
        type: list
        elements: dict
        suboptions:
          id:
            description: Name of the rule.
            type: str
            required: true
          prefix:
            description: How the names of the objects begin that it is about. Empty for all.
            type: str
            default: ""
          enabled:
            description: Whether it is in force.
            type: bool
            default: true
          expire_days:
            description: After how many days an object goes, or becomes an older version where there are versions.
            type: int
          expire_markers:
            description: Whether a mark of deletion goes once no version is left below it.
            type: bool
            default: false
          older_days:
            description: After how many days an older version goes.
            type: int
          older_kept:
            description: How many older versions stay all the same.
            type: int
      quota_bytes:
        description: How many bytes the bucket may hold. V(0) for any number. Without it, it is left as it is.
        type: int
      state:
        description: V(absent) deletes the bucket. It is refused while objects or older versions are in it.
        type: str
        choices: [present, absent]
        default: present
  policies:
    description: Policies, which users have by their names.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the policy. Those that the product brings are refused.
        type: str
        required: true
      document:
        description: What it allows and denies, as an IAM policy with C(Version) and C(Statement).
        type: dict
      state:
        description: V(absent) deletes the policy. It is refused while a user has it.
        type: str
        choices: [present, absent]
        default: present
  users:
    description: Users. Those that are not listed are left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the user, which is the access key.
        type: str
        required: true
      secret_key:
        description: Its secret key.
        type: str
      policies:
        description: All policies that it has of its own. Without it, they are left as they are.
        type: list
        elements: str
      state:
        description: V(absent) deletes the user.
        type: str
        choices: [present, absent]
        default: present
attributes:
  check_mode:
    description:
      - Reads the store and tells what would change.
      - Where no server answers, all that is declared is new.
    support: full
  diff_mode:
    description: Shows each attribute that differs. Of secrets only that they differ.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
notes:
  - Needs C(python3-cryptography) on the host where a user of V(minio) gets a secret, and nothing else beyond Python's
    standard library.
  - A store tells nobody a secret. Whether it is still the declared one is found by a request that is signed with it,
    one for each user.
  - MinIO seals the list of its users by Argon2id. With C(cryptography) before 44, which Debian 13 has, each declared
    user is asked for by name, and those that nobody declares are not returned.
"""

EXAMPLES = r"""
- name: The backups have their bucket, and their writer may do what it needs
  groundplane.onprem.object_store_resources:
    servers: [https://store-1.example.org:9000, https://store-2.example.org:9000]
    access_key: groundplane
    secret_key: "{{ object_store_root_password }}"
    buckets:
      - name: backups
        object_lock: true
        retention: {mode: governance, days: 14}
        lifecycle:
          - {id: older, older_days: 30}
          - {id: marks, expire_markers: true}
        quota_bytes: 1099511627776
    policies:
      - name: backups-write
        document:
          Version: "2012-10-17"
          Statement:
            - Effect: Allow
              Action: [s3:ListBucket, s3:GetObject, s3:PutObject]
              Resource: ["arn:aws:s3:::backups", "arn:aws:s3:::backups/*"]
    users:
      - name: pgbackrest
        secret_key: "{{ pgbackrest_s3_secret }}"
        policies: [backups-write]

- name: A bucket is gone that has been emptied
  groundplane.onprem.object_store_resources:
    servers: [https://store-1.example.org:9000]
    access_key: groundplane
    secret_key: "{{ object_store_root_password }}"
    buckets:
      - {name: scratch, state: absent}
"""

RETURN = r"""
changes:
  description: What differed, one line each.
  type: list
  elements: str
  returned: always
  sample: ["bucket backups: versioning", "user pgbackrest: secret_key"]
unmanaged:
  description: What the store has and nobody declares, by kind. Policies that the product brings are left out.
  type: dict
  returned: when a server answered
  contains:
    buckets:
      description: Names of buckets.
      type: list
      elements: str
    policies:
      description: Names of policies.
      type: list
      elements: str
    users:
      description: Names of users. Not returned where the list of them cannot be opened.
      type: list
      elements: str
refusals:
  description: Why nothing was touched, one sentence each.
  type: list
  elements: str
  returned: when something was refused
requests:
  description: How many requests were sent over the one connection.
  type: int
  returned: when a server answered
logins:
  description: How many of them were signed by users to prove their secrets.
  type: int
  returned: when a server answered
"""

from typing import Any

from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import HttpsError
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_admin import (
    PROVIDERS,
    Admin,
    Outcome,
    store_of,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_declared import wanted
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import (
    State,
    Store,
    Wanted,
    plan,
    refusals,
    unmanaged,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import (
    RefusedError,
    answer,
    result,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import (
    Credentials,
    S3Client,
    StoreError,
    UnreachableError,
    server_context,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.unlogged import UnloggedModule

STATE = {"type": "str", "choices": ["present", "absent"], "default": "present"}
RETENTION = {
    "mode": {"type": "str", "choices": ["governance", "compliance", "none"], "required": True},
    "days": {"type": "int"},
    "years": {"type": "int"},
}
RULE = {
    "id": {"type": "str", "required": True},
    "prefix": {"type": "str", "default": ""},
    "enabled": {"type": "bool", "default": True},
    "expire_days": {"type": "int"},
    "expire_markers": {"type": "bool", "default": False},
    "older_days": {"type": "int"},
    "older_kept": {"type": "int"},
}
BUCKET = {
    "name": {"type": "str", "required": True},
    "versioning": {"type": "str", "choices": ["enabled", "suspended"]},
    "object_lock": {"type": "bool"},
    "retention": {"type": "dict", "options": RETENTION},
    "lifecycle": {"type": "list", "elements": "dict", "options": RULE},
    "quota_bytes": {"type": "int"},
    "state": STATE,
}
POLICY = {"name": {"type": "str", "required": True}, "document": {"type": "dict"}, "state": STATE}
USER = {
    "name": {"type": "str", "required": True},
    "secret_key": {"type": "str", "no_log": True},
    "policies": {"type": "list", "elements": "str"},
    "state": STATE,
}


def all_new(store: Store, declared: Wanted) -> Outcome:
    """What a run would do in a store that is only being planned.

    Raises:
        RefusedError: what is declared contradicts itself.
    """
    if reasons := refusals(store, None, declared):
        raise RefusedError(reasons)
    return Outcome(store, plan(State(), declared))


def converge(module: UnloggedModule) -> dict[str, Any]:
    """Converge what the module's parameters declare, and give its result.

    Raises:
        HttpsError: the authority cannot be used.
        RefusedError: nothing was touched.
        StoreError: the store does not answer, or not as it should.
        UnfinishedError: the store did not take a part of it.
    """
    params = module.params
    declared = wanted(params)
    credentials = Credentials(params["access_key"], params["secret_key"])
    try:
        client = S3Client(params["servers"], server_context(params["ca"]), credentials, region=params["region"])
    except (HttpsError, UnreachableError) as error:
        if not module.check_mode:
            raise
        module.warn(f"all objects count as new: {error}")
        return result(all_new(store_of(params["provider"], params["access_key"]), declared).changes)
    admin = Admin(client, params["provider"])
    try:
        outcome = admin.converge(declared, check=module.check_mode, wait_seconds=params["wait_seconds"])
    finally:
        client.close()
    return {
        **result(outcome.changes),
        "unmanaged": unmanaged(outcome.store, outcome.state, declared),
        "requests": client.requests,
        "logins": admin.logins,
    }


def main() -> None:
    """Read the call, converge, answer."""
    module = UnloggedModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "access_key": {"type": "str", "required": True, "no_log": False},
            "secret_key": {"type": "str", "required": True, "no_log": True},
            "ca": {"type": "path", "default": "/etc/groundplane/pki/ca.crt"},
            "region": {"type": "str", "default": "us-east-1"},
            "provider": {"type": "str", "choices": list(PROVIDERS), "default": "minio"},
            "wait_seconds": {"type": "float", "default": 30},
            "buckets": {"type": "list", "elements": "dict", "default": [], "options": BUCKET},
            "policies": {"type": "list", "elements": "dict", "default": [], "options": POLICY},
            "users": {"type": "list", "elements": "dict", "default": [], "options": USER},
        },
        supports_check_mode=True,
    )
    answer(module, converge, HttpsError, StoreError)


if __name__ == "__main__":
    main()
