"""What a coordinator is asked to do: everything a run depends on but the sites' data."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest
from excise.common.settings import CompositionSettings, RoundSettings, Settings, TrainingSettings, UnlearningSettings


class Plan(Settings):
    """One run: a deployed model, a request to forget, and how to carry it out."""

    seed: int = Field(0, ge=0)
    sites: int = Field(ge=1)
    """Sites to wait for before the first round."""
    site_names: tuple[str, ...] = ()
    """Names of those sites where they are known beforehand; they tell which site died before it said its name."""
    model: ModelSpec
    deployed: Path | None = None
    """Weights of the deployed model; without them it is trained first, by ordinary federated averaging."""
    training: TrainingSettings = TrainingSettings()
    request: ForgetRequest
    unlearning: UnlearningSettings = UnlearningSettings()
    composition: CompositionSettings = CompositionSettings()
    rounds: RoundSettings = RoundSettings()
    retrain: bool = True
    """Whether to make the reference that unlearning is measured against: the same training without the forget set."""
    retrained: Path | None = None
    """Weights of a retrained reference made earlier; only scored."""
