# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real client of S3, for drills: it puts or gets an object every 50 ms through the virtual address.

Like every client of S3 it tries again when a connection breaks or the store says 5xx, twice. The host that is asked to
runs this file after `drill.py`: what runs there needs only the standard library.

Source: Amazon S3 API reference, "Authenticating Requests (AWS Signature Version 4)", with a payload that is not signed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import http.client
import itertools
import socket
import ssl
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.faults.drill import ACTIONS, HostClient, HostProbe, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.drill import Attempt, Outcome
    from tests.object_store import ObjectStore

CA = "/etc/groundplane/pki/ca.crt"
PORT = 9000
REGION = "us-east-1"
PATIENCE = 10.0
"""Seconds that the client gives each step: to connect, and to be answered."""
TRIES = 3
BUCKET = "drill"
XML = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def signed(method: str, path: str, query: dict[str, str], host: str, keys: tuple[str, str]) -> dict[str, str]:
    """The headers of a request.

    Args:
        method: of HTTP.
        path: of the object, not encoded.
        query: what stands behind it.
        host: name and port.
        keys: access key and secret key.
    """
    now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    own = {"host": host, "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": now}
    words = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))
    heads = "".join(f"{name}:{value}\n" for name, value in own.items())
    canonical = f"{method}\n{quote(path)}\n{words}\n{heads}\n{';'.join(own)}\nUNSIGNED-PAYLOAD"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{keys[1]}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    credential = f"AWS4-HMAC-SHA256 Credential={keys[0]}/{scope}, SignedHeaders={';'.join(own)}, Signature={signature}"
    return {**own, "authorization": credential}


@dataclass
class Client:
    """One connection; a new one after an error."""

    address: str
    name: str
    keys: tuple[str, str]
    open: list[http.client.HTTPSConnection] = field(default_factory=list)

    def ask(self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b"") -> bytes:
        """The body of a good answer.

        Raises:
            ConnectionError: the answer is another one.
            OSError: there is none.
        """
        for attempt in range(TRIES):
            try:
                status, said = self._once(method, path, query or {}, body)
            except (OSError, http.client.HTTPException):
                while self.open:
                    self.open.pop().close()
                if attempt == TRIES - 1:
                    raise
                continue
            if status < 300:
                return said
            if status < 500 or attempt == TRIES - 1:
                raise ConnectionError(f"{status} {said[:200]!r}")
            time.sleep(0.1)
        raise AssertionError

    def _once(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if not self.open:
            context = ssl.create_default_context(cafile=CA)
            connection = http.client.HTTPSConnection(self.name, PORT, timeout=PATIENCE, context=context)
            plain = socket.create_connection((self.address, PORT), PATIENCE)
            connection.sock = context.wrap_socket(plain, server_hostname=self.name)
            self.open.append(connection)
        words = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in sorted(query.items()))
        headers = signed(method, path, query, f"{self.name}:{PORT}", self.keys)
        self.open[0].request(method, quote(path) + (f"?{words}" if words else ""), body, headers)
        answer = self.open[0].getresponse()
        said = answer.read()
        if answer.will_close:
            # It would connect anew by the name, which this host need not know.
            self.open.pop().close()
        return answer.status, said


def client(address: str, name: str, user: str) -> Client:
    """A client whose secret is a line of standard input."""
    return Client(address, name, (user, sys.stdin.readline().strip()))


def s3_put(address: str, name: str, user: str, prefix: str) -> Callable[[int], None]:
    """Put objects of 512 KiB: half of one is on a drive, too large to be kept in its metadata."""
    store = client(address, name, user)

    def write(turn: int) -> None:
        store.ask("PUT", f"/{BUCKET}/{prefix}{turn}", body=content(turn))

    return write


def s3_get(address: str, name: str, user: str, prefix: str, there: str) -> Callable[[int], str]:
    """Get the first objects in turn, and look whether they are what was put."""
    store = client(address, name, user)

    def read(turn: int) -> str:
        number = turn % int(there)
        if store.ask("GET", f"/{BUCKET}/{prefix}{number}") != content(number):
            raise ConnectionError(f"{prefix}{number} is not what was put")
        return str(number)

    return read


def s3_list(address: str, name: str, user: str, prefix: str) -> Callable[[int], str]:
    """The numbers of all objects, with commas between them."""
    store = client(address, name, user)

    def numbers(_: int) -> str:
        found: list[str] = []
        query = {"list-type": "2", "prefix": prefix}
        while True:
            root = ET.fromstring(store.ask("GET", f"/{BUCKET}", query))
            found += [(key.text or "").removeprefix(prefix) for key in root.iterfind(f"{XML}Contents/{XML}Key")]
            further = root.findtext(f"{XML}NextContinuationToken")
            if not further:
                return ",".join(found)
            query["continuation-token"] = further

    return numbers


def s3_heal(address: str, name: str, user: str, prefix: str) -> Callable[[int], None]:
    """Have all parts of objects read and compared, and those that have rotted written anew. MinIO's own request."""
    store = client(address, name, user)

    def heal(_: int) -> None:
        wish = b'{"recursive": true, "scanMode": 2}'
        store.ask("POST", f"/minio/admin/v3/heal/{BUCKET}/{prefix}", {"forceStart": "true"}, wish)

    return heal


def content(number: int) -> bytes:
    """What the object of a number holds."""
    return hashlib.sha256(str(number).encode()).digest() * 16384


ACTIONS["s3_put"] = s3_put
ACTIONS["s3_get"] = s3_get
ACTIONS["s3_list"] = s3_list
ACTIONS["s3_heal"] = s3_heal


class StoreClient(HostClient):
    """The client, on a host that has a leg on the network of the virtual address."""

    def __init__(self, store: ObjectStore, host: str, prefix: str = "", there: int = 0, *, server: str = "") -> None:
        """Prepare a run of its own.

        Args:
            store: the store.
            host: where it runs.
            prefix: of the objects; left out, one that nobody has.
            there: how many of these objects are got in turn; 0 puts new ones.
            server: the one that is asked; left out, whom the virtual address leads to.
        """
        self.prefix = prefix or f"{uuid.uuid4().hex}/"
        self._store, self._host = store, host
        self._address = store.lab.address(server) if server else store.lab.vip()
        self._probe = self._made("s3_get", str(there)) if there else self._made("s3_put")

    def _made(self, action: str, *further: str, interval: float = 0.05) -> HostProbe:
        who = (f"s3.{self._store.domain}", self._store.user)
        return HostProbe(
            self._store.lab, self._host, action, self._address, *who, self.prefix, *further,
            interval=interval, prefix=["sudo", "-n"], program=Path(__file__),
            secret=f"{self._store.password}\n",
        )  # fmt: skip

    def failed_since(self, moment: float) -> list[Attempt]:
        """The requests that were sent after a time and got no good answer."""
        return [attempt for attempt in self.record.failed if attempt.sent > moment]

    def there(self) -> set[int]:
        """The numbers of the objects that the store has."""
        return {int(number) for number in self._once("s3_list").split(",") if number}

    def unbroken(self) -> int:
        """How many objects there are from the first one on, without one that is missing."""
        there = self.there()
        return next(number for number in itertools.count() if number not in there)

    def heal(self) -> None:
        """Ask that all objects are compared with their checksums, and healed."""
        self._once("s3_heal")

    def _once(self, action: str) -> str:
        with self._made(action, interval=60) as probe:
            wait_for(lambda: probe.record.attempts, 60, f"the store answers {action}")
        answer = probe.record.attempts[0]
        assert answer.acked, answer.error
        return answer.answer

    def outcome(self) -> Outcome:
        """Look what of all is there."""
        return self.record.outcome(self.there())
