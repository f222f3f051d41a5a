# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that hold secrets leave no line in the journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.groundplane.onprem.plugins.module_utils.unlogged import UnloggedModule

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def logged(monkeypatch: pytest.MonkeyPatch, make: Callable[..., AnsibleModule]) -> list[str]:
    """What a call writes to the journal, with `no_log` as a task without it has it."""
    lines: list[str] = []
    monkeypatch.setattr(AnsibleModule, "log", lambda _self, msg, **_arguments: lines.append(json.dumps(msg)))
    with patch_module_args({"sha256": "canary", "_ansible_no_log": False}):
        make({"sha256": {"type": "str"}})
    return lines


def test_a_call_is_not_in_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logged(monkeypatch, UnloggedModule) == []


def test_the_way_of_ansible_itself_would_log_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, `no_log=True` has become enough."""
    assert "canary" in "".join(logged(monkeypatch, lambda spec: AnsibleModule(spec, no_log=True)))
