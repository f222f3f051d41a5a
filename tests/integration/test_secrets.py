# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No secret of the site is seen anywhere it does not belong, not even by a failing run at -vvvv.

That a run of the whole site shows none is a test of test_second_run.py, which makes that run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.canaries import canaries_of, sampled, watched

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Lab

NODES = "kubernetes"
PARTS = [pytest.param(NODES, marks=pytest.mark.nodes), f"all:!{NODES}"]
"""Parts of the site that are looked at one after the other: the nodes sleep while the rest is."""

SEARCH = r"""
canaries=$(mktemp -p /dev/shm); trap 'rm -f "$canaries"' EXIT; cat > "$canaries"
echo journal $(journalctl --no-pager -o export | grep -a -c -F -f "$canaries")
echo tmp $(grep -r -a -l -F -f "$canaries" /tmp /var/tmp 2>/dev/null | wc -l)
echo logs $(grep -r -a -l -F -f "$canaries" /var/log --exclude-dir=journal 2>/dev/null | wc -l)
echo home $(grep -r -a -l -F -f "$canaries" /home /root 2>/dev/null | wc -l)
find / -xdev -type f -perm -004 -size -1M -not -path '/proc/*' -newer /etc/hostname -print0 2>/dev/null \
  | xargs -0 -r grep -a -l -F -f "$canaries" 2>/dev/null | sed 's/^/readable /'
"""


@pytest.mark.parametrize("host", ["data1", pytest.param("cp1", marks=pytest.mark.nodes)])
def test_sampler_sees_a_secret_in_the_argv_of_a_host(lab: Lab, host: str) -> None:
    with sampled({"planted": "canary-of-the-sampler-itself"}) as hits:
        # By standard input: in the argv of the host alone, and not in that of the client that starts it from here.
        lab.run(host, "sh", stdin="sh -c 'sleep 1; : canary-of-the-sampler-itself'\n")
    assert hits


def test_a_run_that_fails_shows_no_secret(lab: Lab, tmp_path: Path) -> None:
    """The run fails on purpose, in the task that handles passwords: nobody has that name."""
    broken = json.dumps({"postgres_databases": [{"name": "canary", "owner": "no_such_owner"}]})
    run = watched(lab, tmp_path / "ansible.log", "--limit", "postgres:object_store", "-e", broken)
    assert run.play.returncode != 0, run.play.output[-3000:]
    assert "there is no role" in run.play.output
    run.assert_secret()


@pytest.mark.parametrize("pattern", PARTS)
def test_no_secret_rests_where_it_does_not_belong(lab: Lab, pattern: str) -> None:
    canaries = canaries_of(lab)
    text = "".join(f"{value}\n" for value in canaries.values())
    for host in lab.matching(pattern):
        answer = lab.run(host, SEARCH, stdin=text, timeout=120).stdout.splitlines()
        assert answer == ["journal 0", "tmp 0", "logs 0", "home 0"], f"{host}: {answer}"
    facts = lab.directory.parent / ".cache" / "facts"
    cached = [path.name for path in facts.rglob("*") if path.is_file()] if facts.exists() else []
    for name in cached:
        assert not any(value in (facts / name).read_text() for value in canaries.values()), name
