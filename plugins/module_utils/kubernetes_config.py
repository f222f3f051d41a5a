# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A kubeconfig, as kubeadm writes it, read by the standard library alone.

The hosts have no YAML library, and need none: kubeadm writes block style with plain or quoted scalars. Whatever is
beyond that is refused, with the line that it stands on.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import ssl
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEY = re.compile(r"""(?P<key>"[^"]*"|'[^']*'|[^\s'"#&*!|>%@`{}\[\],:-][^\s:]*(?::[^\s:]+)*):(?:\s+(?P<value>.*))?\Z""")
_ITEM = re.compile(r"-(?:(?P<space>\s+)(?P<rest>.*))?\Z")
_UNSUPPORTED = tuple("&*!|>%@`{[")
_EMPTY: dict[str, Any] = {"{}": {}, "[]": [], "null": None, "~": None, "": None}


class ConfigError(Exception):
    """A kubeconfig that cannot be used; the text says which file and why, and never holds a key."""


# ------------------------------------------------------------------------------------------------- a little of YAML


@dataclass(frozen=True)
class _Line:
    number: int
    indent: int
    text: str


def parse_block_yaml(text: str) -> Any:
    """Block mappings and sequences of scalars. Scalars stay text, but for `null`, `{}` and `[]`.

    Raises:
        ConfigError: it is more than that; names the line.
    """
    lines = [
        _Line(number, len(raw) - len(raw.lstrip(" ")), raw.strip())
        for number, raw in enumerate(text.splitlines(), 1)
        if raw.strip() and not raw.lstrip().startswith("#") and raw.rstrip() != "---"
    ]
    if not lines:
        return None
    value, rest = _block(lines, 0, lines[0].indent)
    if rest != len(lines):
        raise ConfigError(f"line {lines[rest].number} is indented in a way that is not understood")
    return value


def _block(lines: list[_Line], at: int, indent: int) -> tuple[Any, int]:
    """The mapping or sequence whose lines begin at `at` with that indent, and where it ends."""
    if _ITEM.match(lines[at].text):
        return _sequence(lines, at, indent)
    return _mapping(lines, at, indent)


def _sequence(lines: list[_Line], at: int, indent: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while at < len(lines) and lines[at].indent == indent and (match := _ITEM.match(lines[at].text)):
        line = lines[at]
        if not match["rest"]:
            if at + 1 < len(lines) and lines[at + 1].indent > indent:
                value, at = _block(lines, at + 1, lines[at + 1].indent)
            else:
                value, at = None, at + 1
        elif _KEY.match(match["rest"]) or _ITEM.match(match["rest"]):
            # A block that begins on the line of its dash: the rest of it stands below its first word.
            column = indent + 1 + len(match["space"])
            lines[at] = _Line(line.number, column, match["rest"])
            value, at = _block(lines, at, column)
        else:
            value, at = _scalar(match["rest"], line.number), at + 1
        items.append(value)
    return items, at


def _mapping(lines: list[_Line], at: int, indent: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while at < len(lines) and lines[at].indent == indent and not _ITEM.match(lines[at].text):
        line = lines[at]
        match = _KEY.match(line.text)
        if match is None:
            raise ConfigError(f"line {line.number} is not `key: value`")
        key = match["key"].strip("\"'")
        if key in found:
            raise ConfigError(f"line {line.number} has the key {key} a second time")
        at += 1
        if match["value"]:
            found[key] = _scalar(match["value"], line.number)
        elif at < len(lines) and (
            lines[at].indent > indent or (lines[at].indent == indent and _ITEM.match(lines[at].text))
        ):
            found[key], at = _block(lines, at, lines[at].indent)
        else:
            found[key] = None
    return found, at


def _scalar(text: str, number: int) -> Any:
    if text in _EMPTY:
        return _EMPTY[text] if _EMPTY[text] is None else type(_EMPTY[text])()
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise ConfigError(f"line {number} has a quoted text that is not understood") from error
    if text.startswith("'"):
        if len(text) < 2 or not text.endswith("'"):  # noqa: PLR2004 - both quotes
            raise ConfigError(f"line {number} has a quoted text that is not understood")
        return text[1:-1].replace("''", "'")
    if text.startswith(_UNSUPPORTED):
        raise ConfigError(f"line {number} has a value in a notation that is not understood")
    return re.sub(r"\s+#.*\Z", "", text)


# --------------------------------------------------------------------------------------------------------- kubeconfig


@dataclass(frozen=True)
class KubeConfig:
    """Where the API is, whom we trust, and who we are; as the current context says.

    Attributes:
        path: the file.
        server: `https://host:port`.
        server_name: name that the server's certificate must have instead of the URL's host; empty for that one.
        ca: certificates of the authority, PEM.
        certificate: the client certificate, PEM; empty when the user has none.
        key: its private key, PEM. Never written anywhere.
        token: bearer token; empty when the user has none.
    """

    path: str
    server: str
    ca: str
    server_name: str = ""
    certificate: str = ""
    key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def context(self) -> ssl.SSLContext:
        """A context that verifies the server and shows our certificate.

        Raises:
            ConfigError: the authority, the certificate or the key is not what it should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cadata=self.ca)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"{self.path}: its certificate authority cannot be read ({error})") from error
        if self.certificate:
            try:
                with _in_memory(self.certificate + "\n" + self.key) as name:
                    context.load_cert_chain(name)
            except OSError as error:  # ssl.SSLError is one
                reason = getattr(error, "reason", None) or error.strerror or str(error)
                raise ConfigError(f"{self.path}: its client certificate and key cannot be used ({reason})") from error
        return context


def load(path: str) -> KubeConfig:
    """Read a kubeconfig.

    Raises:
        ConfigError: it is missing, or not understood, or what it names is missing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text") from error
    try:
        return parse(text, path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(text: str, path: str) -> KubeConfig:
    """Read the text of a kubeconfig; `path` is its file, beside which the files are that it names.

    Raises:
        ConfigError: it is not understood.
    """
    if text.lstrip().startswith("{"):
        try:
            whole = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"is not JSON: {error}") from error
    else:
        whole = parse_block_yaml(text)
    if not isinstance(whole, dict) or whole.get("kind", "Config") != "Config":
        raise ConfigError("is not a kubeconfig")
    context = _named(whole, "contexts", whole.get("current-context"), "context")
    cluster = _named(whole, "clusters", context.get("cluster"), "cluster")
    user = _named(whole, "users", context.get("user"), "user")
    if str(cluster.get("insecure-skip-tls-verify", "false")).lower() == "true":
        raise ConfigError("asks not to verify the server, which is not done here")
    server = str(cluster.get("server") or "")
    if not server.startswith("https://"):
        raise ConfigError(f"its server {server!r} is not an https URL")
    directory = Path(path).parent
    ca = _material(cluster, "certificate-authority", directory)
    if not ca:
        raise ConfigError("names no certificate authority")
    return KubeConfig(
        path=path,
        server=server,
        ca=ca,
        server_name=str(cluster.get("tls-server-name") or ""),
        certificate=_material(user, "client-certificate", directory),
        key=_material(user, "client-key", directory),
        token=str(user.get("token") or ""),
    )


def _named(whole: dict[str, Any], section: str, name: Any, key: str) -> dict[str, Any]:
    for item in whole.get(section) or []:
        if isinstance(item, dict) and item.get("name") == name and isinstance(item.get(key), dict):
            return cast("dict[str, Any]", item[key])
    raise ConfigError(f"has no {key} {name!r} below {section}")


def _material(section: dict[str, Any], name: str, directory: Path) -> str:
    """PEM out of `<name>-data` (base64) or the file `<name>`; empty when there is neither."""
    data = section.get(f"{name}-data")
    if data:
        try:
            return base64.b64decode(str(data), validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{name}-data is not PEM in base64") from error
    file = section.get(name)
    if not file:
        return ""
    try:
        return (directory / str(file)).read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{name} {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} {file}: is not PEM") from error


@contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """A name by which OpenSSL can open a text that is in memory only: it takes no keys but from files."""
    descriptor = os.memfd_create("groundplane", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
