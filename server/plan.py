"""What a coordinator is asked to do: everything a run depends on but the sites' data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from excise.common.embedding import MOST, POINTS
from excise.common.errors import ConfigError
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import CompositionSettings, RoundSettings, Settings, TrainingSettings, UnlearningSettings
from excise.server.composition import recovery_rounds

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Candidate(Settings):
    """One way to carry out the request, tried beside others."""

    name: Name
    unlearning: UnlearningSettings = UnlearningSettings()
    composition: CompositionSettings = CompositionSettings()

    @property
    def phase(self) -> str:
        """Name of its checkpoint."""
        return "unlearned" if self.name == ONLY else f"unlearned-{self.name}"


class Merge(Settings):
    """A candidate made of others: what each of them changed in the deployed model, composed by a rule.

    With `module_swap`: the heads of `forget` on the backbones of `retain`.
    """

    name: Name
    forget: tuple[Name, ...] = Field(min_length=1)
    """Candidates that the rule treats as forget-holding sites."""
    retain: tuple[Name, ...] = ()
    """Candidates that it treats as retain-only sites."""
    composition: CompositionSettings = CompositionSettings()


class VerificationSettings(Settings):
    """How the revised model is measured further: `server/verification.py`."""

    resamples: int = Field(1000, ge=100, le=100_000)
    """Resamples of the membership AUC's bootstrap interval."""
    resurfacing: bool = False
    """Whether the revised model is trained on for a pass over the retain images, and thrown away, to see what comes back of
    the forget set. One more round that sites count (`limits.rounds`); where there is a retrained model, one more for it."""
    learning_rate: float = Field(0.01, gt=0)
    """Step size of that pass."""
    batch: int = Field(64, ge=2)
    """Retain images in one step of it."""
    steps: int = Field(200, ge=1)
    """Most steps that a site takes in it."""
    embeddings: bool = False
    """Whether sites are asked where the deployed and the revised model put their images, in two dimensions: those that allow
    it show a point for each of some hundreds (`server/embeddings.py`)."""
    embedding_points: int = Field(POINTS, ge=1, le=MOST)
    """Most points of one group (forget, retain, reference) at one site."""


ONLY, ORIGINAL = "unlearned", "original"
"""Name of the candidate of a plan that names none, and that of the deployed model beside candidates."""


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
    """What is forgotten: one request, or several joined (`common/request.py`)."""
    parts: tuple[ForgetRequest, ...] = ()
    """The requests that `request` joins, when it does: each is scored on its own as well."""
    unlearning: UnlearningSettings = UnlearningSettings()
    composition: CompositionSettings = CompositionSettings()
    candidates: tuple[Candidate, ...] = ()
    """Ways to try, each from the deployed model, in place of `unlearning` and `composition` alone."""
    merges: tuple[Merge, ...] = ()
    """Candidates made of those."""
    rounds: RoundSettings = RoundSettings()
    retrain: bool = True
    """Whether to make the reference that unlearning is measured against: the same training without the forget set."""
    retrained: Path | None = None
    """Weights of a retrained reference made earlier; only scored."""
    verification: VerificationSettings = VerificationSettings()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_names(self.candidates, self.merges)
        check_samples(self.request, (self.unlearning, *(candidate.unlearning for candidate in self.candidates)))
        return self

    @property
    def tried(self) -> tuple[Candidate, ...]:
        """The candidates that are unlearned: at least one."""
        return self.candidates or (Candidate(name=ONLY, unlearning=self.unlearning, composition=self.composition),)


def check_compositions(plan: Plan) -> None:
    """Check what is known before anything costs time: rules, their options, and that recovery rounds could train.

    Raises
    ------
    ConfigError : an unknown rule or option, an option out of its range, or recovery rounds without retain images
    """
    pairs = [(candidate.composition, candidate.unlearning) for candidate in plan.tried]
    for composition, unlearning in (*pairs, *((merge.composition, plan.unlearning) for merge in plan.merges)):
        if recovery_rounds(composition) and not unlearning.local.retain_batch:
            raise ConfigError(
                "recovery rounds train on retain images, but retain_batch is 0; raise it, or choose another composition"
            )


def check_samples(request: ForgetRequest, tried: Iterable[UnlearningSettings]) -> None:
    """Check that a sample of the forget images stands for the others only where a whole class is forgotten.

    Raises
    ------
    ValueError : it does not
    """
    if request.kind is not RequestKind.CLASS and any(settings.forget_sample is not None for settings in tried):
        raise ValueError(
            f"forget_sample, as in the preset 'classes', is for requests of whole classes; '{request.id}' is of kind "
            f"{request.kind.value}, of which every image must be searched: use the preset 'samples'"
        )


def check_names(candidates: tuple[Candidate, ...], merges: tuple[Merge, ...]) -> None:
    """Check that names are unique and that merges are of candidates.

    Raises
    ------
    ValueError : they are not
    """
    known = [candidate.name for candidate in candidates]
    names = [*known, *(merge.name for merge in merges)]
    for name in names:
        if names.count(name) > 1 or name in (ONLY, ORIGINAL, "retrained"):
            raise ValueError(f"'{name}' cannot name a candidate: names are unique, and not original, unlearned or retrained")
    for merge in merges:
        for part in (*merge.forget, *merge.retain):
            if part not in known:
                raise ValueError(f"merge '{merge.name}' names '{part}', which is no candidate: {', '.join(known) or 'none'}")
