"""Models: the same seed builds the same weights, and building one leaves no trace."""

from __future__ import annotations

import sys

import pytest
import torch
from pydantic import ValidationError
from torch import Generator, nn

from excise.common.errors import ConfigError
from excise.common.models import ModelSpec, Normalise, build_model, known_models
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
    for size in (48, 80):  # on either side of what counts as small
        spec = ModelSpec(name=name, classes=2, channels=3, size=size, width=0.05)
        with torch.no_grad():
            x = torch.rand(1, 3, size, size, generator=Generator().manual_seed(0))
            assert build_model(spec).eval()(x).shape == (1, 2)


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


# --- models of one's own ---------------------------------------------------------------------------------------------------


def tiny(spec: ModelSpec) -> nn.Module:
    """A model of one's own, for images or volumes; it has two linear layers, of which the last is the head."""
    convolution = nn.Conv2d if spec.dims == 2 else nn.Conv3d
    pool = nn.AdaptiveAvgPool2d(1) if spec.dims == 2 else nn.AdaptiveAvgPool3d(1)
    return nn.Sequential(
        convolution(spec.channels, 6, 3), pool, nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, spec.classes)
    )


def no_module(spec: ModelSpec) -> int:
    return spec.classes


class GoesOn(nn.Module):
    """It normalises after its head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(16 * 16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(x.flatten(1))
        return logits.log_softmax(1)


def goes_on(spec: ModelSpec) -> nn.Module:
    return GoesOn(spec.classes)


def large_only(spec: ModelSpec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(10_000, spec.classes))


def headless(spec: ModelSpec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.ReLU())


@pytest.mark.parametrize("dims", [2, 3])
def test_a_model_of_ones_own_by_import_path(dims: int) -> None:
    spec = ModelSpec(name=f"{__name__}:tiny", classes=3, size=16, dims=dims)
    net, x = build_model(spec).eval(), torch.rand(2, 1, *[16] * dims, generator=Generator().manual_seed(0))
    with torch.no_grad():
        assert net(x).shape == (2, 3)
        assert torch.equal(net.head(net.features(x)), net(x))
    assert net.head.in_features == 5
    assert digest(net.state_dict()) == digest(build_model(spec).state_dict())


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("no.such.package:f", "", "no model at 'no.such.package:f'"),
        (f"{__name__}:absent", "", "has no attribute 'absent'"),
        (":tiny", "", "no model at ':tiny'"),
        (f"{__name__}:no_module", "", "made int, expected a torch.nn.Module"),
        (f"{__name__}:headless", "", "it holds none"),
        (f"{__name__}:goes_on", "", "goes on after its head 'fc'"),
        (f"{__name__}:large_only", "", r"does not take images of shape \(2, 1, 16, 16\)"),
        (f"{__name__}:tiny", "fc", "no linear layer 'fc' to be the head; its linear layers: 3, 5"),
        (f"{__name__}:tiny", "3", "the head '3' .* has 5 outputs, expected 4 classes"),
    ],
)
def test_what_is_no_model_says_why(name: str, head: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_model(ModelSpec(name=name, head=head, classes=4, size=16))


# --- volumes, and images that do not fit -----------------------------------------------------------------------------------


def test_densenet_takes_volumes() -> None:
    spec = ModelSpec(name="densenet121", classes=2, size=16, dims=3)
    with torch.no_grad():
        assert build_model(spec).eval()(torch.rand(1, 1, 16, 16, 16)).shape == (1, 2)


@pytest.mark.parametrize("name", [name for name in known_models() if name != "densenet121"])
def test_other_models_refuse_volumes(name: str) -> None:
    with pytest.raises(ConfigError, match="takes images, not volumes"):
        build_model(ModelSpec(name=name, dims=3))


def test_a_transformer_wants_whole_patches() -> None:
    with pytest.raises(ConfigError, match="size 40 is not a multiple"):
        build_model(ModelSpec(name="vit_b_16", size=40))


def test_without_monai_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets.densenet", None)
    with pytest.raises(ConfigError, match=r"pip install 'excise\[monai\]'"):
        build_model(ModelSpec(name="densenet121"))


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"size": 8}, {"std": 0.0}, {"mean": float("nan")}, {"depth": 3}])
def test_a_wrong_spec_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ModelSpec(**wrong)
