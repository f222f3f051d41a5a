# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy reloaded again and again under load: no new connection is refused, no session is ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests import results
from tests.faults.drill import RUNS, HostProbe, holders, wait_for

if TYPE_CHECKING:
    from tests.lab import Lab

CLIENT = "router1"
PORT = "5432"
RELOADS = 100
RATE = 200


def test_reloads_lose_nothing(lab: Lab) -> None:
    address = lab.vip()
    balancers = lab.groups["load_balancer"]
    holder = wait_for(lambda: holders(lab, balancers, address), 30, "a holder")[0]
    connections, sessions, failed, ended, rates = 0, 0, [], [], []
    for _ in range(RUNS):
        start = time.time()
        connecting = HostProbe(lab, CLIENT, "postgres", address, PORT, interval=1 / RATE, workers=40)
        holding = HostProbe(lab, CLIENT, "postgres", address, PORT, "1", "10", interval=0.5, workers=25)
        with holding, connecting:
            time.sleep(1)
            lab.run(
                holder,
                f"for i in $(seq {RELOADS}); do systemctl reload haproxy && sleep 0.3 || exit 1; done",
                timeout=300,
            )
            time.sleep(1)
        connections += len(connecting.record.attempts)
        failed += connecting.record.failed
        sessions += len(holding.record.attempts)
        ended += holding.record.failed
        rates.append(len(connecting.record.attempts) / (connecting.record.attempts[-1].sent - start))
        loaded = lab.out(holder, f"journalctl -u haproxy --since @{start:.0f} -o cat | grep -c 'Loading success'")
        assert int(loaded) >= RELOADS
        assert holders(lab, balancers, address) == [holder]
    results.record(
        "haproxy_reload",
        {
            "runs": RUNS,
            "reloads": RELOADS * RUNS,
            "per_second": round(min(rates)),
            "connections": connections,
            "failed": len(failed),
            "sessions": sessions,
            "ended": len(ended),
        },
    )
    assert failed == []
    assert ended == []
    assert min(rates) > RATE * 0.9
