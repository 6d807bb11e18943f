"""All that one model is judged by, under the names of `metrics.known_metrics`, beside the original and the retrained model.

What a single model does not tell is not in it: U-LiRA and RMIA, which need shadow models, and costs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from excise.client.rounds.features import features_of
from excise.client.unlearning.inference import predict
from excise.common.settings import Settings, TrainingSettings
from excise.simulations.judging.collateral import collateral_accuracy, nearest_retain
from excise.simulations.judging.depth import linear_probe
from excise.simulations.judging.distance import Accuracies, divergence, tow
from excise.simulations.judging.membership import OutputAttack, loss_attack, output_attack
from excise.simulations.judging.persistence import (
    Images,
    RelearnRatio,
    RelearnSettings,
    goal_of,
    relearn,
    relearn_ratio,
    resurfaced,
    taught,
)
from excise.simulations.judging.registry import Metric, Registry, shortfall, signed_gap
from excise.simulations.judging.roc import Attack
from excise.simulations.judging.utility import by_group, utility, worst_site

NEAR = 0.1
"""Share of the retain set that counts as near to the forget set."""
SETS = ("forget", "retain", "test")
"""Of which accuracies are told."""


class JudgingSettings(Settings):
    """How the tests that train are done: the same for all models that are compared."""

    relearn: RelearnSettings = RelearnSettings()
    """Of the relearn test."""
    training: TrainingSettings
    """Of the retain-only epoch."""


@dataclass(frozen=True)
class Case:
    """Something to forget, and the images by which it is judged.

    Attributes
    ----------
    forget, retain : training images; each (N, channels, *spatial) in [0, 1] and classes (N,)
    test : images that were never trained on
    alike : such as well, of the forget set's classes and devices, with which its losses are compared; at least one
    whole_class : whether a class is forgotten as a whole, and not some of its images
    sites : of each test image its site; empty where there is none
    patients : of the forget images and of the `alike` ones whose they are; None where each is of its own

    Raises
    ------
    ValueError : there are none that are alike
    """

    forget: Images
    retain: Images
    test: Images
    alike: Images
    whole_class: bool
    sites: tuple[str, ...] = ()
    patients: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None

    def __post_init__(self) -> None:
        if not len(self.alike[1]):
            raise ValueError("expected unseen images of the forget set's classes and devices to compare with, got none")


@dataclass(frozen=True)
class Card:
    """A model's scores.

    Attributes
    ----------
    values : by metric; NaN where it cannot be told, such as a relearn ratio of which only a bound is known
    relearned : that ratio, or its bound
    loss : the loss-threshold attack, with the interval of its AUC
    outputs : the attack by outputs; where its own AUC is near 0.5 it says nothing
    """

    values: Mapping[str, float]
    relearned: RelearnRatio
    loss: Attack
    outputs: OutputAttack


def scorecards(
    models: Mapping[str, nn.Module], original: str, retrained: str, case: Case, settings: JudgingSettings, seed: int = 0
) -> dict[str, Card]:
    """Judge models, all by the same images, draws and settings.

    Parameters
    ----------
    models : made by `common.models.build_model`, by name; they are left as they are
    original, retrained : which of them were trained with, and without, the forget set
    seed : of all draws

    Raises
    ------
    ValueError : one of the two is not among the models, or the images do not do for a metric
    """
    if missing := {original, retrained} - models.keys():
        raise ValueError(
            f"expected the original and the retrained model among the models, missing: {', '.join(sorted(missing))}"
        )
    logits = {name: _logits(model, case) for name, model in models.items()}
    accuracies = {name: _accuracies(of, case) for name, of in logits.items()}
    tuned = taught(case.forget[1], seed=seed)
    goal, again = goal_of(accuracies[original].forget), (case.forget[0][tuned], case.forget[1][tuned])
    relearned = {name: relearn(model, again, case.forget, goal, settings.relearn, seed) for name, model in models.items()}
    forget_MF, retain_NF = (features_of(models[original], x) for x in (case.forget[0], case.retain[0]))
    near = nearest_retain(forget_MF, retain_NF, max(1, round(NEAR * len(retain_NF))))
    cards = {}
    for name, model in models.items():
        ratio = relearn_ratio(relearned[name], relearned[retrained])
        own, reference = logits[name], logits[retrained]
        values = _utility(own, logits[original], case)
        values |= {f"{of}_js": divergence(own[of], reference[of], of) for of in ("forget", "test")}
        values["tow"] = tow(accuracies[name], accuracies[retrained])
        loss, outputs = _attacks(own, case, seed)
        values |= {"loss_auc": loss.auc, "loss_tpr": loss.tpr, "output_attack_members": outputs.members}
        values["probe_accuracy"] = _depth(model, case, seed)
        values["near_retain_accuracy"] = collateral_accuracy(own["retain"], case.retain[1], near)
        values["relearn_ratio"] = ratio.exact
        values["resurfaced"] = resurfaced(model, case.forget, case.retain, settings.training, seed).rise
        cards[name] = Card(values, ratio, loss, outputs)
    return cards


@dataclass(frozen=True)
class Row:
    """One metric of an unlearned model in a table: beside the original and the retrained one.

    Attributes
    ----------
    metric : what it is, with its ideal
    original, retrained, unlearned : values, NaN where there is none
    gap : unlearned minus retrained
    shortfall : how far the unlearned model is from the ideal, at least 0 (`registry.shortfall`)
    """

    metric: Metric
    original: float
    retrained: float
    unlearned: float
    gap: float
    shortfall: float


def table(
    original: Mapping[str, float], retrained: Mapping[str, float], unlearned: Mapping[str, float], known: Registry
) -> list[Row]:
    """Rows of all metrics that one of the three has, in the registry's order.

    Raises
    ------
    ValueError : a value of an unknown metric, or out of its range
    """
    named = {known.get(name).name for values in (original, retrained, unlearned) for name in values}
    rows = []
    for metric in known.all():
        if metric.name in named:
            first, gold, own = (values.get(metric.name, math.nan) for values in (original, retrained, unlearned))
            rows.append(Row(metric, first, gold, own, signed_gap(own, gold), shortfall(metric, own, gold)))
    return rows


def _logits(model: nn.Module, case: Case) -> dict[str, Tensor]:
    return {name: predict(model, getattr(case, name)[0]) for name in ("forget", "retain", "test", "alike")}


def _accuracies(logits: Mapping[str, Tensor], case: Case) -> Accuracies:
    return Accuracies(**{name: utility(logits[name], getattr(case, name)[1], name).accuracy for name in SETS})


def _utility(logits: Mapping[str, Tensor], original: Mapping[str, Tensor], case: Case) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in SETS:
        scores = asdict(utility(logits[name], getattr(case, name)[1], name))
        values |= {f"{name}_{score}": value for score, value in scores.items() if score != "images"}
    if case.sites:
        before, after = (
            {site: of.accuracy for site, of in by_group(one["test"], case.test[1], case.sites).items()}
            for one in (original, logits)
        )
        worst = worst_site(before, after)
        values |= {"worst_site_accuracy": worst.value, "worst_site_change": worst.harm}
    return values


def _attacks(logits: Mapping[str, Tensor], case: Case, seed: int) -> tuple[Attack, OutputAttack]:
    forget, alike = (logits["forget"], case.forget[1]), (logits["alike"], case.alike[1])
    # The attacker learns on classes of which both sides have images: of a forgotten class there are no retain images.
    unseen = torch.isin(case.test[1], case.retain[1].unique())
    outputs = output_attack(logits["retain"], logits["test"][unseen], logits["forget"], seed)
    return loss_attack(forget, alike, patients=case.patients, seed=seed), outputs


def _depth(model: nn.Module, case: Case, seed: int) -> float:
    """Of a class: a head fitted to all training images, on unseen ones of it. Of samples: one fitted to the rest, on them."""
    retain, forget = (features_of(model, images[0]).cpu() for images in (case.retain, case.forget))
    if not case.whole_class:
        everything = torch.ones(len(forget), dtype=torch.bool)
        return linear_probe((retain, case.retain[1]), (forget, case.forget[1]), everything, seed).forget
    fitted = torch.cat([retain, forget]), torch.cat([case.retain[1], case.forget[1]])
    alike = features_of(model, case.alike[0]).cpu()
    return linear_probe(fitted, (alike, case.alike[1]), torch.isin(case.alike[1], case.forget[1].unique()), seed).forget
