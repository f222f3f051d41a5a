# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures that tests measured, one JSON file each, so that docs/figures.md quotes what was seen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

DIRECTORY = Path(os.environ.get("GROUNDPLANE_RESULTS", Path(__file__).resolve().parent.parent / ".lab" / "results"))


def record(name: str, figures: dict[str, Any]) -> None:
    """Write the figures of one measurement, replacing an earlier one of the same name, and show them."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    (DIRECTORY / f"{name}.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    print(f"\n{name}: {json.dumps(figures, sort_keys=True)}")
