"""Methods for images in one place, which a site could run on its own."""

from excise.simulations.baselines.central.bad_teacher import BAD_TEACHER
from excise.simulations.baselines.central.boundary_shrink import BOUNDARY_SHRINK
from excise.simulations.baselines.central.cf_k import CF_K
from excise.simulations.baselines.central.delete import DELETE
from excise.simulations.baselines.central.eu_k import EU_K
from excise.simulations.baselines.central.fine_tune import FINE_TUNE
from excise.simulations.baselines.central.neg_grad import NEG_GRAD
from excise.simulations.baselines.central.ours import OURS
from excise.simulations.baselines.central.random_labels import RANDOM_LABELS
from excise.simulations.baselines.central.salun import SALUN
from excise.simulations.baselines.central.scrub import SCRUB
from excise.simulations.baselines.central.ssd import SSD

BASELINES = (
    FINE_TUNE,
    NEG_GRAD,
    RANDOM_LABELS,
    CF_K,
    EU_K,
    SCRUB,
    BAD_TEACHER,
    SALUN,
    SSD,
    DELETE,
    BOUNDARY_SHRINK,
)

__all__ = ["BASELINES", "OURS"]
