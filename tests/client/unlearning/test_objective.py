"""The objective: the sites' shares add up to F, whatever the sizes, and each loss is what its name says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from excise.client.unlearning.objective import forget_loss, proximal, retain_loss, site_objective
from excise.common.settings import LocalSettings
from excise.server.weighting import objective_weights, size_weights

FEATURES, CLASSES = 4, 3


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _linear(seed: int = 0) -> nn.Linear:
    model = nn.Linear(FEATURES, CLASSES).double()
    with torch.no_grad():
        model.weight.copy_(_randn(CLASSES, FEATURES, seed=seed))
        model.bias.copy_(_randn(CLASSES, seed=seed + 1))
    return model


def _gradient(loss: Tensor, model: nn.Module) -> Tensor:
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


_sizes = st.lists(st.tuples(st.integers(0, 5) | st.just(0), st.integers(0, 7)), min_size=1, max_size=6).filter(
    lambda sites: sum(f for f, _ in sites) > 0 and sum(r for _, r in sites) > 0
)


@settings(max_examples=60, deadline=None)
@given(
    sizes=_sizes,
    psi=st.floats(0.05, 0.95) | st.just(1.0),
    distil=st.sampled_from([0.0, 0.7]),
    mu=st.sampled_from([0.0, 0.5]),
)
def test_site_gradients_add_up_to_the_gradient_of_f(
    sizes: list[tuple[int, int]], psi: float, distil: float, mu: float
) -> None:
    student, teacher = _linear(1), _linear(2)
    home = {name: tensor.detach() for name, tensor in teacher.named_parameters()}
    local = LocalSettings(distil=distil)
    forget = {f"s{k}": f for k, (f, _) in enumerate(sizes)}
    retain = {f"s{k}": r for k, (_, r) in enumerate(sizes)}
    xf = {s: _randn(n, FEATURES, seed=10 + i) for i, (s, n) in enumerate(forget.items())}
    qf = {s: _randn(n, CLASSES, seed=30 + i).softmax(1) for i, (s, n) in enumerate(forget.items())}
    xr = {s: _randn(n, FEATURES, seed=50 + i) for i, (s, n) in enumerate(retain.items())}
    yr = {s: torch.arange(n) % CLASSES for s, n in retain.items()}

    def losses(sites: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """L^f and L^r over the images of all `sites` together."""
        x_f, x_r, y_r = torch.cat([xf[s] for s in sites]), torch.cat([xr[s] for s in sites]), torch.cat([yr[s] for s in sites])
        f = forget_loss(student(x_f), torch.cat([qf[s] for s in sites])) if len(x_f) else None
        r = retain_loss(student(x_r), y_r, teacher(x_r).detach(), local) if len(x_r) else None
        return f, r

    weights = objective_weights(forget, retain, psi)
    total = torch.zeros(FEATURES * CLASSES + CLASSES, dtype=torch.float64)
    for site, weight in weights.items():
        objective = site_objective(*losses([site]), weight.a, proximal(student, home), mu)
        total += weight.p * _gradient(objective, student)

    pooled_f, pooled_r = losses(list(forget))
    assert pooled_f is not None
    assert pooled_r is not None
    whole = psi * pooled_f + (1 - psi) * pooled_r + mu * proximal(student, home)
    torch.testing.assert_close(total, _gradient(whole, student), rtol=1e-9, atol=1e-10)


@settings(max_examples=100, deadline=None)
@given(sizes=_sizes, psi=st.floats(0.05, 0.95) | st.just(1.0))
def test_weights_sum_to_one(sizes: list[tuple[int, int]], psi: float) -> None:
    forget = {f"s{k}": f for k, (f, _) in enumerate(sizes)}
    retain = {f"s{k}": r for k, (_, r) in enumerate(sizes)}
    weights = objective_weights(forget, retain, psi)
    assert sum(weight.p for weight in weights.values()) == pytest.approx(1)
    for site, weight in weights.items():
        assert weight.p > 0
        assert 0 <= weight.a <= 1
        assert (weight.a == 0) == (forget[site] == 0)
        assert (weight.a == 1) == (retain[site] == 0 or psi == 1)
    assert set(weights) >= {site for site, n in forget.items() if n > 0}
    sized = size_weights(forget, retain, psi)
    assert sum(weight.p for weight in sized.values()) == pytest.approx(1)
    assert all(weight.a == 0 for site, weight in sized.items() if forget[site] == 0)


def test_weights_are_the_equations() -> None:
    weights = objective_weights({"a": 3, "b": 1, "c": 0, "d": 0}, {"a": 10, "b": 0, "c": 30, "d": 0}, 0.4)
    assert set(weights) == {"a", "b", "c"}  # d has no part in F
    assert weights["a"].p == pytest.approx(0.4 * 3 / 4 + 0.6 * 10 / 40)
    assert weights["a"].a == pytest.approx(0.3 / 0.45)
    assert (weights["b"].p, weights["b"].a) == (pytest.approx(0.1), 1)
    assert (weights["c"].p, weights["c"].a) == (pytest.approx(0.45), 0)


def test_weights_need_images() -> None:
    with pytest.raises(ValueError, match="got 0 and 5"):
        objective_weights({"a": 0}, {"a": 5}, 0.5)
    with pytest.raises(ValueError, match="got 5 and 0"):
        objective_weights({"a": 5}, {"a": 0}, 0.5)
    assert objective_weights({"a": 5}, {"a": 0}, 1.0)["a"].a == 1


# --- the parts of a site's objective ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forget", "retain", "a_k"), [(None, 1.0, 0.2), (1.0, None, 0.9), (None, None, 0.0), (None, None, 1.0), (None, 1.0, 1.0)]
)
def test_an_absent_part_must_have_no_weight(forget: float | None, retain: float | None, a_k: float) -> None:
    parts = [None if value is None else torch.tensor(value) for value in (forget, retain)]
    with pytest.raises(ValueError, match="weighs a loss that has no images"):
        site_objective(parts[0], parts[1], a_k)


def test_site_objective_weighs_its_parts() -> None:
    f, r, pull = torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0)
    assert float(site_objective(f, r, 0.25)) == pytest.approx(0.25 * 2 + 0.75 * 3)
    assert float(site_objective(f, r, 0.25, pull, 0.1)) == pytest.approx(2.75 + 0.5)
    assert float(site_objective(f, r, 0.25, pull, 0.0)) == pytest.approx(2.75)
    assert float(site_objective(None, r, 0.0)) == 3
    assert float(site_objective(f, None, 1.0)) == 2
    nan = torch.tensor(float("nan"))
    assert float(site_objective(nan, r, 0.0)) == 3, "a part without weight must not be touched"


# --- losses ----------------------------------------------------------------------------------------------------------------


def test_forget_loss_is_cross_entropy_to_the_targets() -> None:
    logits_NC, q_NC = _randn(5, CLASSES), _randn(5, CLASSES, seed=1).softmax(1)
    slow = -sum(float(q * s) for q, s in zip(q_NC.flatten(), logits_NC.log_softmax(1).flatten(), strict=True)) / 5
    assert float(forget_loss(logits_NC, q_NC)) == pytest.approx(slow)
    hard_NC = F.one_hot(torch.tensor([0, 1, 2, 0, 1]), CLASSES).double()
    torch.testing.assert_close(forget_loss(logits_NC, hard_NC), F.cross_entropy(logits_NC, hard_NC.argmax(1)))


def test_forget_loss_rests_at_the_target() -> None:
    target_NC = _randn(4, CLASSES, seed=3)
    logits_NC = (target_NC + _randn(4, 1, seed=4)).requires_grad_(True)  # logits are free up to a constant
    forget_loss(logits_NC, target_NC.softmax(1)).backward()
    assert logits_NC.grad is not None
    torch.testing.assert_close(logits_NC.grad, torch.zeros_like(logits_NC), rtol=0, atol=1e-9)
    elsewhere_NC = (target_NC + _randn(4, CLASSES, seed=5)).requires_grad_(True)
    forget_loss(elsewhere_NC, target_NC.softmax(1)).backward()
    assert elsewhere_NC.grad is not None
    assert float(elsewhere_NC.grad.norm()) > 1e-2


def test_retain_loss_without_distillation_is_cross_entropy() -> None:
    logits_NC, y_N = _randn(5, CLASSES), torch.tensor([0, 1, 2, 0, 1])
    plain = F.cross_entropy(logits_NC, y_N)
    assert torch.equal(retain_loss(logits_NC, y_N, _randn(5, CLASSES, seed=1), LocalSettings(distil=0.0)), plain)
    assert torch.equal(retain_loss(logits_NC, y_N, None, LocalSettings(distil=0.7)), plain)


def test_distillation_rests_at_the_teacher() -> None:
    teacher_NC, y_N = _randn(5, CLASSES), torch.tensor([0, 1, 2, 0, 1])
    logits_NC = teacher_NC.clone().requires_grad_(True)
    loss = retain_loss(logits_NC, y_N, teacher_NC, LocalSettings(distil=1.0, distil_temperature=3.0))
    loss.backward()
    assert logits_NC.grad is not None
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(logits_NC.grad, torch.zeros_like(logits_NC), rtol=0, atol=1e-12)


def test_retain_loss_is_the_equation() -> None:
    s, t, y_N = _randn(2, CLASSES), _randn(2, CLASSES, seed=1), torch.tensor([0, 2])
    tau, d = 2.0, 0.7
    p, q = (t / tau).softmax(1), (s / tau).softmax(1)
    divergence = (p * (p.log() - q.log())).sum() / 2  # KL(T‖S), mean over two images
    expected = (1 - d) * F.cross_entropy(s, y_N) + d * tau**2 * divergence
    torch.testing.assert_close(retain_loss(s, y_N, t, LocalSettings(distil=d, distil_temperature=tau)), expected)


def test_proximal_is_half_the_squared_distance() -> None:
    model = _linear()
    home = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    assert float(proximal(model, home).detach()) == 0
    with torch.no_grad():
        model.weight[0, 0] += 3
        model.bias[1] -= 4
    assert float(proximal(model, home).detach()) == pytest.approx((9 + 16) / 2)
    (gradient, _) = torch.autograd.grad(proximal(model, home), list(model.parameters()))
    torch.testing.assert_close(gradient, model.weight.detach() - home["weight"])
