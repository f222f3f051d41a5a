# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that roles put on hosts, as modules."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def loaded(path: Path, **beside: ModuleType) -> Any:
    """A program, which finds what lies beside it on a host.

    Args:
        path: of the program.
        beside: modules of those names.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules.update(beside)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    search = list(sys.path)
    spec.loader.exec_module(module)
    # The program puts its own directory there.
    sys.path[:] = search
    return module
