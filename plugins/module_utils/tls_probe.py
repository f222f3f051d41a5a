# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a TLS port whom it lets in: with a client certificate, without one, with a stranger's.

Under TLS 1.3 a client has finished its handshake before the server has looked at the client's certificate
(RFC 8446, section 2), so a finished handshake proves nothing: the probe goes on until the server answers or refuses.
Runs on the hosts: standard library only.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import Any

SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # PostgreSQL protocol, "SSLRequest"
STARTUP = b"user\0groundplane_probe\0database\0groundplane_probe\0\0"
HTTP = b"GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Identity:
    """Who asks: a certificate with its key, or nobody (both None)."""

    name: str
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a port said.

    Attributes:
        outcome: `accepted`, `refused` (the server turned this identity away), `untrusted` (its certificate does not
            verify against the site's CA), `plaintext` (no TLS there), `silent` (it took the connection and said nothing
            in time), `unreachable`.
        detail: the reason, in the peer's or the library's words.
        version: TLS version, such as `TLSv1.3`.
        days_left: until the server's certificate ends.
    """

    outcome: str
    detail: str = ""
    version: str | None = None
    days_left: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as a mapping for a module's result."""
        return {"outcome": self.outcome, "detail": self.detail, "version": self.version, "days_left": self.days_left}


def context(ca: str, identity: Identity) -> ssl.SSLContext:
    """Trust the site's CA alone and present the identity's certificate, if it has one."""
    made = ssl.create_default_context(cafile=ca)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if identity.certificate and identity.key:
        made.load_cert_chain(identity.certificate, identity.key)
    return made


def days_left(session: ssl.SSLSocket) -> float | None:
    """Days until the peer's verified certificate ends."""
    peer = session.getpeercert()
    if not peer:
        return None
    ends = ssl.cert_time_to_seconds(str(peer["notAfter"]))
    return round((ends - time.time()) / 86400, 2)


def probe(
    address: str, port: int, server_name: str, trust: ssl.SSLContext, timeout: float, *, starttls: str | None = None
) -> Answer:
    """Ask one port.

    Args:
        address: IP address to connect to.
        port: TCP port.
        server_name: name that the server's certificate must carry.
        trust: from `context`.
        timeout: seconds for each step.
        starttls: `postgres` asks for TLS as a client of PostgreSQL does; None begins with it.

    Returns:
        The answer; network and TLS errors are outcomes, not exceptions.
    """
    postgres = starttls == "postgres"
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(socket.create_connection((address, port), timeout))
        except OSError as error:
            return Answer("unreachable", str(error))
        try:
            if postgres and not _offers_tls(raw):
                return Answer("plaintext", "no TLS is offered")
            session = stack.enter_context(trust.wrap_socket(raw, server_hostname=server_name))
        except ssl.SSLCertVerificationError as error:
            return Answer("untrusted", error.verify_message)
        except ssl.SSLEOFError:
            return Answer("refused", "closed in the handshake")
        except ssl.SSLError as error:
            reason = str(error.reason or error)
            return Answer("refused" if "ALERT" in reason else "plaintext", reason)
        except TimeoutError:
            return Answer("silent", f"no answer to a handshake in {timeout:g} s")
        except OSError as error:
            return Answer("refused", str(error))
        return _talk(session, postgres=postgres)


def _offers_tls(raw: socket.socket) -> bool:
    """Ask as a client of PostgreSQL does; whatever is not its yes is a no, except silence.

    Raises:
        TimeoutError: no word.
    """
    try:
        raw.sendall(SSL_REQUEST)
        return raw.recv(1) == b"S"
    except TimeoutError:
        raise
    except OSError:
        return False


def _talk(session: ssl.SSLSocket, *, postgres: bool) -> Answer:
    """Say something, so that a server that checks certificates after the handshake has to decide."""
    version, left = session.version(), days_left(session)
    hello = struct.pack("!ii", len(STARTUP) + 8, 196608) + STARTUP if postgres else HTTP
    # A server of another protocol may close on what it does not understand, after it has let the client in.
    ended = "refused" if postgres else "accepted"
    said = b""
    try:
        # A refusal may be here before the question is sent; then sending fails, and what matters is what can be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            session.sendall(hello)
        said = session.recv(256)
    except ssl.SSLEOFError as error:
        return Answer(ended, str(error.reason or error), version, left)
    except ssl.SSLError as error:
        return Answer("refused", str(error.reason or error), version, left)
    except TimeoutError:
        return Answer("accepted", "the session stays open", version, left)
    except OSError as error:
        return Answer(ended, str(error), version, left)
    if not said:
        return Answer(ended, "closed after the handshake", version, left)
    if postgres and said[:1] == b"E":
        detail = said[5:].split(b"\0M", 1)[-1].split(b"\0", 1)[0].decode(errors="replace")
        # Only a word about certificates is a refusal of the identity; an unknown user was let in that far.
        return Answer("refused" if "certificate" in detail or "SSL" in detail else "accepted", detail, version, left)
    return Answer("accepted", "", version, left)
