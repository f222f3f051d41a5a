# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals that end a module, such as that of a lost connection, while it is in the middle of something."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def heeded(heed: Callable[[str], None], *numbers: signal.Signals) -> Iterator[None]:
    """Within the block, call `heed` with the name of a signal that comes; afterwards all is as it was.

    Args:
        heed: takes the name, such as `SIGHUP`; what it raises is raised where the block is.
        numbers: the signals.
    """
    before = {number: signal.signal(number, lambda came, _frame: heed(signal.Signals(came).name)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
