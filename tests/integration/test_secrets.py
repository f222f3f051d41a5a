# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No secret of the site is seen anywhere it does not belong, not even by a failing run at -vvvv.

Each secret of the lab is a random value of its own, so each is a canary: it is searched by its value.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab import Lab

NODES = "kubernetes"
PARTS = [pytest.param(NODES, marks=pytest.mark.nodes), f"all:!{NODES}"]
"""Parts of the site that are looked at one after the other: the nodes sleep while the rest is."""

# Reads canaries from standard input up to an empty line, then looks at every process each 20 ms until told to end. One
# that has been looked at for a second is looked at once a second: what it was started with does not change any more.
SAMPLER = r"""
import json, os, select, sys
canaries = []
for line in sys.stdin.buffer:
    if not line.strip(): break
    canaries.append(line.strip())
print("ready", flush=True)
hits, seen, rounds = set(), {}, 0
while True:
    rounds += 1
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    seen = {pid: seen.get(pid, -1) + 1 for pid in pids}
    for pid in pids:
        if seen[pid] > 50 and (rounds + int(pid)) % 50: continue
        for name in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file: text = file.read()
            except OSError: continue
            for number, canary in enumerate(canaries):
                if canary in text: hits.add((number, name, pid, text[:60].decode(errors="replace")))
    if select.select([sys.stdin], [], [], 0.02)[0]: break
print(json.dumps({"rounds": rounds, "hits": sorted(map(str, hits))}), flush=True)
"""
SEARCH = r"""
canaries=$(mktemp -p /dev/shm); trap 'rm -f "$canaries"' EXIT; cat > "$canaries"
echo journal $(journalctl --no-pager -o export | grep -a -c -F -f "$canaries")
echo tmp $(grep -r -a -l -F -f "$canaries" /tmp /var/tmp 2>/dev/null | wc -l)
echo logs $(grep -r -a -l -F -f "$canaries" /var/log --exclude-dir=journal 2>/dev/null | wc -l)
echo home $(grep -r -a -l -F -f "$canaries" /home /root 2>/dev/null | wc -l)
find / -xdev -type f -perm -004 -size -1M -not -path '/proc/*' -newer /etc/hostname -print0 2>/dev/null \
  | xargs -0 -r grep -a -l -F -f "$canaries" 2>/dev/null | sed 's/^/readable /'
"""


@pytest.fixture(scope="module")
def canaries(lab: Lab) -> dict[str, str]:
    """Name to value of every secret of the lab."""
    found = {path.name: path.read_text().strip() for path in (lab.directory / "secrets").iterdir()}
    assert found, "the lab has no secrets"
    assert len(set(found.values())) == len(found)
    return found


@contextmanager
def sampled(canaries: dict[str, str]) -> Iterator[list[str]]:
    """Watch argv and environment of every process of this machine and of the lab's hosts; hits are known at the end."""
    hits: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", SAMPLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watcher:
        if watcher.stdin is None or watcher.stdout is None:
            raise RuntimeError("the sampler has no pipes")
        watcher.stdin.write("".join(f"{value}\n" for value in canaries.values()) + "\n")
        watcher.stdin.flush()
        assert watcher.stdout.readline() == "ready\n"
        try:
            yield hits
        finally:
            answer = json.loads(watcher.communicate("\n", timeout=30)[0])
    assert answer["rounds"] > 10, "the sampler hardly ran"
    hits += answer["hits"]


@pytest.mark.parametrize("host", ["data1", pytest.param("cp1", marks=pytest.mark.nodes)])
def test_sampler_sees_a_secret_in_the_argv_of_a_host(lab: Lab, host: str) -> None:
    with sampled({"planted": "canary-of-the-sampler-itself"}) as hits:
        # By standard input: in the argv of the host alone, and not in that of the client that starts it from here.
        lab.run(host, "sh", stdin="sh -c 'sleep 1; : canary-of-the-sampler-itself'\n")
    assert hits


@pytest.mark.parametrize("pattern", PARTS)
def test_run_shows_no_secret(lab: Lab, canaries: dict[str, str], tmp_path: Path, pattern: str) -> None:
    log = tmp_path / "ansible.log"
    # The second run fails on purpose, in the task that handles passwords: no such template database exists.
    broken = json.dumps({"postgres_databases": [{"name": "canary", "template": "no_such_template"}]})
    output = ""
    runs = [["--limit", pattern], *([["--limit", "postgres", "-e", broken]] if pattern != NODES else [])]
    with sampled(canaries) as hits:
        for extra in runs:
            done = lab.play("site", "-vvvv", "--diff", *extra, timeout=900, environment={"ANSIBLE_LOG_PATH": str(log)})
            output += done.output
            assert (done.returncode != 0) == ("-e" in extra), output[-3000:]
    shown = [name for name, value in canaries.items() if value in output or value in log.read_text()]
    assert shown == []
    assert "PRIVATE KEY-----" not in output
    assert hits == []


@pytest.mark.parametrize("pattern", PARTS)
def test_no_secret_rests_where_it_does_not_belong(lab: Lab, canaries: dict[str, str], pattern: str) -> None:
    text = "".join(f"{value}\n" for value in canaries.values())
    for host in lab.matching(pattern):
        answer = lab.run(host, SEARCH, stdin=text, timeout=120).stdout.splitlines()
        assert answer == ["journal 0", "tmp 0", "logs 0", "home 0"], f"{host}: {answer}"
    facts = lab.directory.parent / ".cache" / "facts"
    cached = [path.name for path in facts.rglob("*") if path.is_file()] if facts.exists() else []
    for name in cached:
        assert not any(value in (facts / name).read_text() for value in canaries.values()), name
