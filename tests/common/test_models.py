"""Models: the same seed builds the same weights, and building one leaves no trace."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Generator, nn

from excise.common.errors import ConfigError
from excise.common.models import ModelSpec, Normalise, build_model, known_models, model
from excise.common.weights import digest

every_model = pytest.mark.parametrize("name", known_models())


def _spec(name: str) -> ModelSpec:
    return ModelSpec(name=name, classes=3, channels=1, size=16, width=0.05)


def _images(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 1, 16, 16, generator=Generator().manual_seed(0))


@every_model
def test_same_seed_same_weights(name: str) -> None:
    spec = _spec(name)
    assert digest(build_model(spec, 1).state_dict()) == digest(build_model(spec, 1).state_dict())
    assert digest(build_model(spec, 1).state_dict()) != digest(build_model(spec, 2).state_dict())


@every_model
def test_global_generator_is_neither_used_nor_moved(name: str) -> None:
    before = torch.get_rng_state()
    first = digest(build_model(_spec(name)).state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # elsewhere in the stream
    try:
        assert digest(build_model(_spec(name)).state_dict()) == first
    finally:
        torch.set_rng_state(before)


@every_model
def test_head_of_features_is_forward(name: str) -> None:
    net, x = build_model(_spec(name)).eval(), _images()
    with torch.no_grad():
        logits_NC = net(x)
        features = net.features(x)
        assert torch.equal(net.head(features), logits_NC)
        torch.testing.assert_close(net.backbone((x - 0.5) / 0.25), features)
    assert logits_NC.shape == (2, 3)
    assert features.ndim == 2
    assert all(key.startswith(("backbone.", "head.")) for key in net.state_dict())


@every_model
def test_takes_colour_and_other_sizes(name: str) -> None:
    spec = ModelSpec(name=name, classes=2, channels=3, size=20, width=0.05)
    with torch.no_grad():
        assert build_model(spec).eval()(torch.rand(1, 3, 20, 20, generator=Generator().manual_seed(0))).shape == (1, 2)


def test_resnet18_shrinks_large_images_early() -> None:
    small, large = (build_model(ModelSpec(name="resnet18", size=size)).state_dict() for size in (64, 65))
    assert small["backbone.conv1.weight"].shape == (64, 1, 3, 3)
    assert large["backbone.conv1.weight"].shape == (64, 1, 7, 7)


def test_normalise() -> None:
    assert Normalise(0.5, 0.25)(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-2, 0, 2]


def test_normalisation_is_the_first_layer() -> None:
    plain, shifted = (ModelSpec(size=16, width=0.05, mean=mean) for mean in (0.5, 0.3))
    x = _images() * 0.5 + 0.2
    with torch.no_grad():
        torch.testing.assert_close(build_model(plain).eval()(x), build_model(shifted).eval()(x - 0.2))


def test_an_unknown_model_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="unknown model 'alcnn': did you mean 'allcnn'"):
        build_model(ModelSpec(name="alcnn"))
    with pytest.raises(ConfigError, match=r"known: allcnn.*resnet18"):
        build_model(ModelSpec(name="zzz"))


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="registered already"):
        model("allcnn")(lambda spec: (nn.Identity(), nn.Identity()))


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"size": 8}, {"std": 0.0}, {"mean": float("nan")}, {"depth": 3}])
def test_a_wrong_spec_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ModelSpec(**wrong)
