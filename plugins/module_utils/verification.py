# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the live site do what its contracts say? Pure: what to ask, and what the answers mean."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NOBODY = "nobody"
# Identities that a mutual port must turn away; tests add the last two.
UNWELCOME = {NOBODY: "without a certificate", "stranger": "of another CA", "expired": "with an expired certificate"}
# Whom a port with an authority of its own must let in: the pair beside it. To such a port the site's own are strangers.
MEMBER = "member"


def targets(listens: Iterable[Mapping[str, Any]], server_name: str) -> list[dict[str, Any]]:
    """Return the TLS ports among a host's listens, once each, as targets of a probe.

    A port with an authority of its own is also asked as its member: by `server.crt` and `server.key` beside the
    authority's certificate, where kubeadm puts them.

    Args:
        listens: the contract view `listens` of the host.
        server_name: name that the host's certificates carry.
    """
    return [
        {
            "address": address,
            "port": listen["port"],
            "server_name": server_name,
            **_started(listen),
            **_vouched(listen.get("authority")),
        }
        for listen in listens
        if listen["protocol"] == "tcp" and listen["tls"] != "none"
        for address in listen["addresses"].values()
    ]


def _started(port: Mapping[str, Any]) -> dict[str, str]:
    """What a target of a probe has in addition where a client asks for TLS before it begins."""
    return {"starttls": port["starttls"]} if port.get("starttls") else {}


def _vouched(authority: str | None) -> dict[str, Any]:
    """What a target of a probe has in addition for an authority of its own."""
    if authority is None:
        return {}
    return {"ca": authority, "identities": {MEMBER: _files(str(PurePosixPath(authority).parent), "server")}}


def identities(certificates: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return whom to ask as: nobody, the host, and each service that has a client certificate on it.

    Args:
        certificates: the contract view `certificates` of the host.
    """
    known = {NOBODY: {}, "host": _files("/etc/groundplane/pki", "host")}
    for one in certificates:
        if "client" in one["usages"]:
            known[one["name"]] = _files(one["directory"], one["name"])
    return known


def _files(directory: str, name: str) -> dict[str, str]:
    return {"certificate": f"{directory}/{name}.crt", "key": f"{directory}/{name}.key"}


def endpoint_name(endpoint: Mapping[str, Any], domain: str) -> str:
    """Return the name by which clients know an endpoint; its certificate carries it."""
    return f"{endpoint['name']}.{endpoint['service']}.{domain}"


def endpoint_targets(
    endpoints: Iterable[Mapping[str, Any]], domain: str, hosts: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Return the VIP ports of the endpoints as targets of a probe; the certificate must carry the endpoint's name.

    An endpoint of the replicas of a single member has nobody behind it and is no target.

    Args:
        endpoints: the contract view `endpoints`.
        domain: of the site's names.
        hosts: those that take part in the run; an endpoint that none of them serves is no target. By default all do.
    """
    taking_part = None if hosts is None else set(hosts)
    return [
        {
            "address": one["address"],
            "port": one["port"],
            "server_name": endpoint_name(one, domain),
            **_started(one),
        }
        for one in endpoints
        if one["tls"] != "none"
        and not (one["kind"] == "replicas" and len(one["members"]) == 1)
        and (taking_part is None or taking_part & {member["name"] for member in one["members"]})
    ]


def breaches(host: str, listens: Iterable[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each port of a host that does not answer as its contract says, in one sentence.

    Args:
        host: inventory name.
        listens: the contract view `listens` of the host.
        answers: of the probe of `targets`, asked as each of `identities`.
    """
    said: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for one in answers:
        said.setdefault((one["address"], one["port"]), {})[one["identity"]] = one
    found = []
    for listen in listens:
        if listen["protocol"] != "tcp" or listen["tls"] == "none":
            continue
        for address in listen["addresses"].values():
            what = f"{host}: {listen['service']} {listen['name']} on {address}:{listen['port']}"
            here = dict(said[address, listen["port"]])
            strangers = {*UNWELCOME, *(name for name in here if listen.get("authority") and name != MEMBER)}
            unwelcome = {name: here.pop(name) for name in list(here) if name in strangers}
            if all(one["outcome"] != "accepted" for one in here.values()):
                why = "; ".join(f"{name}: {one['outcome']}, {one['detail']}" for name, one in here.items())
                found.append(f"{what} lets none of the host's own certificates in ({why}).")
            elif listen["tls"] == "mutual":
                found += [
                    f"{what} must refuse a client {_called(name)} and answers: {one['outcome']}."
                    for name, one in unwelcome.items()
                    if one["outcome"] != "refused"
                ]
    return found


def _called(identity: str) -> str:
    return UNWELCOME.get(identity, f"with the site's certificate {identity}")


def summary(
    site: str,
    domain: str,
    members: Mapping[str, Sequence[Mapping[str, Any]]],
    endpoints: Iterable[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Say what is up and where, a line each.

    Args:
        site: name of the site.
        domain: its DNS domain.
        members: the contract view `members`, without services that run everywhere.
        endpoints: the contract view `endpoints`.
        answers: of all probes of the run, TLS ports and endpoints.
    """
    ports = {(one["address"], one["port"]) for one in answers}
    shortest = min((one["days_left"] for one in answers if one["days_left"] is not None), default=None)
    lines = [
        f"{site}: {len(ports)} TLS ports answer as their contracts say; the next certificate ends in {shortest} days"
    ]
    lines += [
        f"  {endpoint_name(one, domain)}  {one['address']}:{one['port']}  ({one['tls']} TLS, {one['kind']})"
        for one in endpoints
    ]
    for service, hosts in members.items():
        lines.append(f"  {service}: " + ", ".join(f"{host['name']} {host['address']}" for host in hosts))
    return lines
