# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures of requests to an object store, as pure functions of the standard library.

Nothing of the collection is imported here: roles put this file on hosts, beside programs that need it.

Source: Amazon S3 API reference, "Authenticating Requests (AWS Signature Version 4)".
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping

ALGORITHM = "AWS4-HMAC-SHA256"
SERVICE = "s3"

_EPOCH_FORMAT = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who signs.

    Attributes:
        access_key: the name.
        secret_key: the secret, which is never sent.
    """

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Signable:
    """What of a request is signed.

    Attributes:
        method: GET, PUT, POST, DELETE or HEAD.
        path: from `/`, not encoded.
        digest: SHA-256 of the body, hexadecimal. A store refuses a body that has another.
        query: name to value, not encoded.
        headers: beyond those that every request has; names in lower case.
    """

    method: str
    path: str
    digest: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def canonical_path(path: str) -> str:
    """A path with all but unreserved characters and slashes encoded."""
    return quote(path, safe="/-_.~")


def canonical_query(query: Mapping[str, str]) -> str:
    """A query sorted and encoded."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def signed(what: Signable, host: str, credentials: Credentials, region: str, now: dt.datetime) -> dict[str, str]:
    """The headers with which a request is sent.

    Args:
        what: is asked.
        host: `host:port` as the client names the server.
        credentials: who asks.
        region: of the store.
        now: in UTC. A store takes a request for a quarter of an hour.
    """
    moment = now.strftime(_EPOCH_FORMAT)
    headers = {**what.headers, "host": host, "x-amz-content-sha256": what.digest, "x-amz-date": moment}
    names = ";".join(sorted(headers))
    canonical = "\n".join(
        [
            what.method,
            canonical_path(what.path),
            canonical_query(what.query),
            *(f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)),
            "",
            names,
            what.digest,
        ]
    )
    scope = f"{moment[:8]}/{region}/{SERVICE}/aws4_request"
    to_sign = "\n".join([ALGORITHM, moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    headers["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope},SignedHeaders={names},Signature={signature}"
    )
    return headers
