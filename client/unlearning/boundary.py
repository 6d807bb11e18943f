"""The lower level: a perturbed sign-gradient search for the teacher's decision boundary.

For each forget image x with label y, ascend

    φ(x') = CE(T(x'), y) − (λ/2)·‖x' − x‖²        inside the box  B∞(x, ε) ∩ [0, 1]

by

    x_{t+1} = Π_B( x_t + η_t · sign( ∇CE(T(x_t), y) − λ_t·(x_t − x) + γ·z_t ) ),      η_t = η/√(t+1)

The teacher T is frozen, so the search depends on nothing that the student does: it runs once per request. It returns the
path of logits, off which the targets are read. (Nahass et al., arXiv 2505.21872. One step of size ε with γ = λ = 0 is
Boundary Shrink, Chen et al., CVPR 2023.)

Shapes: N images, C classes, T = max_steps; images are (N, channels, *spatial).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from excise.client.unlearning.inference import frozen
from excise.client.unlearning.labels import are_labels, boundary_losses, confidence, has_crossed
from excise.common.settings import SearchSettings


@dataclass(frozen=True)
class BoundaryPath:
    """Where the search went and how it ended.

    Attributes
    ----------
    logits_TNC : teacher's logits at every point, float32 (T+1, N, C); after an image stopped its last row repeats
    x : last point of each image, shape of the input
    steps_N : steps taken, int64
    crossed_N : whether the teacher's class at the last point differs from y, bool; for labels (N, L), each on its own
    length_N : Euclidean length of the path, pixel units, float32
    ascent_T : the measured left-hand side of the convergence bound, mean over the images still searching at step t of
        Σ_i g_i·erf(g_i/(γ√2)), or Σ_i |g_i| when γ = 0; NaN after the last image stopped; float64 (T,)
    passes : images sent through the teacher, forward or forward and backward; the search's cost
    """

    logits_TNC: Tensor
    x: Tensor
    steps_N: Tensor
    crossed_N: Tensor
    length_N: Tensor
    ascent_T: Tensor
    passes: int


def path_losses(logits_TNC: Tensor, y_N: Tensor) -> Tensor:
    """Loss of every point of a path, float32: cross-entropy (T+1, N), or that of each label (T+1, N, L)."""
    t, n, c = logits_TNC.shape
    repeated = y_N.repeat(t, *[1] * (y_N.ndim - 1))
    return boundary_losses(logits_TNC.reshape(t * n, c), repeated).reshape(t, *y_N.shape)


def boundary_search(
    teacher: nn.Module,
    x: Tensor,
    y_N: Tensor,
    settings: SearchSettings,
    generator: Generator,
    largest_loss: float = math.inf,
    sought: Tensor | None = None,
) -> BoundaryPath:
    """Search every image of `x` and return the paths.

    Parameters
    ----------
    teacher : maps images in [0, 1] to logits; evaluated frozen and in evaluation mode, then restored
    x : images, float32 in [0, 1], (N, channels, *spatial)
    y_N : classes, int64 (N,); or labels of 0 and 1, float (N, L), each with its own boundary (`labels.py`)
    settings : ε, η, λ, γ, noise, stop rule
    generator : source of the noise, on the CPU; a sample's noise does not depend on when other samples stop
    largest_loss : cross-entropy at which `stop = "loss"` stops
    sought : labels only: those whose boundary is sought, bool (N, L); all of them when left out

    Raises
    ------
    ValueError : no images, images outside [0, 1], not one label per image, or labels that are none
    """
    if len(x) != len(y_N):
        raise ValueError(f"the boundary search needs one label per image, got {len(x)} images and {len(y_N)} labels")
    if len(x) == 0:
        raise ValueError("the boundary search needs at least one image, got none")
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"images must lie in [0, 1], got {float(x.min()):.3g} to {float(x.max()):.3g} (NaN also fails)")
    are_labels(y_N)
    done = torch.zeros_like(y_N, dtype=torch.bool) if sought is None else ~sought
    size = settings.batch_size
    with frozen(teacher):
        parts = [
            _search_batch(teacher, xb, yb, doneb, settings, generator, largest_loss)
            for xb, yb, doneb in zip(x.split(size), y_N.split(size), done.split(size), strict=True)
        ]
    return _joined(parts)


def _search_batch(
    teacher: nn.Module,
    x0: Tensor,
    y_N: Tensor,
    done: Tensor,
    settings: SearchSettings,
    generator: Generator,
    largest_loss: float,
) -> BoundaryPath:
    """`done` tells the boundaries that are not sought, in the shape of `y_N`."""
    steps = settings.max_steps
    low, high = (x0 - settings.epsilon).clamp_min(0), (x0 + settings.epsilon).clamp_max(1)
    x = x0.clone()
    active = torch.arange(len(x0), device=x0.device)  # images that still search; the others have left the batch
    path: list[Tensor] = []
    steps_N = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
    length_N = torch.zeros(len(x0), device=x0.device)
    ascent_T = torch.full((steps,), math.nan, dtype=torch.float64)
    passes = 0

    for t in range(steps + 1):
        wants_gradient = t < steps
        logits, gradient, searching = _look(
            teacher, x[active], y_N[active], done[active], settings, largest_loss, wants_gradient
        )
        passes += len(active)
        path.append(logits if t == 0 else path[-1].index_copy(0, active, logits))
        if not wants_gradient:
            break
        z = _noise(settings, x.shape, generator).to(x) if settings.gamma > 0 else None
        active, gradient = active[searching], gradient[searching]
        if len(active) == 0:
            break
        ascent_T[t] = _ascent(gradient, settings.gamma)
        direction = gradient - _lam(settings, t) * (x[active] - x0[active])
        if z is not None:
            direction = direction + settings.gamma * z[active]
        step = settings.eta / math.sqrt(t + 1) * direction.sign()
        moved = torch.clamp(x[active] + step, low[active], high[active])
        length_N[active] += (moved - x[active]).flatten(1).norm(dim=1)
        x[active] = moved
        steps_N[active] += 1

    path.extend(path[-1] for _ in range(steps + 1 - len(path)))
    crossed_N = has_crossed(path[-1], y_N)
    return BoundaryPath(torch.stack(path), x, steps_N, crossed_N, length_N, ascent_T, passes)


def _look(
    teacher: nn.Module,
    x: Tensor,
    y_N: Tensor,
    done: Tensor,
    settings: SearchSettings,
    largest_loss: float,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits; the gradient of each image's own loss, summed over the batch, so that its size does not scale it; who goes on.

    Of several labels those that are done leave the loss, and an image goes on while one is left.
    """
    if not wants_gradient:
        with torch.no_grad():
            return teacher(x).float(), x, torch.ones(len(x), dtype=torch.bool)
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = teacher(x).float()
        losses = boundary_losses(logits, y_N)
        searching = ~(done | _stops(logits.detach(), losses.detach(), y_N, settings, largest_loss))
        if searching.ndim > 1:
            losses, searching = (losses * searching).sum(1), searching.any(1)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    return logits.detach(), gradient, searching


def _stops(logits: Tensor, losses: Tensor, y_N: Tensor, settings: SearchSettings, largest_loss: float) -> Tensor:
    """Whether the search is over, for each boundary."""
    if settings.stop == "crossed":
        return has_crossed(logits, y_N)
    if settings.stop == "confidence":
        return confidence(logits, y_N) <= settings.kappa
    if settings.stop == "loss":
        return losses >= largest_loss
    return torch.zeros_like(y_N, dtype=torch.bool)


_LAM_SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda t, steps: 1.0,
    "inverse": lambda t, steps: 1 / (t + 1),
    "exponential": lambda t, steps: math.exp(-t / 10),
    "linear": lambda t, steps: 1 - t / steps,
}


def _lam(settings: SearchSettings, t: int) -> float:
    return settings.lam * _LAM_SCHEDULES[settings.lam_schedule](t, settings.max_steps)


def _noise(settings: SearchSettings, shape: torch.Size, generator: Generator) -> Tensor:
    """Unit-scale noise, drawn for the whole batch on the CPU: the same numbers on every device."""
    if settings.noise == "normal":
        return torch.randn(shape, generator=generator)
    if settings.noise == "cauchy":
        return torch.empty(shape).cauchy_(generator=generator)
    uniform = torch.rand(shape, generator=generator) * 2 - 1
    if settings.noise == "uniform":
        return uniform
    # Laplace by inversion of its distribution function; the clamp keeps log away from 0.
    return -uniform.sign() * torch.log1p(-uniform.abs().clamp_max(1 - 1e-7))


def expected_sign(g: Tensor, gamma: float) -> Tensor:
    """E[sign(g + γz)] for standard normal z, elementwise: erf(g/(γ√2)), and sign(g) when γ = 0."""
    return torch.erf(g / (gamma * math.sqrt(2))) if gamma > 0 else g.sign()


def _ascent(gradient: Tensor, gamma: float) -> float:
    g = gradient.double()
    return float((g * expected_sign(g, gamma)).flatten(1).sum(1).mean())


def _joined(parts: list[BoundaryPath]) -> BoundaryPath:
    """Batches of one search as one result; `ascent_T` is averaged over the images still searching in each batch."""
    if len(parts) == 1:
        return parts[0]
    searching_BT = torch.stack(
        [(part.steps_N.cpu()[None, :] > torch.arange(len(part.ascent_T))[:, None]).sum(1) for part in parts]
    ).double()
    ascent_BT = torch.stack([part.ascent_T.nan_to_num(0.0) for part in parts])
    return BoundaryPath(
        logits_TNC=torch.cat([part.logits_TNC for part in parts], dim=1),
        x=torch.cat([part.x for part in parts]),
        steps_N=torch.cat([part.steps_N for part in parts]),
        crossed_N=torch.cat([part.crossed_N for part in parts]),
        length_N=torch.cat([part.length_N for part in parts]),
        ascent_T=(ascent_BT * searching_BT).sum(0) / searching_BT.sum(0),  # 0/0 = NaN: nobody searching
        passes=sum(part.passes for part in parts),
    )
