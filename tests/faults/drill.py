# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every fault drill needs: something that asks and remembers, ways to break hosts, a place for figures.

    with Probe(insert_a_row, interval=0.05) as writer:        # here: any callable; an exception is a failed attempt
        with frozen(lab, "data1"):
            writer.watch(30)
    writer.record.longest_gap()                               # seconds without an acknowledgement

    with HostProbe(lab, "router1", "postgres", "10.77.2.100", "5432", interval=0.02, workers=50) as client:
        client.watch(5)                                       # the same inside the site

A probe with one worker is a client that waits for its answers; with many it keeps its pace, whatever the answers do.
The probe needs only the standard library: a host runs this same file, from standard input, and keeps nothing of it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shlex
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.lab import Lab

# ------------------------------------------------------------------------------------------------------------ attempts


@dataclass(frozen=True, slots=True)
class Attempt:
    """One question. `sent` and `acked` are seconds since the epoch; `acked` is None when there was no good answer."""

    id: int
    sent: float
    acked: float | None
    error: str = ""
    answer: str = ""

    @property
    def latency(self) -> float | None:
        """Seconds from question to answer."""
        return None if self.acked is None else self.acked - self.sent


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the writes."""

    acknowledged: int
    failed: int
    lost: int
    """Acknowledged, and not there."""
    ghosts: int
    """Not acknowledged, and there."""
    gap: float
    """The longest time without an acknowledgement, in seconds."""


@dataclass
class Record:
    """The attempts of one probe, in the order in which they ended."""

    attempts: list[Attempt] = field(default_factory=list)
    ended: float | None = None

    @property
    def acknowledged(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.acked is not None]

    @property
    def failed(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.acked is None]

    def longest_gap(self, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest time without an acknowledgement, in seconds; infinite when there was none at all.

        An outage that lasts to the end of the record counts up to there.

        Args:
            since: only what happened after this time.
            until: only what happened before it.
        """
        times = sorted(a.acked for a in self.attempts if a.acked is not None and since <= a.acked <= until)
        if not times:
            return float("inf")
        if self.ended is not None:
            times.append(max(times[-1], min(self.ended, until)))
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def gaps(self, longer_than: float) -> list[tuple[str, float]]:
        """Times without an acknowledgement that are longer than that: when each began, UTC, and its seconds."""
        times = sorted(a.acked for a in self.attempts if a.acked is not None)
        return [
            (time.strftime("%H:%M:%S", time.gmtime(earlier)), round(later - earlier, 2))
            for earlier, later in itertools.pairwise(times)
            if later - earlier > longer_than
        ]

    def outcome(self, there: set[int]) -> Outcome:
        """What became of the attempts, which were writes.

        Args:
            there: those that were found afterwards, by their numbers.
        """
        acknowledged = {attempt.id for attempt in self.acknowledged}
        failed = {attempt.id for attempt in self.failed}
        return Outcome(
            acknowledged=len(acknowledged),
            failed=len(failed),
            lost=len(acknowledged - there),
            ghosts=len(failed & there),
            gap=round(self.longest_gap(), 3),
        )

    def write(self, path: Path) -> None:
        """Keep the attempts, one JSON object a line."""
        path.write_text("".join(f"{json.dumps(asdict(attempt))}\n" for attempt in self.attempts), encoding="utf-8")


class _Clock:
    """Wall-clock times that no step of the clock can bend during a drill."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._offset


class Probe:
    """Calls something each `interval` seconds and records every attempt."""

    def __init__(
        self,
        action: Callable[[int], object],
        interval: float,
        *,
        workers: int = 1,
        on_attempt: Callable[[Attempt], None] | None = None,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            action: gets the attempt's id; returns when acknowledged, raises when not. A text is kept as the answer.
            interval: seconds from one attempt to the next. A busy worker misses its turns.
            workers: attempts that may be under way at once.
            on_attempt: told of each attempt as it ends.
        """
        self.record = Record()
        self._action = action
        self._interval = interval
        self._on_attempt = on_attempt
        self._clock = _Clock()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._turns: queue.Queue[int | None] = queue.Queue(maxsize=1 if workers == 1 else workers)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        self._threads.append(threading.Thread(target=self._pace, daemon=True))

    def start(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> Record:
        """Let the attempts under way end, and give the record."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self.record.ended = self._clock()
        return self.record

    def watch(self, seconds: float) -> None:
        """Let it run."""
        time.sleep(seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _pace(self) -> None:
        turn, due = 0, time.monotonic()
        while not self._stopping.is_set():
            with contextlib.suppress(queue.Full):
                self._turns.put_nowait(turn)
                turn += 1
            due += self._interval
            now = time.monotonic()
            if due < now - 1:  # this process stood still: go on from now, do not catch up
                due = now
            self._stopping.wait(max(0.0, due - now))
        for _ in range(len(self._threads) - 1):
            self._turns.put(None)

    def _work(self) -> None:
        while (turn := self._turns.get()) is not None:
            sent = self._clock()
            try:
                answer = self._action(turn)
                attempt = Attempt(turn, sent, self._clock(), answer=answer if isinstance(answer, str) else "")
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is what is being measured
                attempt = Attempt(turn, sent, None, f"{type(error).__name__}: {error}")
            with self._lock:
                self.record.attempts.append(attempt)
                if self._on_attempt:
                    self._on_attempt(attempt)


# ------------------------------------------------------------------------------- actions that a host can do by itself

SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # PostgreSQL, "Message Formats": SSLRequest; the answer is S or N


def postgres(address: str, port: str, timeout: str = "1", hold: str = "0") -> Callable[[int], None]:
    """Open a connection and let the database, or its pooler, say that it speaks TLS: the whole way, without a secret.

    Args:
        address: where.
        port: where.
        timeout: seconds for each step.
        hold: seconds for which the session must then stay open.
    """

    def ask(_: int) -> None:
        with socket.create_connection((address, int(port)), float(timeout)) as connection:
            connection.sendall(SSL_REQUEST)
            answer = connection.recv(1)
            if answer != b"S":
                raise ConnectionError(f"answered {answer!r}")
            if float(hold):
                connection.settimeout(float(hold))
                with contextlib.suppress(TimeoutError):
                    raise ConnectionError(f"session ended with {connection.recv(1)!r}")

    return ask


def tcp(address: str, port: str, timeout: str = "1") -> Callable[[int], None]:
    """Open a connection."""

    def ask(_: int) -> None:
        socket.create_connection((address, int(port)), float(timeout)).close()

    return ask


ACTIONS: dict[str, Callable[..., Callable[[int], object]]] = {"postgres": postgres, "tcp": tcp}


def serve(interval: str, workers: str, action: str, *arguments: str) -> None:
    """On a host: probe until standard input ends, writing each attempt to standard output."""

    def tell(attempt: Attempt) -> None:
        print(json.dumps(asdict(attempt)), flush=True)

    probe = Probe(ACTIONS[action](*arguments), float(interval), workers=int(workers), on_attempt=tell)
    with probe:
        print(json.dumps({"ready": True}), flush=True)
        sys.stdin.read()
    print(json.dumps({"ended": probe.record.ended}), flush=True)


LOADER = """import sys, types
for name, size in ("tests.faults.drill", {drill}), ("further", {further}):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(sys.stdin.read(size), name, "exec"), module.__dict__)
sys.modules["tests.faults.drill"].serve(*sys.argv[1:])"""
"""What a host's Python is told on its command line; the rest comes by standard input."""


class HostProbe:
    """A probe on a host of the site, with the interface of `Probe`."""

    def __init__(
        self,
        lab: Lab,
        host: str,
        action: str,
        *arguments: str,
        interval: float,
        workers: int = 1,
        prefix: Sequence[str] = (),
        program: Path | None = None,
        secret: str = "",
    ) -> None:
        """Prepare one of `ACTIONS` with its arguments.

        Args:
            lab: where the host is.
            host: where to run it.
            action: its name.
            arguments: what it is made with.
            interval: see `Probe`.
            workers: see `Probe`.
            prefix: words before the command, for another user than that of SSH.
            program: a further file that adds to `ACTIONS`. It finds this one as `tests.faults.drill`.
            secret: lines that the action reads from standard input while it is made.
        """
        self.record = Record()
        self._host = host
        self._ssh = ["ssh", "-F", str(lab.directory / "ssh_config"), "-o", "BatchMode=yes", host]
        self._environment = lab.environment
        self._prefix = prefix
        self._program = program
        self._secret = secret
        self._arguments = [str(interval), str(workers), action, *arguments]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._ready = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        program = Path(__file__).read_text(encoding="utf-8")
        further = self._program.read_text(encoding="utf-8") if self._program else ""
        loader = LOADER.format(drill=len(program), further=len(further))
        command = shlex.join([*self._prefix, "python3", "-c", loader, *self._arguments])
        self._process = subprocess.Popen(
            [*self._ssh, command], env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin
        self._process.stdin.write(program + further + self._secret)
        self._process.stdin.flush()
        self._reader.start()
        if not self._ready.wait(20):
            self.stop()
            raise RuntimeError(f"no probe on {self._host}")
        return self

    def stop(self) -> Record:
        assert self._process
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reader.join(60)
        self._process.wait(10)
        return self.record

    def watch(self, seconds: float) -> None:
        time.sleep(seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process
        assert self._process.stdout
        for line in self._process.stdout:
            told = json.loads(line)
            if "ready" in told:
                self._ready.set()
            elif "ended" in told:
                self.record.ended = told["ended"]
            else:
                self.record.attempts.append(Attempt(**told))


# ---------------------------------------------------------------------------------------------------- hosts and faults


@contextlib.contextmanager
def frozen(lab: Lab, host: str) -> Iterator[None]:
    """All processes of a host stand still, as when its hypervisor stops scheduling it; its kernel still answers."""
    lab.engine("pause", host)
    try:
        yield
    finally:
        lab.engine("unpause", host)


@contextlib.contextmanager
def standing_still(lab: Lab, host: str, program: str, seconds: int = 60) -> Iterator[None]:
    """The oldest process of a program is stopped; its kernel still takes connections for it.

    Args:
        lab: where.
        host: of the process.
        program: its name, as the kernel has it.
        seconds: after which it goes on although this test was killed. The timer goes with the fault: it would wake what
            the next drill stops.
    """
    pid = lab.out(host, f"pgrep -xo {program}")
    timer = f"groundplane-drill-{pid}"
    wake = f"systemd-run --quiet --collect --unit={timer} --on-active={seconds} kill -CONT {pid}"
    lab.run(host, f"{wake} && kill -STOP {pid}")
    try:
        yield
    finally:
        lab.run(host, f"kill -CONT {pid}; systemctl stop {timer}.timer")


HEALING = "groundplane-drill-heal"
"""The timer that takes a fault back although its test was killed."""


@contextlib.contextmanager
def down(lab: Lab, hosts: Sequence[str], unit: str, seconds: int = 240) -> Iterator[None]:
    """A unit of some hosts is killed at once, as by a crash, and stays down.

    Args:
        lab: where.
        hosts: which.
        unit: its name.
        seconds: after which it is started although this test was killed.
    """
    timer = f"systemd-run --quiet --collect --unit={HEALING} --on-active={seconds} systemctl start {unit}"
    # systemd would start it anew after a second: that is what the stop prevents, which has nothing left to stop.
    crash = f"{timer} && systemctl kill --signal KILL {unit}; systemctl stop {unit}"
    with ThreadPoolExecutor(len(hosts)) as pool:
        try:
            list(pool.map(lambda host: lab.run(host, crash), hosts))
            yield
        finally:
            heal = f"systemctl stop {HEALING}.timer; systemctl start {unit}"
            list(pool.map(lambda host: lab.run(host, heal), hosts))


@contextlib.contextmanager
def stopped(lab: Lab, host: str, unit: str, seconds: int = 90) -> Iterator[None]:
    """The process of a unit stands still; its kernel still takes connections for it.

    Args:
        lab: where.
        host: which.
        unit: its name.
        seconds: after which it goes on although this test was killed.
    """
    wake = f"systemctl kill --signal CONT --kill-whom main {unit}"
    timer = f"systemd-run --quiet --collect --unit={HEALING} --on-active={seconds} {wake}"
    lab.run(host, f"{timer} && systemctl kill --signal STOP --kill-whom main {unit}")
    try:
        yield
    finally:
        lab.run(host, f"systemctl stop {HEALING}.timer; {wake}")


def holders(lab: Lab, hosts: Sequence[str], address: str) -> list[str]:
    """Which hosts have an address on an interface now. A frozen host cannot be asked."""
    return [host for host in hosts if lab.out(host, f"ip -o address show to {address}/32")]


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait until a condition holds, and give what it returned.

    Raises:
        AssertionError: it did not in that time.
    """
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(0.2)
    return result


class HostClient:
    """A client on a host of the site, which takes its probe with it."""

    ANSWERED = 20
    """Good answers after which it counts as started."""
    SAYS = "requests are answered"
    """What is waited for then."""

    _probe: HostProbe
    """Whoever inherits makes it."""

    @property
    def record(self) -> Record:
        """What became of each request."""
        return self._probe.record

    def __enter__(self) -> Self:
        self._probe.start()
        wait_for(lambda: len(self.record.acknowledged) >= self.ANSWERED, 60, self.SAYS)
        return self

    def __exit__(self, *_: object) -> None:
        self._probe.stop()

    def watch(self, seconds: float) -> None:
        """Let it go on."""
        time.sleep(seconds)

    def recovered(self, since: float, seconds: float) -> None:
        """Wait until a request that was sent after a time is answered."""
        wait_for(lambda: any(one.sent > since for one in self.record.acknowledged), seconds, f"{self.SAYS} again")


# ------------------------------------------------------------------------------------------------------------- figures


RUNS = int(os.environ.get("GROUNDPLANE_RUNS", "1"))
"""How often each drill is run for its median and worst."""


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and worst of some runs."""
    return {"runs": len(values), "median": round(statistics.median(values), 3), "worst": round(max(values), 3)}


if __name__ == "__main__":
    serve(*sys.argv[1:])
