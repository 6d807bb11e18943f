"""Whole cards of small trained models: what a deep, a shallow and a retrained model must look like beside each other."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Generator, nn

from excise.client.training import train_locally
from excise.client.unlearning.inference import predict
from excise.common.models import Classifier, ModelSpec
from excise.common.settings import TrainingSettings
from excise.simulations.judging.checks import Bools
from excise.simulations.judging.metrics import known_metrics
from excise.simulations.judging.persistence import Bound, Images, RelearnSettings
from excise.simulations.judging.rmia import rmia
from excise.simulations.judging.scorecard import Card, Case, JudgingSettings, scorecards, table
from excise.simulations.judging.ulira import ulira

TRAINING = TrainingSettings(rounds=25, batch_size=32, learning_rate=0.1, augment=False, weight_decay=0)
SETTINGS = JudgingSettings(
    relearn=RelearnSettings(learning_rate=0.05, most_steps=300), training=TRAINING.model_copy(update={"learning_rate": 0.01})
)
SIZE = 16


def images(count: int, seed: int, classes: tuple[int, ...] = (0, 1, 2)) -> Images:
    """Noise with one bright band for each class."""
    generator = Generator().manual_seed(seed)
    y = torch.tensor(classes).repeat(count)
    x = 0.5 * torch.rand(len(y), 1, SIZE, SIZE, generator=generator)
    for c in classes:
        x[y == c, :, 5 * c : 5 * c + 2] += 0.3
    return x, y


def noise(count: int, seed: int) -> Images:
    """Images that say nothing of their class: who knows it has learned it by heart."""
    generator = Generator().manual_seed(seed)
    return torch.rand(count, 1, SIZE, SIZE, generator=generator), torch.randint(3, (count,), generator=generator)


def joined(*parts: Images) -> Images:
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def trained(on: Images, seed: int = 0, hidden: int = 16) -> Classifier:
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, hidden), nn.ReLU())
    model = Classifier(ModelSpec(classes=3, size=SIZE), backbone, nn.Linear(hidden, 3))
    for r in range(TRAINING.rounds):
        train_locally(model, *on, TRAINING, r, Generator().manual_seed(1000 * seed + r))
    return model


# --- a class is forgotten ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def class_cards() -> dict[str, Card]:
    forget, retain, test = images(60, 0, (2,)), images(60, 1, (0, 1)), images(60, 2)
    of_class = test[1] == 2
    alike = test[0][of_class], test[1][of_class]
    case = Case(forget, retain, test, alike, whole_class=True, sites=("a", "b", "c", "c") * 45)
    original, retrained = trained(joined(forget, retain)), trained(retain, seed=1)
    shallow = copy.deepcopy(original)
    with torch.no_grad():
        shallow.head.bias[2] -= 30  # type: ignore[union-attr, operator, index]
    models = {"original": original, "retrained": retrained, "shallow": shallow}
    kept = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    cards = scorecards(models, "original", "retrained", case, SETTINGS)
    for name, model in models.items():
        assert all(torch.equal(kept[name][key], value) for key, value in model.state_dict().items())
    return cards


def test_names_are_those_of_the_registry(class_cards: dict[str, Card]) -> None:
    known = {metric.name for metric in known_metrics().all() if metric.group != "cost"}
    expected = {name for name in known if not name.startswith(("ulira", "rmia", "earlier", "came_back"))}
    for card in class_cards.values():
        assert set(card.values) == expected


def test_retrained_is_its_own_measure(class_cards: dict[str, Card]) -> None:
    rows = table(
        *(class_cards[name].values for name in ("original", "retrained", "retrained")), known_metrics(whole_class=True)
    )
    for row in rows:
        if row.metric.name != "forget_auroc":  # of a single class there is none
            assert row.gap == 0, row.metric.name
            assert row.shortfall == 0, row.metric.name


def test_forgotten_in_the_head_alone(class_cards: dict[str, Card]) -> None:
    original, retrained, shallow = (class_cards[name].values for name in ("original", "retrained", "shallow"))
    assert original["forget_accuracy"] > 0.95
    assert shallow["forget_accuracy"] == retrained["forget_accuracy"] == 0
    # By its answers it looks forgotten ...
    assert shallow["tow"] > 0.9 > 0.1 > original["tow"]
    assert original["forget_js"] > 0.8
    # ... and its features, and how fast it learns anew, give it away.
    assert shallow["probe_accuracy"] > 0.9
    assert shallow["relearn_ratio"] < 0.7
    assert class_cards["shallow"].relearned.bound is Bound.EXACT
    assert retrained["relearn_ratio"] == 1
    assert original["relearn_ratio"] == 0
    assert shallow["worst_site_change"] < 0


# --- samples are forgotten --------------------------------------------------------------------------------------------------


def test_samples_learned_by_heart() -> None:
    forget, retain, unseen = noise(60, 0), images(40, 1), noise(60, 3)
    case = Case(forget, retain, images(30, 2), unseen, whole_class=False)
    models = {"original": trained(joined(forget, retain), hidden=64), "retrained": trained(retain, seed=1, hidden=64)}
    cards, again = (scorecards(models, "original", "retrained", case, SETTINGS) for _ in range(2))
    original, retrained = cards["original"].values, cards["retrained"].values
    assert again["original"].values == pytest.approx(original, rel=0, abs=0, nan_ok=True)
    assert original["loss_auc"] > 0.95
    assert cards["original"].loss.low > 0.9
    assert cards["retrained"].loss.low < 0.5 < cards["retrained"].loss.high
    assert retrained["loss_auc"] == pytest.approx(0.5, abs=0.15)
    assert "worst_site_accuracy" not in original
    row = next(row for row in table(original, retrained, original, known_metrics()) if row.metric.name == "loss_auc")
    assert row.shortfall > 0.4


# --- shadow models ----------------------------------------------------------------------------------------------------------


def test_real_shadow_models_that_unlearned_nothing_or_everything() -> None:
    """Sixteen nets that learned random halves by heart: *not unlearned* is found, *never trained on after all* is not."""
    asked, population, rng = noise(40, 0), noise(100, 1), np.random.default_rng(0)
    seen = np.zeros((16, 40), dtype=bool)
    for n in range(40):
        seen[rng.permutation(16)[:8], n] = True
    other: Bools = np.stack([rng.permutation(seen[:, n]) for n in range(40)], axis=1)
    models = []
    for m in range(16):
        rows = torch.from_numpy(seen[m])
        models.append(trained((asked[0][rows], asked[1][rows]), seed=m))
    logits, of_population = (torch.stack([predict(model, x) for model in models]) for x in (asked[0], population[0]))
    kept, gone = ulira(logits, asked[1], seen), ulira(logits, asked[1], other)
    assert kept.auc > 0.95
    assert gone.auc == pytest.approx(0.5, abs=0.1)
    kept, gone = (rmia(logits, asked[1], who, of_population, population[1]) for who in (seen, other))
    assert kept.auc > 0.9
    assert gone.auc == pytest.approx(0.5, abs=0.1)


# --- bad input --------------------------------------------------------------------------------------------------------------


def test_refuses() -> None:
    test = images(6, 0)
    with pytest.raises(ValueError, match="to compare with, got none"):
        Case(test, test, test, (test[0][:0], test[1][:0]), whole_class=True)
    case = Case(images(6, 1, (2,)), images(6, 2, (0, 1)), test, test, whole_class=True, sites=("a",))
    model = trained(test)
    with pytest.raises(ValueError, match="missing: gold, old"):
        scorecards({"mine": model}, "old", "gold", case, SETTINGS)
    with pytest.raises(ValueError, match="a group for each of 18 images, got 1"):
        scorecards({"mine": model}, "mine", "mine", case, SETTINGS)
    with pytest.raises(ValueError, match="unknown metric 'tov'"):
        table({"tov": 1.0}, {}, {}, known_metrics())
    with pytest.raises(ValueError, match="tow: expected a number"):
        table({}, {}, {"tow": 2.0}, known_metrics())
