"""The unlearning mathematics: boundary search, targets, objective, local steps. Pure torch; no files, no network, no clock."""

from excise.client.unlearning.boundary import BoundaryPath, boundary_search
from excise.client.unlearning.central import Unlearned, unlearn
from excise.client.unlearning.local import Diverged
from excise.client.unlearning.targets import make_targets

__all__ = ["BoundaryPath", "Diverged", "Unlearned", "boundary_search", "make_targets", "unlearn"]
