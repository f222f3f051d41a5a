# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys and certificates on a host: real openssl, real files, and a stop after every step."""

from __future__ import annotations

import datetime as dt
import os
import stat
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import certificate_files as subject
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import read_pem
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate_files import FilesError, Owner, Pair
from ansible_collections.groundplane.onprem.plugins.module_utils.issuer import load_request, make_root, pem, sign_leaf

from tests.unit.pki_site import Site, now, want

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SITE = Site(age=dt.timedelta(days=60))  # so that it can have signed what is old by now
ME = Owner(os.getuid(), os.getgid())


@contextmanager
def opened(directory: Path, **changes: Any) -> Iterator[Pair]:
    with Pair.opened(want(directory, **changes), ME, create=True) as pair:
        assert pair is not None
        yield pair


def delivered(pair: Pair, site: Site = SITE) -> str:
    """What the issuer answers to the pair's request."""
    request = load_request(pair.request().encode())
    leaf = sign_leaf(request, pair.wanted.profile, site.issuer, 30 * 86400, now())
    return pem(leaf) + site.issuer.certificate_pem()


def judged(pair: Pair) -> list[str]:
    path = f"{pair.wanted.path}.crt"
    trusted = path not in subject.unverified([path], SITE.anchors)
    return subject.reasons_to_request(pair, time.time(), None, 30 * 86400, trusted=trusted)


def tree(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_from_nothing_to_a_pair_in_service(tmp_path: Path) -> None:
    with opened(tmp_path / "tls", mode="0640") as pair:
        chain = delivered(pair)
        assert tree(tmp_path / "tls") == ["host.key.new"]
        assert stat.S_IMODE((tmp_path / "tls/host.key.new").stat().st_mode) == 0o600
        pair.stage(chain, SITE.anchors)
        assert pair.finish()
        assert tree(tmp_path / "tls") == ["host.crt", "host.key"]
        assert stat.S_IMODE((tmp_path / "tls/host.key").stat().st_mode) == 0o640
        assert stat.S_IMODE((tmp_path / "tls/host.crt").stat().st_mode) == 0o644
        assert judged(pair) == []


def test_the_live_pair_is_untouched_until_its_successor_is_complete(tmp_path: Path) -> None:
    wanted = want(tmp_path)
    SITE.install(wanted)
    before = {name: (tmp_path / name).read_bytes() for name in ("host.crt", "host.key")}
    with opened(tmp_path) as pair:
        chain = delivered(pair)
        pair.stage(chain, SITE.anchors)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
        assert pair.finish()
        assert {name: (tmp_path / name).read_bytes() for name in before} != before
        assert pair.matches("host.crt", "host.key")


@pytest.mark.parametrize("steps", range(5))
def test_a_run_that_stops_after_any_step_is_completed_by_the_next(tmp_path: Path, steps: int) -> None:
    """Steps: key made, certificate staged, key renamed, both renamed."""
    wanted = want(tmp_path)
    old = read_pem(SITE.install(wanted))[0].serial
    with opened(tmp_path) as pair:
        if steps >= 1:
            chain = delivered(pair)
        if steps >= 2:
            pair.stage(chain, SITE.anchors)
        if steps >= 3:
            (tmp_path / "host.key.new").rename(tmp_path / "host.key")
        if steps >= 4:
            (tmp_path / "host.crt.new").rename(tmp_path / "host.crt")

    with opened(tmp_path) as pair:  # the next run, or the timer
        assert pair.half_done() == (steps in {2, 3})
        if pair.half_done():
            pair.finish()
        leaf = pair.leaf("host.crt")
        assert leaf is not None
        assert (leaf.serial != old) == (steps >= 2)
        assert pair.matches("host.crt", "host.key")
        assert judged(pair) == []
        # and what it asks for anew comes into service
        pair.stage(delivered(pair), SITE.anchors)
        assert pair.finish()
        assert tree(tmp_path) == ["host.crt", "host.key"]
        assert judged(pair) == []


def test_a_key_that_was_cut_while_written_is_made_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as pair:
        pair.request()
        whole = (tmp_path / "host.key.new").read_bytes()
        (tmp_path / "host.key.new").write_bytes(whole[:100])
        pair.stage(delivered(pair), SITE.anchors)
        assert pair.finish()


def test_a_staged_key_is_asked_for_again_and_not_replaced(tmp_path: Path) -> None:
    with opened(tmp_path) as pair:
        first = pair.request()
        key = (tmp_path / "host.key.new").read_bytes()
        second = pair.request()
        assert (tmp_path / "host.key.new").read_bytes() == key
        assert load_request(first.encode()).public_key() == load_request(second.encode()).public_key()


def test_a_certificate_for_another_key_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as pair:
        chain = delivered(pair)
        pair.remove("host.key.new")
        pair.request()
        with pytest.raises(FilesError, match="no longer here"):
            pair.stage(chain, SITE.anchors)
        assert tree(tmp_path) == ["host.key.new"]


def test_a_certificate_of_another_site_is_refused(tmp_path: Path) -> None:
    stranger = Site()
    with opened(tmp_path) as pair:
        chain = delivered(pair, stranger)
        with pytest.raises(FilesError, match="trust anchor"):
            pair.stage(chain, SITE.anchors)
        assert tree(tmp_path) == ["host.key.new"]


def test_a_certificate_with_other_names_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, dns=["data1", "evil.test.internal"]) as pair:
        chain = delivered(pair)
    with opened(tmp_path) as pair, pytest.raises(FilesError, match=r"evil\.test\.internal too many"):
        pair.stage(chain, SITE.anchors)
    assert tree(tmp_path) == ["host.key.new"]


def test_a_staged_certificate_that_fits_no_key_is_dropped(tmp_path: Path) -> None:
    SITE.install(want(tmp_path))
    with opened(tmp_path) as pair:
        (tmp_path / "host.crt.new").write_text(SITE.issue(pair.wanted.profile)[0])
        assert pair.half_done()
        assert not pair.finish()
        assert tree(tmp_path) == ["host.crt", "host.key"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda at: (at / "host.crt").unlink(), "there is none"),
        (lambda at: (at / "host.crt").write_text("nonsense"), "there is none"),
        (lambda at: (at / "host.key").unlink(), "key is missing"),
        (lambda at: (at / "host.key").write_bytes(subject.new_key()), "key is missing or not its own"),
        (lambda at: Site().install(want(at)), "does not lead to the site's trust anchor"),
        (lambda at: SITE.install(want(at), life=86400, at=now() - dt.timedelta(days=2)), "has expired"),
        (lambda at: SITE.install(want(at), at=now() - dt.timedelta(days=21)), "time to be renewed"),
        (lambda at: SITE.install(want(at, common_name="x")), "subject is not CN=data1"),
    ],
)
def test_what_is_wrong_is_seen(tmp_path: Path, damage: Any, reason: str) -> None:
    SITE.install(want(tmp_path))
    with opened(tmp_path) as pair:
        assert judged(pair) == []
        damage(tmp_path)
        reasons = judged(pair)
        assert len(reasons) == 1
        assert reason in reasons[0]


def test_verification_of_many_names_only_the_bad(tmp_path: Path) -> None:
    good, bad = want(tmp_path / "a"), want(tmp_path / "b")
    SITE.install(good)
    Site().install(bad)
    paths = [f"{good.path}.crt", f"{bad.path}.crt"]
    assert subject.unverified(paths, SITE.anchors) == {paths[1]}
    assert subject.unverified(paths, "") == set(paths)
    assert subject.unverified([], SITE.anchors) == set()


def test_the_trust_store_of_the_system_plays_no_part(tmp_path: Path) -> None:
    """A chain that only the system would trust is not good."""
    SITE.install(want(tmp_path))
    hashed = subprocess.run(
        ["openssl", "x509", "-hash", "-noout"], input=SITE.anchors, capture_output=True, text=True, check=True
    ).stdout.strip()
    (tmp_path / f"{hashed}.0").write_text(SITE.anchors)
    (tmp_path / "bundle.pem").write_text(SITE.anchors)
    previous = dict(os.environ)
    os.environ |= {"SSL_CERT_DIR": str(tmp_path), "SSL_CERT_FILE": str(tmp_path / "bundle.pem")}
    try:
        other = make_root("another root CA", 86400, now()).certificate_pem()
        assert subject.unverified([f"{tmp_path}/host.crt"], other) == {f"{tmp_path}/host.crt"}
    finally:
        os.environ.clear()
        os.environ.update(previous)


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "tls").symlink_to(tmp_path / "real")
    with pytest.raises(FilesError, match="not a plain directory"), opened(tmp_path / "tls"):
        pass
    assert tree(tmp_path / "real") == []


def test_a_key_that_is_a_link_is_neither_read_nor_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    directory = tmp_path / "tls"
    directory.mkdir()
    (directory / "host.key.new").symlink_to(elsewhere)
    with opened(directory) as pair:
        with pytest.raises(FilesError):
            pair.request()
        pair.write("host.key.new", b"content")
    assert elsewhere.read_text() == "precious"
    assert not (directory / "host.key.new").is_symlink()


def test_wrong_modes_are_seen_and_put_right(tmp_path: Path) -> None:
    SITE.install(want(tmp_path))
    (tmp_path / "host.key").chmod(0o644)
    with opened(tmp_path) as pair:
        assert len(pair.wrong_attributes()) == 1
        assert "0644 where" in pair.wrong_attributes()[0]
        pair.apply_attributes("host.key", "host.crt")
        assert pair.wrong_attributes() == []


def test_an_owner_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert subject.owner_of(want(tmp_path, owner="nobody-of-that-name")) is None
    assert subject.owner_of(want(tmp_path, group="nobody-of-that-name")) is None
    assert subject.owner_of(want(tmp_path)) == Owner(0, 0)


# ------------------------------------------------------------------------------------------------------------ reloading


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for systemd, which a test machine need not run: units in `active` run, those in `broken` refuse."""
    home = tmp_path / "systemd"
    home.mkdir()
    program = home / "systemctl"
    program.write_text(
        "#!/bin/sh\n"
        f'cd {home}\nfor unit; do :; done\necho "$@" >> calls\n'
        'case $1 in show) [ -e "active-$unit" ] && echo active || echo inactive;;\n'
        '*) [ ! -e "broken-$unit" ] || { echo refused >&2; exit 1; };; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    return home


def test_units_that_run_are_reloaded_once_and_others_left_alone(tmp_path: Path, systemctl: Path) -> None:
    (systemctl / "active-a.service").touch()
    subject.mark(["a.service", "b.service"], str(tmp_path / "state"))
    assert subject.marked(str(tmp_path / "state")) == ["a.service", "b.service"]
    assert subject.reload_marked(str(tmp_path / "state")) == ["a.service"]
    assert subject.marked(str(tmp_path / "state")) == []
    calls = (systemctl / "calls").read_text().splitlines()
    assert [call for call in calls if not call.startswith("show")] == ["try-reload-or-restart a.service"]


def test_a_unit_that_refuses_stays_marked(tmp_path: Path, systemctl: Path) -> None:
    for name in ("active-a.service", "active-b.service", "broken-a.service"):
        (systemctl / name).touch()
    subject.mark(["a.service", "b.service"], str(tmp_path / "state"))
    with pytest.raises(FilesError, match=r"a\.service: refused"):
        subject.reload_marked(str(tmp_path / "state"))
    assert subject.marked(str(tmp_path / "state")) == ["a.service"]
    (systemctl / "broken-a.service").unlink()
    assert subject.reload_marked(str(tmp_path / "state")) == ["a.service"]


def test_a_name_that_is_no_unit_is_refused(tmp_path: Path) -> None:
    for name in ("../../etc/passwd", "--help", "a", ""):
        with pytest.raises(FilesError):
            subject.mark([name], str(tmp_path / "state"))
