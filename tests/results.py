# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures that tests measured, one JSON file each, so that docs/figures.md quotes what was seen."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

DIRECTORY = Path(os.environ.get("GROUNDPLANE_RESULTS", Path(__file__).resolve().parent.parent / ".lab" / "results"))


def record(name: str, figures: dict[str, Any]) -> None:
    """Write the figures of one measurement, with time and load, over earlier ones of that name, and show them."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    seen = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "load": round(os.getloadavg()[0], 1), **figures}
    (DIRECTORY / f"{name}.json").write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n")
    print(f"\n{name}: {json.dumps(seen, sort_keys=True)}")
