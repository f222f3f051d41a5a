# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a broker's host: one of Kafka's own clients in Java, whose files go with it.

The first line of standard input is a JSON object:
    class, arguments: what is run; CONFIG among the arguments stands for the file of its properties.
    libraries: the directory of Kafka's jars.
    certificate: who it is, as a path without `.crt` and `.key`.
    properties: of the client, besides those of TLS.
    seconds: after which it is ended.
    held: whether it is ended as soon as standard input ends, as it does when whoever started it is gone.

Standard library only. What it writes is in memory and for root alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

CA = "/etc/groundplane/pki/ca.crt"
JAVA = ("java", "-Xmx96m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
LAST_WORDS = 75
"""Seconds in which a client that was told to end may wait for what it has sent."""


def main() -> int:
    """Run it, and give how it ended."""
    asked = json.loads(sys.stdin.readline())
    directory = Path(tempfile.mkdtemp(prefix="groundplane-kafka-", dir="/dev/shm"))
    try:
        pem, config = directory / "client.pem", directory / "client.properties"
        stem = asked["certificate"]
        pem.write_text(Path(f"{stem}.key").read_text() + Path(f"{stem}.crt").read_text())
        properties = {
            "security.protocol": "SSL",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": CA,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(pem),
            **asked["properties"],
        }
        config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        arguments = [str(config) if word == "CONFIG" else word for word in asked["arguments"]]
        command = [*JAVA, "-cp", f"{asked['libraries']}/*", asked["class"], *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            return end(process, float(asked["seconds"]), held=bool(asked["held"]))
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(directory)


def end(process: subprocess.Popen[bytes], seconds: float, *, held: bool) -> int:
    """Wait for the end of a process, or bring it about."""

    def hold() -> None:
        while os.read(0, 4096):  # not by sys.stdin, whose lock this thread would still have when the others are through
            pass
        process.terminate()

    if held:
        threading.Thread(target=hold, daemon=True).start()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    process.terminate()
    return process.wait(LAST_WORDS)


if __name__ == "__main__":
    sys.exit(main())
