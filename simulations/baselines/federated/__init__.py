"""Methods for a federation, in one process. Ours is the same mathematics as that of the real apps (`excise simulate`)."""

from excise.simulations.baselines.federated.ascent import ASCENT
from excise.simulations.baselines.federated.fed_eraser import FED_ERASER
from excise.simulations.baselines.federated.fed_osd import FED_OSD
from excise.simulations.baselines.federated.fed_quit import FED_QUIT
from excise.simulations.baselines.federated.fine_tune import FINE_TUNE
from excise.simulations.baselines.federated.not_ import NOT
from excise.simulations.baselines.federated.ours import OURS
from excise.simulations.baselines.federated.puf import PUF
from excise.simulations.baselines.federated.retrain import RETRAIN

BASELINES = (RETRAIN, FINE_TUNE, ASCENT, FED_ERASER, PUF, NOT, FED_OSD, FED_QUIT)

__all__ = ["BASELINES", "OURS"]
