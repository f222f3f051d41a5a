#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reconciles the dynamic configuration of a Patroni cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: patroni_config
short_description: The configuration that all members of a Patroni cluster share is as declared
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Patroni reads C(bootstrap.dcs) once, when a cluster is made. This module keeps the dynamic configuration as declared
    ever after, by one C(PATCH /config), and only when something differs.
  - It says which members have parameters that wait for a restart of PostgreSQL, so that
    M(groundplane.onprem.gate) can be asked to do it.
  - Runs on any host that may speak with the REST API; once for a cluster (C(run_once)) is enough.
options:
  rest:
    description: URLs of the REST API of all members. The first one that answers is asked.
    type: list
    elements: str
    required: true
  config:
    description:
      - The dynamic configuration. It is merged into the live one, and a key that is set to null is removed.
      - Numbers and texts that mean the same are the same, such as C(100) and C("100").
    type: dict
    required: true
  exact:
    description: Remove what is live and not declared, instead of only naming it in RV(undeclared).
    type: bool
    default: false
  cluster:
    description: Name of the cluster, for messages.
    type: str
    default: patroni
  ca:
    description: File with the trust anchor.
    type: path
    default: /etc/groundplane/pki/ca.crt
  cert:
    description: File with this host's certificate.
    type: path
    required: true
  key:
    description: File with its key.
    type: path
    required: true
  settle:
    description:
      - Seconds within which the members take a change, so that RV(pending_restart) is true afterwards; some rounds of
        Patroni's C(loop_wait). A member that runs and has not taken it by then is named in a warning.
    type: float
    default: 30
attributes:
  check_mode:
    description: Compares with the live configuration and changes nothing. Where no member answers yet, all is new.
    support: full
  diff_mode:
    description: Shows the whole configuration before and after.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: The configuration that all members share is as declared
  groundplane.onprem.patroni_config:
    rest: ["https://10.0.3.11:8008", "https://10.0.3.12:8008", "https://10.0.3.13:8008"]
    cert: /etc/postgresql/tls/postgres.crt
    key: /etc/postgresql/tls/postgres.key
    config:
      ttl: 30
      synchronous_mode: quorum
      postgresql:
        use_pg_rewind: true
        parameters:
          max_connections: 200
          wal_keep_size: null
  run_once: true
  register: __postgres_shared
"""

RETURN = r"""
pending_restart:
  description: Members with parameters that wait for a restart of PostgreSQL.
  type: list
  elements: str
  returned: success
undeclared:
  description: Dotted paths that are live, not declared, and were left.
  type: list
  elements: str
  returned: success
patch:
  description: What was sent.
  type: dict
  returned: success
"""

import json
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls, HttpsError
from ansible_collections.groundplane.onprem.plugins.module_utils.patroni_cluster import PatroniCluster, PatroniError
from ansible_collections.groundplane.onprem.plugins.module_utils.patroni_dynamic import plan

POLL = 0.2
"""Seconds between two looks."""

ROUNDS = 2
"""Reads of the store after which a member has taken a change: it reads, acts, takes what is new, and reads again."""


def converge(module: AnsibleModule, patroni: PatroniCluster) -> dict[str, Any]:
    """Compare, send, wait until the members know what they have to restart for.

    Raises:
        PatroniError: nobody answers, or Patroni refused.
    """
    params = module.params
    live = patroni.ask("GET", "/config").json()
    steps = plan(live, params["config"], exact=params["exact"])
    result: dict[str, Any] = {
        "changed": bool(steps.patch),
        "patch": steps.patch,
        "undeclared": list(steps.undeclared),
    }
    if steps.patch:
        result["diff"] = {"before": _text(live), "after": _text(steps.after)}
    if steps.patch and not module.check_mode:
        patroni.ask("PATCH", "/config", steps.patch)
        found = patroni.ask("GET", "/config").json()
        left = plan(found, params["config"], exact=params["exact"]).patch
        if left:
            raise PatroniError(f"Patroni cluster {params['cluster']} does not keep {', '.join(sorted(left))}")
        if "postgresql" in steps.patch:
            for url in wait_until_taken(patroni, params["settle"]):
                module.warn(
                    f"Patroni cluster {params['cluster']}: {url} has not taken the new configuration after "
                    f"{params['settle']:g} s; whether its PostgreSQL needs a restart is not known"
                )
    result["pending_restart"] = sorted(member.name for member in patroni.read().members if member.pending_restart)
    return result


def wait_until_taken(patroni: PatroniCluster, settle: float) -> list[str]:
    """Wait until the members have read the configuration and acted on it.

    A change wakes all members, but one that has just lost its connection to the store sees it seconds later. That a
    member needs no restart says nothing before it has looked, and that it has looked it tells by when it last read.

    Args:
        patroni: the cluster, whose configuration was changed a moment ago.
        settle: seconds to wait.

    Returns:
        The REST APIs of members that run and have not taken it by then.
    """
    deadline = time.monotonic() + settle
    reads: dict[str, set[int]] = {}
    while True:
        for url, seen in patroni.last_seen().items():
            reads.setdefault(url, set()).update({seen} - {0})
        # The first read that a member tells of may be one from before the change.
        behind = [url for url, times in reads.items() if len(times) <= ROUNDS]
        if not behind or time.monotonic() > deadline:
            return behind
        time.sleep(POLL)


def _text(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Read the call, converge, answer."""
    module = AnsibleModule(
        argument_spec={
            "rest": {"type": "list", "elements": "str", "required": True},
            "config": {"type": "dict", "required": True},
            "exact": {"type": "bool", "default": False},
            "cluster": {"type": "str", "default": "patroni"},
            "ca": {"type": "path", "default": "/etc/groundplane/pki/ca.crt"},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "settle": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    try:
        params = module.params
        tls = ClientTls(params["ca"], params["cert"], params["key"])
        module.exit_json(**converge(module, PatroniCluster(params["cluster"], params["rest"], tls)))
    except (HttpsError, PatroniError) as error:
        if not module.check_mode:
            module.fail_json(msg=f"patroni_config: {error}")
        # A cluster that is only being planned has no configuration yet.
        module.exit_json(changed=True, pending_restart=[], undeclared=[], patch=module.params["config"])


if __name__ == "__main__":
    main()
