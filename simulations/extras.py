"""Pictures that only a simulation can have, because it holds every site's images: forget images and an embedding map.

In a deployment nobody but the site sees these; the coordinator's report is made without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA

from excise.client.site import open_site
from excise.common.models import build_model
from excise.common.weights import load_weights
from excise.server.plan import Plan
from excise.server.record import RunFolder
from excise.server.report import ReportExtras
from excise.simulations.scenario import Scenario
from excise.simulations.sites import Sites

EXAMPLES = 16
POINTS_PER_SET = 300  # enough to see the shape, few enough to see the points


def report_extras(scenario: Scenario, plan: Plan, sites: Sites, folder: Path) -> ReportExtras:
    """Example forget images, and features before and after on the two main axes of the features before."""
    images: dict[str, list[torch.Tensor]] = {"forget": [], "retain": [], "held-out": []}
    captions: list[str] = []
    for path in sites.configs:
        site = open_site(path)
        sets = site.select(plan.request)
        for name, index in (("forget", sets.forget), ("retain", sets.retain), ("held-out", sets.held_out)):
            images[name].append(site.x[index])
        captions += [_caption(site.scan.rows[i].label, sites.classes) for i in sets.forget.tolist()]
    joined = {name: _spread(torch.cat(parts), POINTS_PER_SET) for name, parts in images.items()}
    forget = torch.cat(images["forget"])
    chosen = np.linspace(0, len(forget) - 1, min(EXAMPLES, len(forget))).astype(int)
    x = torch.cat(list(joined.values()))
    original = RunFolder(folder).load_phase("original")
    before = original.weights if original else load_weights(_deployed(plan))
    features_before, features_after = (
        _features(plan, weights, x) for weights in (before, load_weights(folder / "model.safetensors"))
    )
    projection = PCA(n_components=2, random_state=0).fit(features_before)
    simulated = scenario.data.source == "brain-mri"
    return ReportExtras(
        examples=[(_picture(forget[i]).numpy(), captions[i]) for i in chosen],
        embedding_before=projection.transform(features_before),
        embedding_after=projection.transform(features_after),
        embedding_set=[name for name, part in joined.items() for _ in range(len(part))],
        note="Hospitals, patients, scanners and the scanners' intensity response are simulated." if simulated else "",
    )


def _caption(label: int | tuple[int, ...], names: Sequence[str]) -> str:
    if isinstance(label, int):
        return names[label]
    return ", ".join(names[c] for c in label) or "no label"


def _picture(x: torch.Tensor) -> torch.Tensor:
    """One grey picture of an image (channels, rows, columns), or of a volume's middle slice."""
    return x.mean(0) if x.ndim == 3 else x[:, x.shape[1] // 2].mean(0)


def _spread(x: torch.Tensor, count: int) -> torch.Tensor:
    return x[np.linspace(0, len(x) - 1, min(count, len(x))).astype(int)] if len(x) else x


def _features(plan: Plan, weights: dict[str, torch.Tensor], x: torch.Tensor) -> np.ndarray:
    model = build_model(plan.model)
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        return torch.cat([model.features(batch) for batch in x.split(256)]).numpy()


def _deployed(plan: Plan) -> Path:
    assert plan.deployed is not None  # without it the run has trained an original
    return plan.deployed
