"""Where and how models run: placed, cast, compiled, and measured once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

from excise.client import compute
from excise.client.compute import CHOICES, device_of, faster_precision, placed, run_in_bfloat16, to_device
from excise.client.config import ComputeSettings, DataSettings, SiteConfig
from excise.common.models import Classifier, ModelSpec, build_model
from excise.common.weights import digest

SPEC = ModelSpec(size=16, width=0.05)
CPU = torch.device("cpu")


def config(state: Path, **settings: object) -> SiteConfig:
    return SiteConfig(
        name="a",
        data=DataSettings(path=Path("a"), classes=("clear", "ill"), size=16),
        device="cpu",
        state=state,
        compute=ComputeSettings.model_validate(settings),
    )


def batch() -> torch.Tensor:
    return torch.rand(6, 1, 16, 16, generator=Generator().manual_seed(0))


def test_in_bfloat16_the_model_takes_and_gives_float32_and_learns_in_it() -> None:
    plain = build_model(SPEC)
    cast = copy.deepcopy(plain)
    run_in_bfloat16(cast, CPU)
    assert cast.state_dict().keys() == plain.state_dict().keys()
    logits = cast(batch())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, plain(batch()), atol=0.1, rtol=0.1)
    assert not torch.equal(logits, plain(batch()))  # it did compute otherwise
    F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64)).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in cast.parameters())


@pytest.mark.parametrize(("seconds", "faster"), [((1.0, 2.0), "float32"), ((2.0, 1.0), "bfloat16"), ((1.0, 11.0), "float32")])
def test_the_faster_precision_is_taken(
    seconds: tuple[float, float], faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def timed(model: nn.Module, x: torch.Tensor, cast: bool) -> float:
        asked.append(cast)
        return seconds[cast]

    monkeypatch.setattr(compute, "_seconds", timed)
    for _ in range(2):
        model = placed(build_model(SPEC), SPEC, config(tmp_path, precision="auto"))
        assert (type(model) is not Classifier) is (faster == "bfloat16")
    assert len(asked) == (2 if seconds[1] > 10 else 8)  # measured once; given up at once when it is clear
    assert (tmp_path / CHOICES).is_file()


def test_a_copy_in_bfloat16_answers_with_its_own_weights() -> None:
    model = build_model(SPEC).eval()
    run_in_bfloat16(model, CPU)
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not twin(batch()).any()
    assert model(batch()).any()


def test_measuring_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    model, state = build_model(SPEC).train(), torch.get_rng_state()
    before = digest(model.state_dict())
    assert faster_precision(model, SPEC, CPU) in ("float32", "bfloat16")
    assert model.training
    assert digest(model.state_dict()) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_compiled_model_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: whole(module, backend="eager"))  # needs no C++ compiler
    model = build_model(SPEC).eval()
    expected = model(batch())
    compiled = placed(model, SPEC, config(tmp_path, compile=True))
    assert compiled._compiled_call_impl is not None
    torch.testing.assert_close(compiled(batch()), expected)


def test_without_settings_nothing_is_changed(tmp_path: Path) -> None:
    model = build_model(SPEC)
    assert placed(model, SPEC, config(tmp_path)) is model
    assert type(model) is Classifier
    assert not (tmp_path / CHOICES).exists()


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = config(tmp_path)
    assert device_of(named) == CPU
    for there, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_of(named.model_copy(update={"device": "auto"})).type == kind
    x = batch()
    assert to_device(x, CPU) is x
