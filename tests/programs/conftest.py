# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One API and one Kafka for all tests of a run; a namespace and a set, or names of its own, for each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.programs.broker import Broker
from tests.programs.cluster import Cluster, Hands, MissingProgramError

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNT = itertools.count()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running API; a test that needs it fails, and does not skip, where the programs have not been built."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
    except MissingProgramError as error:
        pytest.fail(str(error))
    else:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running Kafka; a test that needs it fails, and does not skip, where it was not built or Java is missing."""
    broker = Broker(tmp_path_factory.mktemp("broker"))
    try:
        broker.start()
    except MissingProgramError as error:
        pytest.fail(str(error))
    else:
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def hands(cluster: Cluster) -> Hands:
    """Somebody else, in a new namespace."""
    hands = Hands(cluster.api(), f"t{next(_COUNT)}")
    hands.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": hands.namespace}})
    return hands
