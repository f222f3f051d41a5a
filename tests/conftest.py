# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures that integration tests, fault drills and benches share."""

from __future__ import annotations

import pytest

from tests.kubernetes import Cluster
from tests.lab import Lab


def pytest_configure(config: pytest.Config) -> None:
    """Tests with this marker run before the nodes are put to sleep (tests/run, tests/sleep)."""
    config.addinivalue_line("markers", "nodes: needs the nodes of Kubernetes, awake")


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab of this clone; a test that needs it fails, and does not skip, where it is not up."""
    lab = Lab()
    if not (lab.directory / "ready").exists():
        pytest.fail("The lab is not up: run `make lab` first.")
    return lab


@pytest.fixture(scope="session")
def cluster(lab: Lab) -> Cluster:
    """The Kubernetes of the lab."""
    return Cluster(lab)
