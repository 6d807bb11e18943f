"""Every metric of the benchmark, in the order of its pages."""

from __future__ import annotations

import math

from excise.simulations.judging.registry import RETRAINED, Better, Metric, Registry
from excise.simulations.judging.roc import FALSE_ALARMS

SETS = {"forget": "the forget set", "retain": "the retain set", "test": "held-out images"}
SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "mean accuracy of the classes",
    "auroc": "area under one class against the rest, mean of the classes",
    "calibration_error": "expected calibration error",
}
ATTACKS = {
    "loss": "the loss-threshold attack, forget against held-out images",
    "ulira": "U-LiRA, an attacker for each image by shadow models",
    "rmia": "RMIA, beside shadow models and a population",
}
COSTS = {
    "images": "images sent through the model",
    "seconds": "wall time",
    "rounds": "rounds",
    "bytes_up": "bytes from each site",
    "bytes_down": "bytes to each site",
    "peak_bytes": "peak memory",
}


def known_metrics(*, whole_class: bool = False) -> Registry:
    """A registry of all of them. Of classes and sites each has the metric of its set, and the worst site one of its own.

    Parameters
    ----------
    whole_class : a class is forgotten, and not some of its images. No unseen images are alike then even to a retrained
        model, so retrained's is ideal for the loss attack in place of 0.5
    """
    known = Registry()
    for metric in (*_utility(), *_distance(), *_membership(whole_class), *_features(), *_persistence(), *_cost()):
        known.add(metric)
    return known


def _as_retrained(name: str, group: str, text: str, low: float = 0.0, unit: str = "share") -> Metric:
    return Metric(name, group, unit, low, 1.0, RETRAINED, Better.CLOSER, text)


def _utility() -> list[Metric]:
    found = [
        _as_retrained(f"{of}_{score}", "utility", f"{said} on {where}")
        for of, where in SETS.items()
        for score, said in SCORES.items()
    ]
    worst = _as_retrained("worst_site_accuracy", "utility", "accuracy at the worst site")
    change = _as_retrained("worst_site_change", "utility", "change of accuracy at the site that lost most", -1.0)
    return [*found, worst, change]


def _distance() -> list[Metric]:
    js = [
        Metric(
            f"{of}_js", "distance", "bits", 0.0, 1.0, 0.0, Better.LOWER, f"divergence of outputs from retrained's on {where}"
        )
        for of, where in SETS.items()
        if of != "retain"
    ]
    text = "closeness of the accuracies on the three sets to retrained's"
    return [*js, Metric("tow", "distance", "share", 0.0, 1.0, 1.0, Better.HIGHER, text)]


def _membership(whole_class: bool) -> list[Metric]:
    found: list[Metric] = []
    for name, said in ATTACKS.items():
        for key, guessing, what in (("auc", 0.5, "AUC"), ("tpr", FALSE_ALARMS, "hits at 1 % false alarms")):
            ideal = RETRAINED if whole_class and name == "loss" else guessing
            text = f"{what} of {said}"
            found.append(Metric(f"{name}_{key}", "membership", "share", 0.0, 1.0, ideal, Better.CLOSER, text))
    outputs = "of the forget set that a classifier of outputs calls trained on"
    return [*found, _as_retrained("output_attack_members", "membership", f"share {outputs}")]


def _features() -> list[Metric]:
    return [
        _as_retrained("probe_accuracy", "depth", "accuracy of a fresh head on forget images"),
        _as_retrained("near_retain_accuracy", "collateral", "accuracy on the retain images nearest to the forget set"),
    ]


def _persistence() -> list[Metric]:
    ratio = "steps until it is relearned ÷ retrained's"
    return [
        Metric("relearn_ratio", "persistence", "ratio", 0.0, math.inf, 1.0, Better.CLOSER, ratio),
        _as_retrained("resurfaced", "persistence", "rise of forget accuracy in a retain-only epoch", -1.0),
        *_in_a_row(),
    ]


def _in_a_row() -> list[Metric]:
    """Of several requests one after another alone (`contest/in_a_row.py`)."""
    earlier = "what earlier requests forgot"
    text = "mean closeness to the model retrained for it, after each earlier request"
    return [
        _as_retrained("earlier_forget_accuracy", "persistence", f"accuracy on {earlier}, after the last one"),
        _as_retrained("came_back", "persistence", f"rise of accuracy on {earlier}, while later ones were carried out", -1.0),
        Metric("earlier_tow", "persistence", "share", 0.0, 1.0, 1.0, Better.HIGHER, text),
    ]


def _cost() -> list[Metric]:
    return [
        Metric(f"{name}_ratio", "cost", "ratio", 0.0, math.inf, 0.0, Better.LOWER, f"{said} ÷ retraining's")
        for name, said in COSTS.items()
    ]
