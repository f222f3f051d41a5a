# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the firewall module that need no root: who is connected, what is written, what takes it back."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.modules import firewall

if TYPE_CHECKING:
    from pathlib import Path


def process(proc: Path, number: int, parent: int, environment: bytes, name: str = "sh") -> None:
    directory = proc / str(number)
    directory.mkdir()
    (directory / "environ").write_bytes(environment)
    (directory / "stat").write_text(f"{number} ({name}) S {parent} 1 1 0 -1")


class TestSshConnection:
    def test_the_nearest_ancestor_that_knows_is_asked(self, tmp_path: Path) -> None:
        process(tmp_path, 10, 1, b"SSH_CONNECTION=192.0.2.1 1 192.0.2.2 22\0")
        process(tmp_path, 20, 10, b"A=b\0SSH_CONNECTION=10.0.0.1 4711 10.0.0.2 22\0C=d\0", "bash) S 1 (")
        process(tmp_path, 30, 20, b"SUDO_USER=x\0")
        assert firewall.ssh_connection(30, tmp_path) == "10.0.0.1 4711 10.0.0.2 22"

    def test_a_console_has_none(self, tmp_path: Path) -> None:
        process(tmp_path, 30, 1, b"SUDO_USER=x\0")
        assert firewall.ssh_connection(30, tmp_path) == ""
        assert firewall.ssh_connection(31, tmp_path) == ""

    def test_the_real_procfs_is_understood(self) -> None:
        environment = {**os.environ, "SSH_CONNECTION": "192.0.2.7 1 192.0.2.8 22"}
        with subprocess.Popen(
            ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True, env=environment
        ) as shell:
            assert shell.stdout is not None
            child = int(shell.stdout.readline())
            try:
                assert firewall.ssh_connection(child) == "192.0.2.7 1 192.0.2.8 22"
            finally:
                os.kill(child, 15)


class TestWrite:
    def test_mode_and_text_are_there_at_once_and_nothing_else_is(self, tmp_path: Path) -> None:
        path = tmp_path / "nftables.conf"
        path.write_text("old")
        firewall._write(path, "new\n", 0o600)
        assert path.read_text() == "new\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(tmp_path.iterdir()) == [path]

    def test_a_failure_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "nftables.conf"
        path.write_text("old")

        def full(_handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(firewall.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            firewall._write(path, "new\n", 0o600)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


class TestRollback:
    """The script itself, with a program in the place of nft that only notes what it is asked."""

    @pytest.fixture
    def state(self, tmp_path: Path) -> Path:
        directory = tmp_path / "state"
        directory.mkdir()
        nft = tmp_path / "nft"
        nft.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
        nft.chmod(0o755)
        (tmp_path / "nftables.conf").write_text("unconfirmed")
        (directory / "previous.nft").write_text("previous")
        (directory / "pending").write_text('{"token": "1"}')
        script = firewall.ROLLBACK.format(state=directory, nft=nft, path=tmp_path / "nftables.conf")
        (directory / "rollback.sh").write_text(script)
        return directory

    def run(self, state: Path) -> None:
        subprocess.run(["sh", state / "rollback.sh"], check=True, capture_output=True)

    def test_kernel_and_file_come_back(self, state: Path) -> None:
        (state / "previous.conf").write_text("before")
        (state / "previous.conf").chmod(0o640)
        self.run(state)
        path = state.parent / "nftables.conf"
        assert (state.parent / "asked").read_text() == f"--file {state}/previous.nft\n"
        assert path.read_text() == "before"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert not (state / "pending").exists()
        assert (state / "rolled-back").read_text() == '{"token": "1"}'

    def test_a_file_that_was_not_there_goes(self, state: Path) -> None:
        self.run(state)
        assert not (state.parent / "nftables.conf").exists()

    def test_what_is_confirmed_is_not_touched(self, state: Path) -> None:
        (state / "pending").unlink()
        self.run(state)
        assert not (state.parent / "asked").exists()
        assert (state.parent / "nftables.conf").read_text() == "unconfirmed"


def test_the_documentation_lists_every_option() -> None:
    documented = yaml.safe_load(firewall.DOCUMENTATION)["options"]
    assert set(documented) == {
        *("rules", "extra_rules", "networks", "log_drops", "log_per_minute", "log_group", "path"),
        *("rollback_seconds", "witnesses", "step", "token"),
    }
