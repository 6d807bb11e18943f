"""The boundary search: equal to a slow loop written from the equation, to closed forms, and honest about its inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from excise.client.unlearning.boundary import BoundaryPath, boundary_search, expected_sign, frozen, path_losses
from excise.common.settings import SearchSettings

SHAPE = (1, 2, 3)  # channels, height, width
NOISES = ("normal", "laplace", "uniform", "cauchy")


def _seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _images(n: int, seed: int = 1) -> Tensor:
    return torch.rand(n, *SHAPE, generator=_seeded(seed), dtype=torch.float64)


def _mlp(classes: int = 3, seed: int = 2) -> nn.Module:
    """A curved model in float64, so that no sign of a gradient hangs on rounding."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, classes)).double()
    generator = _seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def _logistic(w: list[float], b: float) -> nn.Module:
    """Two classes with logits (0, w·x + b): the sign of the gradient is the same everywhere."""
    linear = nn.Linear(len(w), 2).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.0] * len(w), w]))
        linear.bias.copy_(torch.tensor([0.0, b]))
    return nn.Sequential(nn.Flatten(), linear)


# --- the slow, obvious search ---------------------------------------------------------------------------------------------


@dataclass
class _SlowPath:
    logits: list[Tensor] = field(default_factory=list)
    ascents: list[float] = field(default_factory=list)
    length: float = 0.0
    x: Tensor = field(default_factory=lambda: torch.empty(0))


def _slow_noise(kind: str, shape: torch.Size, generator: Generator) -> Tensor:
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    if kind == "cauchy":
        return torch.empty(shape).cauchy_(generator=generator)
    u = 2 * torch.rand(shape, generator=generator) - 1
    if kind == "uniform":
        return u
    return torch.tensor([-math.copysign(1, v) * math.log(1 - abs(v)) for v in u.flatten().tolist()]).reshape(shape)


def _slow_search(model: nn.Module, x0: Tensor, y: int, s: SearchSettings, noise: list[Tensor], largest: float) -> _SlowPath:
    """One image, one step after another, as the equation has it. `noise` holds this image's z_t."""
    path, x = _SlowPath(), x0.clone()
    for t in range(s.max_steps + 1):
        x.requires_grad_(True)
        logits = model(x[None])[0]
        loss = -logits.log_softmax(0)[y]
        (g,) = torch.autograd.grad(loss, x)
        x, logits, loss = x.detach(), logits.detach(), loss.detach()
        path.logits.append(logits)
        stop = {
            "crossed": int(logits.argmax()) != y,
            "confidence": float(logits.softmax(0)[y]) <= s.kappa,
            "loss": float(loss) >= largest,
            "never": False,
        }[s.stop]
        if stop or t == s.max_steps:
            break
        path.ascents.append(
            sum(v * (math.erf(v / (s.gamma * math.sqrt(2))) if s.gamma else math.copysign(1, v)) for v in g.flatten().tolist())
        )
        lam = {
            "constant": s.lam,
            "inverse": s.lam / (t + 1),
            "exponential": s.lam * math.exp(-t / 10),
            "linear": s.lam * (1 - t / s.max_steps),
        }[s.lam_schedule]
        ascent = g - lam * (x - x0) + (s.gamma * noise[t] if s.gamma else 0)
        moved = x + s.eta / math.sqrt(t + 1) * ascent.sign()
        moved = moved.clamp(0, 1).maximum(x0 - s.epsilon).minimum(x0 + s.epsilon)
        path.length += math.dist(moved.flatten().tolist(), x.flatten().tolist())
        x = moved
    path.x = x
    return path


def _assert_equals_slow(model: nn.Module, x: Tensor, y_N: Tensor, s: SearchSettings, largest: float) -> BoundaryPath:
    fast = boundary_search(model, x, y_N, s, _seeded(7), largest)
    generator = _seeded(7)
    noise = [_slow_noise(s.noise, x.shape, generator) for _ in range(s.max_steps)] if s.gamma > 0 else []
    slow = [_slow_search(model, x[i], int(y_N[i]), s, [z[i] for z in noise], largest) for i in range(len(x))]

    for i, path in enumerate(slow):
        repeated = path.logits + [path.logits[-1]] * (s.max_steps + 1 - len(path.logits))
        torch.testing.assert_close(fast.logits_TNC[:, i], torch.stack(repeated).float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fast.x[i], path.x)
        assert int(fast.steps_N[i]) == len(path.logits) - 1
        assert bool(fast.crossed_N[i]) == (int(path.logits[-1].argmax()) != int(y_N[i]))
        assert float(fast.length_N[i]) == pytest.approx(path.length, abs=1e-5)
    for t in range(s.max_steps):
        searching = [path.ascents[t] for path in slow if t < len(path.ascents)]
        expected = sum(searching) / len(searching) if searching else math.nan
        # abs: near a confident answer the gradient is a difference of float32 logits' softmax from 1, all rounding
        assert float(fast.ascent_T[t]) == pytest.approx(expected, rel=1e-4, abs=1e-7, nan_ok=True)
    assert fast.passes == sum(len(path.logits) for path in slow)
    return fast


@pytest.mark.parametrize("stop", ["crossed", "confidence", "loss", "never"])
@pytest.mark.parametrize("schedule", ["constant", "inverse", "exponential", "linear"])
@pytest.mark.parametrize("noise", [*NOISES, "none"])
def test_equals_the_slow_loop(noise: str, schedule: str, stop: str) -> None:
    model, x = _mlp(), _images(5)
    y_N = model(x).argmax(1)
    s = SearchSettings(
        epsilon=0.3,
        eta=0.12,
        max_steps=6,
        lam=2.0,
        lam_schedule=schedule,
        gamma=0.0 if noise == "none" else 0.3,
        noise="normal" if noise == "none" else noise,
        stop=stop,
        kappa=0.6,
    )
    fast = _assert_equals_slow(model, x, y_N, s, largest=0.7)
    if stop != "never":
        assert len(fast.steps_N.unique()) > 1, "images must leave at different steps, or the test says little"


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 4),
    lam=st.floats(0, 5),
    gamma=st.sampled_from([0.0, 0.05, 1.0]),
    eta=st.floats(0.01, 0.3),
    stop=st.sampled_from(["crossed", "confidence", "loss", "never"]),
)
def test_equals_the_slow_loop_on_random_models(seed: int, n: int, lam: float, gamma: float, eta: float, stop: str) -> None:
    model, x = _mlp(seed=seed), _images(n, seed=seed + 1)
    y_N = torch.randint(3, (n,), generator=_seeded(seed))
    s = SearchSettings(eta=eta, max_steps=4, lam=lam, gamma=gamma, stop=stop)
    _assert_equals_slow(model, x, y_N, s, largest=1.5)


# --- batches ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_batch_size_changes_nothing_without_noise(batch_size: int) -> None:
    model, x = _mlp(), _images(7)
    y_N = model(x).argmax(1)
    s = SearchSettings(eta=0.15, max_steps=6, lam=1.0, stop="crossed")
    whole = boundary_search(model, x, y_N, s, _seeded())
    parts = boundary_search(model, x, y_N, s.model_copy(update={"batch_size": batch_size}), _seeded())
    for name in ("logits_TNC", "x", "steps_N", "crossed_N", "length_N", "ascent_T"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), equal_nan=True)
    assert parts.passes == whole.passes
    assert whole.ascent_T.isfinite().any()


def test_copies_in_a_batch_do_not_change_the_meaning_of_lambda() -> None:
    model, x = _mlp(), _images(1)
    y_N = model(x).argmax(1)
    s = SearchSettings(eta=0.1, max_steps=8, lam=5.0, stop="never")
    alone = boundary_search(model, x, y_N, s, _seeded())
    crowd = boundary_search(model, x.expand(64, *SHAPE), y_N.expand(64), s, _seeded())
    torch.testing.assert_close(crowd.x, alone.x.expand(64, *SHAPE))
    torch.testing.assert_close(crowd.ascent_T, alone.ascent_T)


def test_noise_of_an_image_does_not_depend_on_when_others_stop() -> None:
    model, x = _mlp(), _images(4)
    y_N = model(x).argmax(1)
    s = SearchSettings(eta=0.1, max_steps=6, gamma=0.5, stop="crossed")
    early = y_N.clone()
    early[0] = (early[0] + 1) % 3  # this one has crossed before it starts
    a, b = boundary_search(model, x, y_N, s, _seeded()), boundary_search(model, x, early, s, _seeded())
    assert int(b.steps_N[0]) == 0 < int(a.steps_N[0])
    torch.testing.assert_close(a.x[1:], b.x[1:])


# --- closed forms ----------------------------------------------------------------------------------------------------------

W = [1.0, -2.0, 0.5, 3.0, -0.25, 0.75]


def _steps_up_to(eta: float, t: int) -> float:
    return sum(eta / math.sqrt(s + 1) for s in range(t))


@pytest.mark.parametrize("steps", [1, 3, 12])
@pytest.mark.parametrize("y", [0, 1])
def test_on_a_logistic_model_the_path_is_a_clipped_line(y: int, steps: int) -> None:
    x, s = _images(4), SearchSettings(epsilon=0.25, eta=0.07, max_steps=steps, stop="never")
    path = boundary_search(_logistic(W, 0.0), x, torch.full((4,), y), s, _seeded())
    away = torch.tensor(W, dtype=torch.float64).reshape(SHAPE).sign() * (1 if y == 0 else -1)
    expected = (x + (_steps_up_to(0.07, steps) * away).clamp(-0.25, 0.25)).clamp(0, 1)
    torch.testing.assert_close(path.x, expected)
    losses_TN = path_losses(path.logits_TNC, torch.full((4,), y))
    assert (losses_TN.diff(dim=0) >= -1e-6).all()
    assert (losses_TN[-1] > losses_TN[0]).all()


@pytest.mark.parametrize("margin", [0.1, 0.9, 1.7, 2.6])
def test_on_a_logistic_model_the_crossing_step_is_known(margin: float) -> None:
    eta = 0.1
    x = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    model = _logistic(W, -margin - 0.5 * sum(W))  # logit of class 1 at x is −margin
    crossing = next(t for t in range(100) if _steps_up_to(eta, t) * sum(map(abs, W)) > margin)
    s = SearchSettings(epsilon=0.5, eta=eta, max_steps=20, stop="crossed")
    path = boundary_search(model, x, torch.tensor([0]), s, _seeded())
    assert int(path.steps_N[0]) == crossing
    assert bool(path.crossed_N[0])
    assert path.passes == crossing + 1
    assert path.ascent_T.isnan().tolist() == [t >= crossing for t in range(20)]


def test_one_step_of_size_epsilon_is_boundary_shrink() -> None:
    model, x = _mlp(), _images(6)
    y_N = model(x).argmax(1)
    s = SearchSettings(epsilon=0.1, eta=0.1, max_steps=1, stop="never")
    leaf = x.clone().requires_grad_(True)
    nn.functional.cross_entropy(model(leaf), y_N).backward()
    assert leaf.grad is not None
    fgsm = (x + 0.1 * leaf.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(boundary_search(model, x, y_N, s, _seeded()).x, fgsm)


def test_lambda_pulls_back() -> None:
    eta, lam = 0.02, 20.0
    x, w = torch.full((1, *SHAPE), 0.5, dtype=torch.float64), torch.tensor(W, dtype=torch.float64).reshape(SHAPE)
    free = SearchSettings(epsilon=0.5, eta=eta, max_steps=60, stop="never")
    held = free.model_copy(update={"lam": lam})
    reach = [
        (boundary_search(_logistic(W, -0.5 * sum(W)), x, torch.tensor([0]), s, _seeded()).x - x).abs()[0] for s in (free, held)
    ]
    bound = w.abs() / lam + eta  # beyond |w|/λ the pull outweighs any gradient of this model
    assert (reach[0] > bound).all()
    assert (reach[1] <= bound).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    epsilon=st.floats(0.001, 1),
    eta=st.floats(0.001, 3),
    steps=st.integers(1, 6),
    lam=st.floats(0, 100),
    gamma=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    noise=st.sampled_from(NOISES),
)
def test_never_leaves_the_box(seed: int, epsilon: float, eta: float, steps: int, lam: float, gamma: float, noise: str) -> None:
    x = _images(3, seed).round(decimals=1)  # so that some pixels are exactly 0 or 1
    s = SearchSettings(epsilon=epsilon, eta=eta, max_steps=steps, lam=lam, gamma=gamma, noise=noise, stop="never")
    path = boundary_search(_mlp(), x, torch.tensor([0, 1, 2]), s, _seeded(seed))
    assert float((path.x - x).abs().max()) <= epsilon + 1e-12
    assert 0 <= float(path.x.min()) <= float(path.x.max()) <= 1
    assert path.logits_TNC.isfinite().all()


# --- stop rules and cost ---------------------------------------------------------------------------------------------------


def test_stop_rules_stop_where_they_say() -> None:
    model, x = _mlp(), _images(12)
    y_N = model(x).argmax(1)
    paths = {
        stop: boundary_search(model, x, y_N, SearchSettings(eta=0.05, max_steps=15, stop=stop, kappa=0.4), _seeded(), 0.9)
        for stop in ("crossed", "confidence", "loss", "never")
    }
    assert (paths["never"].steps_N == 15).all()
    assert paths["never"].passes == 12 * 16
    n = torch.arange(12)
    for stop, holds_TN in {
        "crossed": paths["crossed"].logits_TNC.argmax(2) != y_N,
        "confidence": paths["confidence"].logits_TNC.softmax(2)[:, n, y_N] <= 0.4,
        "loss": path_losses(paths["loss"].logits_TNC, y_N) >= 0.9,
    }.items():
        path = paths[stop]
        assert path.passes == int((path.steps_N + 1).sum())
        assert (path.steps_N < 15).any(), stop
        for i, end in enumerate(path.steps_N.tolist()):
            assert not holds_TN[:end, i].any(), f"{stop}: went on after its rule held"
            assert end == 15 or holds_TN[end, i], f"{stop}: stopped before its rule held"
            assert (path.logits_TNC[end:, i] == path.logits_TNC[end, i]).all()


def test_all_stopped_at_the_start() -> None:
    model, x = _mlp(), _images(3)
    wrong_N = (model(x).argmax(1) + 1) % 3
    path = boundary_search(model, x, wrong_N, SearchSettings(max_steps=5, stop="crossed"), _seeded())
    assert path.steps_N.tolist() == [0, 0, 0]
    assert path.passes == 3
    assert path.ascent_T.isnan().all()
    assert torch.equal(path.x, x)
    assert path.logits_TNC.shape == (6, 3, 3)


# --- what the search leaves behind -----------------------------------------------------------------------------------------


def _half_frozen() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    model.train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    return model


def test_leaves_the_teacher_as_it_was() -> None:
    model = _half_frozen()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    s = SearchSettings(max_steps=2, stop="never")
    x = _images(3)
    boundary_search(model, x, torch.tensor([0, 1, 0]), s, _seeded())
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"1.weight"}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(x, _images(3))
    assert not x.requires_grad


def test_computes_no_weight_gradient() -> None:
    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _mlp()

        def forward(self, x: Tensor) -> Tensor:
            assert not any(parameter.requires_grad for parameter in self.parameters())
            assert not any(module.training for module in self.modules())
            logits: Tensor = self.inner(x)
            return logits

    path = boundary_search(Spy(), _images(2), torch.tensor([0, 1]), SearchSettings(max_steps=2), _seeded())
    assert not path.logits_TNC.requires_grad
    assert not path.x.requires_grad


def test_thaws_after_an_error() -> None:
    model = _half_frozen()
    with pytest.raises(RuntimeError, match="on purpose"), frozen(model):
        raise RuntimeError("on purpose")
    assert model.training
    assert model[1].bias.requires_grad


def test_works_where_gradients_are_off() -> None:
    model, x = _mlp(), _images(3)
    s = SearchSettings(max_steps=3, stop="never")
    with torch.no_grad():
        quiet = boundary_search(model, x, torch.tensor([0, 1, 2]), s, _seeded())
    assert torch.equal(quiet.x, boundary_search(model, x, torch.tensor([0, 1, 2]), s, _seeded()).x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.empty(0, *SHAPE), "at least one image"),
        (torch.full((2, *SHAPE), 1.01), "1.01"),
        (torch.full((2, *SHAPE), -0.01), "-0.01"),
        (torch.full((2, *SHAPE), math.nan), "NaN"),
        (torch.stack([torch.zeros(SHAPE), torch.full(SHAPE, math.nan)]), "NaN"),
        (torch.full((2, *SHAPE), math.inf), "inf"),
    ],
)
def test_refuses_what_is_no_image(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boundary_search(_mlp(), x.double(), torch.zeros(len(x), dtype=torch.int64), SearchSettings(), _seeded())


def test_refuses_labels_of_another_number() -> None:
    for labels in (2, 4):
        for batch_size in (1, 256):
            s = SearchSettings(batch_size=batch_size)
            with pytest.raises((ValueError, IndexError, RuntimeError)):
                boundary_search(_mlp(), _images(3), torch.zeros(labels, dtype=torch.int64), s, _seeded())


# --- convergence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("g", [-2.0, -0.3, 0.0, 0.05, 1.0])
def test_expected_sign_is_the_mean_of_signs(g: float, gamma: float) -> None:
    n = 100_000
    signs = (g + gamma * torch.randn(n, generator=_seeded(3), dtype=torch.float64)).sign()
    expected = float(expected_sign(torch.tensor(g, dtype=torch.float64), gamma))
    assert float(signs.mean()) == pytest.approx(expected, abs=4.5 / math.sqrt(n))


def test_expected_sign_without_noise_is_the_sign() -> None:
    g = torch.tensor([-3.0, 0.0, 0.2])
    assert torch.equal(expected_sign(g, 0.0), g.sign())
    torch.testing.assert_close(expected_sign(g, 1e-3), g.sign())
    wide = 1e4  # γ ≫ |g|: a scaled gradient
    torch.testing.assert_close(expected_sign(g, wide), math.sqrt(2 / math.pi) * g / wide)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 3.0])
def test_ascent_decays_as_the_bound_says(gamma: float) -> None:
    """φ(x) = −½ Σ h_i·(x_i − a_i)², concave with L = Σ h_i for steps bounded in ‖·‖∞: φ(x+d) ≥ φ(x) + g·d − (L/2)·‖d‖∞²."""
    h, a = torch.tensor([2.0, 1.0, 0.5, 0.1]).double(), torch.tensor([1.0, -1.0, 0.5, 0.3]).double()
    c, runs, generator = 0.2, 200, _seeded(11)
    x = torch.zeros(runs, 4, dtype=torch.float64)
    rise, smooth = float((h * a**2).sum()) / 2, float(h.sum())  # φ* − φ(x_1), L
    measured: list[float] = []
    for t in range(1, 2001):
        g = h * (a - x)
        measured.append(float((g * expected_sign(g, gamma)).sum(1).mean()))
        x = x + c / math.sqrt(t) * (g + gamma * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sign()
    smallest = []
    for horizon in (5, 50, 500, 2000):
        bound = (rise + smooth * c**2 / 2 * (1 + math.log(horizon))) / (2 * c * (math.sqrt(horizon + 1) - 1))
        smallest.append(min(measured[:horizon]))
        assert smallest[-1] <= bound
    assert smallest[-1] < smallest[1] < smallest[0]
    assert smallest[-1] < 0.1 * measured[0]
