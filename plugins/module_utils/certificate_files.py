# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys and certificates on the host that uses them: make, stage, verify, swap, reload.

Standard library and the `openssl` program only. Shared by the modules `pki_request` and `pki_install` and by the
renewal program, so that a run and the timer leave the same files and finish each other's interrupted work.

A pair is replaced in this order, each step on disk before the next:

1. `<name>.key.new`: a new key, readable by root alone; the live pair is untouched until a certificate for it is here;
2. `<name>.crt.new`: the certificate, only after it was verified against the trust anchor, the key and what is wanted;
3. a mark for each unit to be reloaded; then both files are renamed, key first;
4. the units are reloaded and the marks removed.

Wherever that stops, `Pair.finish` and `reload_marked` complete it.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import re
import secrets
import ssl
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import (
    Certificate,
    CertificateError,
    Profile,
    Wanted,
    differences,
    read_pem,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Seconds that openssl or systemctl may take; a reload of a busy database takes some.
OPENSSL_TIMEOUT = 30
SYSTEMCTL_TIMEOUT = 120
MISSING_OPENSSL = "openssl is not on this host; Debian's package openssl has it, which the role host installs"
CERTIFICATE_MODE = 0o644
STAGED_MODE = 0o600
DIRECTORY_MODE = 0o750
_UNIT = re.compile(r"[A-Za-z0-9@:_.\\-]+\.[a-z]+")


class FilesError(RuntimeError):
    """Something on this host prevents a certificate from being installed; the live pair is as it was."""


@dataclass(frozen=True)
class Owner:
    """User and group of a key as numbers."""

    uid: int
    gid: int


def owner_of(wanted: Wanted) -> Owner | None:
    """The owner of a certificate's files; None as long as the package that makes the user is not installed."""
    try:
        return Owner(pwd.getpwnam(wanted.owner).pw_uid, grp.getgrnam(wanted.group).gr_gid)
    except KeyError:
        return None


@contextlib.contextmanager
def locked(state_directory: str) -> Iterator[None]:
    """Keep a run and the renewal timer off each other's files."""
    Path(state_directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    with (Path(state_directory) / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------------------------- openssl


def _openssl(*arguments: str, given: bytes = b"") -> bytes:
    """What `openssl` prints; a key goes in by standard input, never by a file or an argument."""
    try:
        done = subprocess.run(
            ["openssl", *arguments], input=given, capture_output=True, timeout=OPENSSL_TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        raise FilesError(MISSING_OPENSSL) from error
    except subprocess.TimeoutExpired as error:
        raise FilesError(f"openssl {arguments[0]} took longer than {OPENSSL_TIMEOUT} s") from error
    if done.returncode != 0:
        raise FilesError(f"openssl {arguments[0]}: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout


def new_key() -> bytes:
    """A new P-256 key as PKCS#8 PEM: fast, small, and accepted by all that Debian ships."""
    return _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def signing_request(key: bytes, profile: Profile) -> str:
    """A PKCS#10 request in PEM with the subject and names of a profile, signed by the key.

    The values were checked when the profile was made (`certificate.wanted`), so none can become a second option.
    """
    names = [*(f"DNS:{name}" for name in sorted(profile.dns)), *(f"IP:{address}" for address in sorted(profile.ip))]
    extension = ["-addext", f"subjectAltName={','.join(names)}"] if names else []
    if profile.usages:
        extension += ["-addext", f"extendedKeyUsage={','.join(f'{usage}Auth' for usage in sorted(profile.usages))}"]
    subject = f"/CN={profile.common_name}"
    request = _openssl(
        "req", "-new", "-sha256", "-config", os.devnull, "-key", "/dev/stdin", "-subj", subject, *extension, given=key
    )
    return request.decode("ascii")


def unverified(paths: Sequence[str], anchors: str) -> set[str]:
    """The certificate files among some that do not lead to a trust anchor now; one process for all of them.

    The system's own trust store plays no part. Chains may use the intermediates in any of the files.
    """
    if not paths:
        return set()
    chains = [option for path in paths for option in ("-untrusted", path)]
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-no-CApath",
        "-no-CAstore",
        "-CAfile",
        "/dev/stdin",
        *chains,
        *paths,
    ]
    try:
        done = subprocess.run(
            command, input=anchors.encode(), capture_output=True, timeout=OPENSSL_TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        raise FilesError(MISSING_OPENSSL) from error
    except subprocess.TimeoutExpired as error:
        raise FilesError(f"openssl verify took longer than {OPENSSL_TIMEOUT} s") from error
    good = {line.removesuffix(": OK") for line in done.stdout.decode().splitlines() if line.endswith(": OK")}
    return set(paths) - good


# ------------------------------------------------------------------------------------------------- the files of a pair


class Pair:
    """The files of one certificate, reached through their directory so that no link can lead elsewhere.

    A service's user may own the directory above; with the directory held open and links refused, root never writes
    where that user points.
    """

    def __init__(self, wanted: Wanted, owner: Owner, descriptor: int) -> None:
        """Hold an open directory; `Pair.opened` is the way to get one."""
        self.wanted = wanted
        self.owner = owner
        self._descriptor = descriptor
        self.certificate_file = f"{wanted.name}.crt"
        self.key_file = f"{wanted.name}.key"
        self.staged_certificate = f"{self.certificate_file}.new"
        self.staged_key = f"{self.key_file}.new"

    @classmethod
    @contextlib.contextmanager
    def opened(cls, wanted: Wanted, owner: Owner, *, create: bool) -> Iterator[Pair | None]:
        """The pair of a certificate; None when its directory does not exist and is not to be created.

        Raises:
            FilesError: when the directory is a link or no directory.
        """
        path = Path(wanted.directory)
        if create and not path.is_symlink() and not path.exists():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            os.chown(path, os.geteuid(), owner.gid, follow_symlinks=False)
            path.chmod(DIRECTORY_MODE)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise FilesError(f"{wanted.directory} is not a plain directory: {error.strerror}") from error
        try:
            yield cls(wanted, owner, descriptor)
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        """The content of a file of the directory; None when there is none."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FilesError(f"{self.wanted.directory}/{name}: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """A file readable by root alone, whole or not at all."""
        temporary = f".{name}.{secrets.token_hex(6)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, STAGED_MODE, dir_fd=self._descriptor)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._rename(temporary, name)
        except OSError:
            self.remove(temporary)
            raise

    def remove(self, name: str) -> None:
        """No such file is left."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def _rename(self, source: str, target: str) -> None:
        os.rename(source, target, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        os.fsync(self._descriptor)

    def matches(self, certificate_file: str, key_file: str) -> bool:
        """Whether a certificate and a key belong together, asked of OpenSSL itself."""
        if self.read(certificate_file) is None or self.read(key_file) is None:
            return False
        base = f"/proc/self/fd/{self._descriptor}"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # A service could not use an encrypted key either; without a password OpenSSL would ask a terminal for one.
            context.load_cert_chain(f"{base}/{certificate_file}", f"{base}/{key_file}", password=lambda: b"")
        except (ssl.SSLError, ValueError):
            return False
        return True

    def leaf(self, name: str) -> Certificate | None:
        """The first certificate of a file; None when there is no file or it cannot be read."""
        content = self.read(name)
        if content is None:
            return None
        try:
            return read_pem(content.decode("ascii", "replace"))[0]
        except CertificateError:
            return None

    # ---- what is

    def half_done(self) -> bool:
        """Whether an interrupted swap waits for `finish`."""
        return self.read(self.staged_certificate) is not None

    def wrong_attributes(self) -> list[str]:
        """The live files whose owner, group or mode differ from what is declared, each with the difference."""
        wrong = []
        for name, mode in ((self.key_file, self.wanted.mode), (self.certificate_file, CERTIFICATE_MODE)):
            try:
                have = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            now = f"{have.st_uid}:{have.st_gid} {stat.S_IMODE(have.st_mode):04o}"
            then = f"{self.owner.uid}:{self.owner.gid} {mode:04o}"
            if now != then:
                wrong.append(f"{self.wanted.directory}/{name}: {now} where {then} is declared")
        return wrong

    # ---- what becomes

    def apply_attributes(self, key_file: str, certificate_file: str) -> None:
        """Owner, group and mode as declared; the mode last, so that nobody else reads a key for a moment."""
        for name, mode in ((key_file, self.wanted.mode), (certificate_file, CERTIFICATE_MODE)):
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._descriptor)
            except FileNotFoundError:
                continue
            try:
                os.fchown(descriptor, self.owner.uid, self.owner.gid)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)

    def request(self) -> str:
        """A signing request for the staged key, which is made unless an interrupted run left one."""
        key = self.read(self.staged_key)
        if key is not None:
            try:
                return signing_request(key, self.wanted.profile)
            except FilesError:
                self.remove(self.staged_key)  # cut short while it was written by a full disk, for example
        key = new_key()
        self.write(self.staged_key, key)
        return signing_request(key, self.wanted.profile)

    def stage(self, chain: str, anchors: str, now: float | None = None) -> None:
        """Put a delivered certificate beside its key after checking that it is the one that was wanted.

        Raises:
            FilesError: when it is not; nothing is left of it then.
        """
        what = self.wanted.path
        try:
            certificate = read_pem(chain)[0]
        except CertificateError as error:
            raise FilesError(f"{what}: {error}") from error
        reasons = differences(certificate, self.wanted.profile, time.time() if now is None else now)
        if reasons:
            raise FilesError(f"{what}: the certificate that was delivered is not what was wanted: {'; '.join(reasons)}")
        incoming = f"{self.certificate_file}.incoming"
        self.write(incoming, chain.encode("ascii"))
        if unverified([f"{self.wanted.directory}/{incoming}"], anchors):
            problem = "does not lead to the site's trust anchor"
        elif not (self.matches(incoming, self.staged_key) or self.matches(incoming, self.key_file)):
            problem = "is for a key that is no longer here; ask again"
        else:
            self._rename(incoming, self.staged_certificate)
            return
        self.remove(incoming)
        raise FilesError(f"{what}: the certificate that was delivered {problem}")

    def finish(self) -> bool:
        """Swap a staged pair in, or drop a staged certificate that fits no key here; whether it was swapped."""
        if self.matches(self.staged_certificate, self.staged_key):
            self.apply_attributes(self.staged_key, self.staged_certificate)
            self._rename(self.staged_key, self.key_file)
        elif self.matches(self.staged_certificate, self.key_file):
            self.apply_attributes(self.key_file, self.staged_certificate)
        else:
            self.remove(self.staged_certificate)
            return False
        self._rename(self.staged_certificate, self.certificate_file)
        return True


# ----------------------------------------------------------------------------------------------------------- reloading


def mark(units: Iterable[str], state_directory: str) -> None:
    """Remember on disk, before a swap, which units still run with the old pair."""
    directory = Path(state_directory) / "reload"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for unit in units:
        if not _UNIT.fullmatch(unit):
            raise FilesError(f"{unit!r} is not the name of a unit")
        (directory / unit).touch(mode=0o600)


def marked(state_directory: str) -> list[str]:
    """The units that still run with an old pair."""
    directory = Path(state_directory) / "reload"
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def reload_marked(state_directory: str) -> list[str]:
    """Reload the marked units that run, restarting those that cannot reload; a stopped unit stays stopped.

    Returns:
        The units that were reloaded.

    Raises:
        FilesError: naming each unit that refused; its mark stays, so that the next run tries again.
    """
    reloaded, refused = [], []
    for unit in marked(state_directory):
        try:
            state = _systemctl("show", "--property=ActiveState", "--value", unit)
            if state in {"active", "reloading", "refreshing", "activating"}:
                _systemctl("try-reload-or-restart", unit)
                reloaded.append(unit)
        except FilesError as error:
            refused.append(f"{unit}: {error}")
            continue
        (Path(state_directory) / "reload" / unit).unlink(missing_ok=True)
    if refused:
        raise FilesError(f"not reloaded, still running with the old certificate: {'; '.join(refused)}")
    return reloaded


def _systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", *arguments], capture_output=True, timeout=SYSTEMCTL_TIMEOUT, check=False, text=True
        )
    except FileNotFoundError as error:
        raise FilesError("systemctl is not on this host") from error
    except subprocess.TimeoutExpired as error:
        raise FilesError(f"no answer within {SYSTEMCTL_TIMEOUT} s") from error
    if done.returncode != 0:
        raise FilesError(done.stderr.strip() or f"systemctl ended with {done.returncode}")
    return done.stdout.strip()


# -------------------------------------------------------------------------------------------------- many pairs at once


def reasons_to_request(
    pair: Pair, now: float, renew_before: int | None, maximum_life: int | None, *, trusted: bool
) -> list[str]:
    """Why a pair needs a new certificate; empty when it is good.

    Args:
        pair: the pair.
        now: seconds since 1970.
        renew_before: see `certificate.renew_at`.
        maximum_life: seconds that the certificate may live at most.
        trusted: whether its chain leads to a trust anchor (`unverified` answers that for many files at once).
    """
    certificate = pair.leaf(pair.certificate_file)
    if certificate is None:
        return ["there is none"]
    reasons = differences(certificate, pair.wanted.profile, now, renew_before, maximum_life)
    if not pair.matches(pair.certificate_file, pair.key_file):
        reasons.append("its key is missing or not its own")
    if not trusted and not any("expired" in reason for reason in reasons):
        reasons.append("it does not lead to the site's trust anchor")
    return reasons
