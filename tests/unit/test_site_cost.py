# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench of a site's run counts what the run's output says."""

from __future__ import annotations

from tests.bench.site_cost import costs

OUTPUT = """\
TASK [groundplane.onprem.etcd : Validating arguments against arg spec 'main' - x] ***
Tuesday 24 November 2026  09:00:00 +0000 (0:00:00.500)       0:00:01.000 ******
ok: [data1]
ok: [data2]

TASK [groundplane.onprem.etcd : The files are as declared] *********************
Tuesday 24 November 2026  09:00:01 +0000 (0:00:00.500)       0:00:01.500 ******
ok: [data1]
changed: [data2]

TASK [What is up, and where] ***************************************************
Tuesday 24 November 2026  09:00:03 +0000 (0:00:02.000)       0:00:03.500 ******
ok: [data1 -> bastion1] => (item=x)
skipping: [data2]
===============================================================================
"""


def test_costs_are_counted_by_role_and_host() -> None:
    found = costs(OUTPUT.replace("******\n", "****** \n"))  # a blank ends the line, as Ansible prints it
    assert dict(found["etcd"].tasks) == {"data1": 1, "data2": 1}
    assert found["etcd"].seconds == 2.5
    assert found["etcd"].seconds_a_host == 1.25
    assert dict(found["playbook"].tasks) == {"data1": 1}
    assert found["playbook"].tasks_a_host == 1
