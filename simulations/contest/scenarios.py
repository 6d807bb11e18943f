"""The scenarios of the benchmark, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from excise.common.errors import ConfigError, did_you_mean
from excise.common.models import ModelSpec
from excise.common.request import ForgetRequest, RequestKind
from excise.common.settings import TrainingSettings
from excise.simulations.contest.fashion import CLASSES, WITHDRAWN, Recipe, fashion_file, mnist_file
from excise.simulations.scenario import Partition, Scenario, ScenarioData, read_scenario

FORGOTTEN = 3
"""The class of which something is forgotten: dresses of Fashion-MNIST, threes of MNIST."""
WHOLE_SITE = "hospital-2"
FASHION = ModelSpec(name="allcnn", classes=CLASSES, size=16, width=0.25, mean=0.2860, std=0.3530)
MNIST = FASHION.model_copy(update={"mean": 0.1307, "std": 0.3081})
TRAINING = TrainingSettings(rounds=30, batch_size=32, learning_rate=0.1, augment=False)
"""Until images are learned by heart: of what was not, there is nothing to forget."""
Spread = Literal["iid", "dirichlet", "forget-on-one-site"]
Make = Callable[[Path], Scenario]


def _brain(name: str, where: str | None, home: Path) -> Scenario:
    """A scenario of the demo's hospitals, or of their images of a whole site."""
    found = read_scenario(name)
    if where is None:
        return found
    request = ForgetRequest(
        id="site-leaves",
        kind=RequestKind.SITE,
        where=where,
        reason="The hospital leaves the network.",
        requested_by="benchmark",
    )
    return found.model_copy(update={"name": "brain-mri-site", "request": request})


def _request(name: str, kind: RequestKind, where: str) -> ForgetRequest:
    return ForgetRequest(id=name.replace(".", "-"), kind=kind, where=where, reason="Benchmark.", requested_by="benchmark")


def _fashion(
    name: str, kind: RequestKind, where: str, recipe: Recipe, spread: Spread, home: Path, alpha: float = 0.5, sites: int = 4
) -> Scenario:
    return Scenario(
        name=name,
        data=ScenarioData(source="npz", path=fashion_file(home, recipe)),
        partition=Partition(sites=sites, kind=spread, alpha=alpha),
        model=FASHION,
        training=TRAINING,
        request=_request(name, kind, where),
    )


def _samples(
    share: float, spread: Spread = "iid", alpha: float = 0.5, sites: int = 4, of: int | None = FORGOTTEN
) -> tuple[str, Make]:
    name = f"fashion-{100 * share:g}-percent"
    # Two digits of sites, so that names sort as numbers do.
    name += {"iid": "", "dirichlet": f"-dirichlet-{alpha:g}", "forget-on-one-site": f"-one-of-{sites:02}"}[spread]
    where = f'patient matches "{WITHDRAWN}-*"'
    recipe = Recipe(share=share, of=of)
    return name, partial(_fashion, name, RequestKind.SAMPLES, where, recipe, spread, alpha=alpha, sites=sites)


def _class(name: str, spread: Spread) -> tuple[str, Make]:
    return name, partial(_fashion, name, RequestKind.CLASS, f"class = {FORGOTTEN}", Recipe(), spread)


def _digit(name: str, spread: Spread) -> tuple[str, Make]:
    def make(home: Path) -> Scenario:
        return Scenario(
            name=name,
            data=ScenarioData(source="npz", path=mnist_file(home, Recipe())),
            partition=Partition(kind=spread),
            model=MNIST,
            training=TRAINING,
            request=_request(name, RequestKind.CLASS, f"class = {FORGOTTEN}"),
        )

    return name, make


def _in_a_row(home: Path) -> Scenario:
    """Three lists of patients, each of 3 % of all images, which are forgotten one after another."""
    name, lists = "fashion-three-in-a-row", 3
    requests = tuple(
        _request(f"list-{number}", RequestKind.PATIENTS, f'patient matches "{WITHDRAWN}-{number}-*"')
        for number in range(1, lists + 1)
    )
    return Scenario.model_validate(
        {
            "name": name,
            "data": ScenarioData(source="npz", path=fashion_file(home, Recipe(share=0.03, lists=lists))),
            "model": FASHION,
            "training": TRAINING,
            "requests": requests,
        }
    )


SCENARIOS: dict[str, Make] = dict(
    (
        ("brain-mri", partial(_brain, "brain-mri", None)),
        ("brain-mri-patients", partial(_brain, "brain-mri-patients", None)),
        ("brain-mri-site", partial(_brain, "brain-mri", f"site = {WHOLE_SITE}")),
        _class("fashion-class-one-site", "forget-on-one-site"),
        _class("fashion-class-all-sites", "iid"),
        _samples(0.01, of=None),  # of one class it would be four images, and of some seeds none to train on
        *(_samples(share) for share in (0.1, 0.5)),
        *(_samples(0.1, "dirichlet", alpha) for alpha in (0.1, 0.5)),
        *(_samples(0.1, "forget-on-one-site", sites=sites) for sites in (2, 4, 8, 16, 32, 64)),
        (
            "fashion-mislabelled",
            partial(
                _fashion,
                "fashion-mislabelled",
                RequestKind.LABELS,
                f'patient matches "{WITHDRAWN}-*"',
                Recipe(share=0.3, mislabelled=True),
                "forget-on-one-site",
            ),
        ),
        ("fashion-three-in-a-row", _in_a_row),
        _digit("mnist-class", "iid"),
        _digit("mnist-class-one-site", "forget-on-one-site"),
    )
)
"""Each makes its scenario; those of Fashion-MNIST and MNIST write their images below the folder that they are given."""


def scenario_named(name: str, home: Path) -> Scenario:
    """A scenario by name, or the one of a user's own file.

    Raises
    ------
    ConfigError : there is none of this name, and no such file
    DataError : its data is not installed
    """
    if name in SCENARIOS:
        return SCENARIOS[name](home)
    if name.endswith(".toml"):
        return read_scenario("", Path(name))
    raise ConfigError(f"unknown scenario '{name}': {did_you_mean(name, SCENARIOS)}, or the path of a scenario's TOML file")
