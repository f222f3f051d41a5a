# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of a module that converges declared objects against a real server have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import difference, summary

W = TypeVar("W")


class Converged(ABC, Generic[W]):
    """A server that is made what is declared."""

    @abstractmethod
    def run(self, wanted: W, *, check: bool = False) -> Any:
        """Converge over a session of its own; what was found and done, with `changes`."""

    @abstractmethod
    def read(self, wanted: W) -> Any:
        """What there is."""

    def both(self, wanted: W) -> Any:
        """Predict, see that nothing changed, do, and see that a second run has nothing to do."""
        before = self.read(wanted)
        predicted = self.run(wanted, check=True)
        assert self.read(wanted) == before
        done = self.run(wanted)
        assert difference(predicted.changes) == difference(done.changes)
        assert summary(predicted.changes) == summary(done.changes)
        again = self.run(wanted)
        assert again.changes == []
        assert self.run(wanted, check=True).changes == []
        return done
