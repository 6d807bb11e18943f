"""What the commands of simulations share."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

TITLES = {
    "hospitals": "Preparing the hospitals",
    "original": "Training the deployed model",
    "unlearned": "Unlearning",
    "retrained": "Retraining without the forget set",
    "report": "Writing the report",
}


class BackendName(StrEnum):
    """What carries the messages of a simulation."""

    FLOWER = "flower"
    INPROCESS = "inprocess"


def cache_folder() -> Path:
    """Where simulated hospitals are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "excise"
