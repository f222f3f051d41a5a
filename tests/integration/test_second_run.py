# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second run changes nothing, a check run tells the truth, and drift by hand is found and repaired exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import results
from tests.bench.site_cost import PROFILED, profiled, record_costs
from tests.canaries import Watched, watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab

PATRONICTL = "patronictl -c /etc/patroni/config.yml"
MANAGED_FILE = "/etc/haproxy/haproxy.cfg"
EDIT = "# edited by hand"
MORE_WANTED = 60
"""Seconds that the nodes should add, at most, to a run which changes nothing (docs/figures.md says what was seen)."""
MORE_ALLOWED = 120
"""Seconds that they may add before the build fails: what was seen on a busy machine, and some."""
EDITED = ("--limit", "load_balancer:postgres:object_store")
"""The groups in which something is edited by hand: the check run before has shown that nothing else would change."""


@pytest.fixture(scope="module")
def second(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run of the whole site that has nothing to do, as talkative as can be, while every process is looked at."""
    log = tmp_path_factory.mktemp("second") / "ansible.log"
    return watched(lab, log, "--limit", "all", environment=PROFILED)


@pytest.mark.nodes
def test_second_run_changes_nothing_and_keeps_its_budget(second: Watched) -> None:
    record_costs("second", second.play)
    assert second.play.changed == {}, "\n".join(second.play.changes)


@pytest.mark.nodes
def test_second_run_shows_no_secret(second: Watched) -> None:
    second.assert_secret()


@pytest.mark.nodes
def test_nodes_add_little_to_a_run_that_changes_nothing(lab: Lab) -> None:
    """The whole site, and the same without its nodes while they are awake beside it: what Kubernetes adds to a run."""
    whole, seconds = profiled(lab, "second_quiet", "--limit", "all")
    rest, less = profiled(lab, "second_without_nodes", "--limit", "all:!kubernetes")
    assert whole.changed == {}, whole.output
    assert rest.changed == {}, rest.output
    more = seconds - less
    results.record(
        "second_run_of_nodes",
        {
            "seconds": round(seconds, 1),
            "hosts": len(whole.recap),
            "without_nodes_s": round(less, 1),
            "more_s": round(more, 1),
            "more_s_a_node": round(more / len(lab.groups["kubernetes"]), 1),
            "wanted_more_s": MORE_WANTED,
            "allowed_more_s": MORE_ALLOWED,
        },
    )
    assert more <= MORE_ALLOWED


@pytest.mark.nodes
def test_check_on_the_live_nodes_predicts_nothing(lab: Lab) -> None:
    """Of the other hosts the drift test below asks the same, once the nodes sleep."""
    play, _seconds = profiled(lab, "check", "--check", "--diff", "--limit", "kubernetes")
    assert play.changed == {}, play.output


@pytest.fixture
def drift(lab: Lab) -> Iterator[None]:
    """One managed file and one parameter of Patroni's dynamic configuration are edited by hand."""
    lab.run("lb1", f"echo '{EDIT}' >> {MANAGED_FILE}")
    lab.run("data1", f"{PATRONICTL} edit-config --force --quiet -s loop_wait=6")
    yield
    if EDIT in lab.out("lb1", f"cat {MANAGED_FILE}") or "loop_wait: 6" in lab.out("data1", f"{PATRONICTL} show-config"):
        lab.play("site", *EDITED)


@pytest.mark.usefixtures("drift")
def test_drift_by_hand_is_found_exactly_and_repaired(lab: Lab) -> None:
    check = lab.play("site", "--check", "--diff", "--limit", "all:!kubernetes")
    assert check.returncode == 0, check.output[-4000:]
    foretold = check.changed
    changed = dict(foretold)
    assert changed.pop("lb1") == 1, check.output
    assert sum(changed.values()) == 1, check.output
    assert set(changed) <= set(lab.groups["postgres"]), check.output
    assert f"-{EDIT}" in check.output
    assert "+    configuration: as on disk (reloaded)" in check.output, "the reload that follows the file"
    assert "loop_wait" in check.output
    assert "loop_wait: 6" in lab.out("data1", f"{PATRONICTL} show-config"), "a check run wrote"
    assert EDIT in lab.out("lb1", f"tail -1 {MANAGED_FILE}"), "a check run wrote"

    repaired = lab.play("site", *EDITED)
    assert repaired.returncode == 0, repaired.output[-4000:]
    assert EDIT not in lab.out("lb1", f"cat {MANAGED_FILE}")
    assert "loop_wait: 6" not in lab.out("data1", f"{PATRONICTL} show-config")
    assert repaired.changed == foretold, repaired.output
