# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a member's host: writes one number after the other to etcd, and tells how long nobody took one.

Arguments: file that ends it when it appears, then the client URLs. Standard library only.
"""

from __future__ import annotations

import base64
import http.client
import json
import pathlib
import ssl
import sys
import time
from urllib.parse import urlsplit

CA = "/etc/groundplane/pki/ca.crt"
CERTIFICATE = ("/etc/etcd/tls/etcd.crt", "/etc/etcd/tls/etcd.key")
KEY = base64.b64encode(b"/groundplane-test/writer").decode()
INTERVAL = 0.02


def main() -> None:
    """Write until the file appears, then read back."""
    end, urls = pathlib.Path(sys.argv[1]), sys.argv[2:]
    context = ssl.create_default_context(cafile=CA)
    context.load_cert_chain(*CERTIFICATE)
    connections: dict[str, http.client.HTTPSConnection] = {}
    written = failed = at = 0
    gap, last = 0.0, time.monotonic()

    def call(path: str, body: dict[str, str]) -> dict[str, object]:
        url = urlsplit(urls[at % len(urls)])
        if url.netloc not in connections:
            connections[url.netloc] = http.client.HTTPSConnection(url.netloc, context=context, timeout=1)
        try:
            connections[url.netloc].request("POST", path, json.dumps(body))
            answer = connections[url.netloc].getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            connections.pop(url.netloc).close()
            raise
        if answer.status != 200:
            raise OSError(text.decode())
        value: dict[str, object] = json.loads(text)
        return value

    while not end.exists():
        try:
            value = base64.b64encode(str(written + 1).encode()).decode()
            call("/v3/kv/put", {"key": KEY, "value": value})
        except (OSError, http.client.HTTPException):
            failed, at = failed + 1, at + 1
            continue
        written += 1
        now = time.monotonic()
        gap, last = max(gap, now - last), now
        time.sleep(INTERVAL)
    found = call("/v3/kv/range", {"key": KEY})
    read = int(base64.b64decode(found["kvs"][0]["value"]))  # type: ignore[index]
    call("/v3/kv/deleterange", {"key": KEY})
    print(json.dumps({"written": written, "failed": failed, "gap": round(gap, 3), "read": read}))


main()
