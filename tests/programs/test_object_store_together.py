# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What does not roll, on real servers: a further pool and another parity come when all start at once."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Health
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import (
    Credentials,
    Request,
    S3Client,
    server_context,
)

from tests.programs.cluster import free_port, running
from tests.programs.store import REGION, START_SECONDS, Quartet

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def quartet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quartet]:
    """Four servers, and more that a test adds."""
    with running(Quartet(tmp_path_factory.mktemp("together"))) as quartet:
        yield quartet


def client(quartet: Quartet, name: str) -> S3Client:
    told = yaml.safe_load((quartet.directory / f"{name}.yml").read_text())
    credentials = Credentials(told["rootUser"], told["rootPassword"])
    context = server_context(str(quartet.authority.path))
    return S3Client([f"https://{quartet.address}:{quartet.ports[name]}"], context, credentials, region=REGION)


def test_a_store_grows_by_a_pool_when_all_servers_start_at_once(quartet: Quartet) -> None:
    first = client(quartet, "data1")
    first.ask(Request("PUT", "/before"))
    body = b"what was there before" * 20000
    first.ask(Request("PUT", "/before/object", body=body))
    first.close()
    # As the role writes it: the second pool's hosts behind the first one's, on all servers.
    old = yaml.safe_load((quartet.directory / "data1.yml").read_text())
    newcomers = {f"data{number}": free_port() for number in (5, 6, 7, 8)}
    drives = [f"https://{quartet.address}:{port}{quartet.directory}/{name}" for name, port in newcomers.items()]
    for name in quartet.ports:
        quartet.send(name, signal.SIGTERM)
    quartet.ports.update(newcomers)
    for name, port in quartet.ports.items():
        told = {**old, "address": f"{quartet.address}:{port}", "pools": [*old["pools"], {"args": drives}]}
        path = quartet.directory / f"{name}.yml"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(told))
    for name in quartet.ports:
        quartet.launch(name, MINIO_STORAGE_CLASS_STANDARD="EC:1")
    deadline = time.monotonic() + START_SECONDS
    while any(server.health is not Health.SERVING for server in quartet.servers().read().members):
        assert time.monotonic() < deadline, "".join(quartet.log(name) for name in quartet.ports)
        time.sleep(0.3)
    # What was written before is read by who came later.
    last = client(quartet, "data8")
    assert last.ask(Request("GET", "/before/object")).body == body
    last.ask(Request("PUT", "/before/another", body=body))
    last.close()
