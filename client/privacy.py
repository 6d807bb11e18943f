"""What of an update leaves: clipped, noised and made sparse, each only where the site's policy says so.

    1. clip      Δ ← Δ·min(1, C/‖Δ‖)                ‖·‖ over everything that leaves, batch-norm statistics included
    2. noise     Δ ← Δ + N(0, (z·C)²) on every number     z = noise_multiplier; a variance stays positive
    3. sparsify  all but the largest numbers of Δ ← 0      which ones is decided on what was noised already

Noise goes on every number and before the choice of what is kept: which numbers are the largest tells of the images as much as
their values do. Steps after the noise look at nothing but its result and the weights that the coordinator sent, so they are
post-processing, which weakens no guarantee (Dwork and Roth, 2014, proposition 2.1). That guarantee is in `accountant.py`.

Pure torch: no Flower, no files. An update is Δ = θ − θ_in by name, as `common/weights.py` has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from excise.client.policy import UpdatePrivacySettings
from excise.common.weights import Weights

LEAST_VARIANCE = 0.1
"""Share of a variance that is left at least where noise would take more: near zero it would blow its channel up."""

Normal = Callable[[int], Tensor]
"""Gives so many independent standard normal numbers, float64 (n,)."""


def private(
    delta: Weights, base: Mapping[str, Tensor], settings: UpdatePrivacySettings, normal: Normal | None = None
) -> Weights:
    """The update that leaves; `delta` itself, untouched, when everything is off.

    Parameters
    ----------
    delta : the site's update, finite
    base : the weights that it starts from, which the coordinator knows
    normal : where the noise comes from, when there is to be any; nobody but the site may be able to know what it gives
    """
    if settings.clip is not None:
        delta = clipped(delta, settings.clip)
        if settings.noise_multiplier:
            assert normal is not None
            delta = noised(delta, base, settings.noise_multiplier * settings.clip, normal)
    return sparsified(delta, settings.keep_share) if settings.keep_share < 1 else delta


def total_norm(delta: Mapping[str, Tensor]) -> float:
    """Euclidean norm over everything that leaves. Not `weights.norm`, which leaves batch-norm statistics out."""
    return math.sqrt(sum(float(tensor.double().pow(2).sum()) for tensor in delta.values()))


def clipped(delta: Weights, clip: float) -> Weights:
    """`delta` scaled down to a norm of at most `clip`; what is no longer than that stays as it is.

    One scale for all tensors, batch-norm statistics too: they leave, so a bound that left them out would bound nothing.
    """
    size = total_norm(delta)
    if size <= clip:
        return delta
    # Rounding to the tensors' own types must not carry the norm over `clip` again.
    margin = 1 - max(torch.finfo(tensor.dtype).eps for tensor in delta.values())
    return {name: (tensor.double() * (clip * margin / size)).to(tensor.dtype) for name, tensor in delta.items()}


def noised(delta: Weights, base: Mapping[str, Tensor], deviation: float, normal: Normal) -> Weights:
    """`delta` with Gaussian noise of this standard deviation on every number, added in float64."""
    result = {}
    for name in sorted(delta):
        tensor = delta[name]
        noisy = tensor.double() + deviation * normal(tensor.numel()).reshape(tensor.shape)
        if name.endswith("running_var"):
            noisy = torch.maximum(noisy, (LEAST_VARIANCE - 1) * base[name].double())
        result[name] = noisy.to(tensor.dtype)
    return {name: result[name] for name in delta}


def sparsified(delta: Weights, keep_share: float) -> Weights:
    """`delta` with its largest numbers, this share of all over all tensors together and at least one; the rest are zero."""
    flat = torch.cat([tensor.double().flatten() for tensor in delta.values()])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[flat.abs().topk(min(len(flat), max(1, round(keep_share * len(flat))))).indices] = True
    masks = kept.split([tensor.numel() for tensor in delta.values()])
    return {
        name: torch.where(mask.reshape(tensor.shape), tensor, torch.zeros_like(tensor))
        for (name, tensor), mask in zip(delta.items(), masks, strict=True)
    }
