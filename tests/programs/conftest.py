# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One API and one Kafka for all tests of a run; a namespace and a set, or names of its own, for each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.programs.broker import Broker
from tests.programs.cluster import Cluster, Hands, running

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNT = itertools.count()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running API; a test that needs it fails, and does not skip, where the programs have not been built."""
    with running(Cluster(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running Kafka; a test that needs it fails, and does not skip, where it was not built or Java is missing."""
    with running(Broker(tmp_path_factory.mktemp("broker"))) as broker:
        yield broker


@pytest.fixture
def hands(cluster: Cluster) -> Hands:
    """Somebody else, in a new namespace."""
    hands = Hands(cluster.api(), f"t{next(_COUNT)}")
    hands.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": hands.namespace}})
    return hands
