"""Whether a returned update may be composed. A bad one is refused with its reason, and the round goes on without it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from excise.common.errors import SiteError, UpdateRefused
from excise.common.messages import SiteUpdate
from excise.common.weights import floating, norm

CODES = ("wrong_base", "names", "shapes", "dtypes", "not_finite", "norm", "statistics")

DIVERGED = ("not_finite", "norm", "statistics", SiteError.DIVERGED.value)
"""Codes, a site's own among them, that speak of steps too large and not of a site that is at fault."""


def admit(update: SiteUpdate, base: Mapping[str, Tensor], base_digest: str, norm_bound: float) -> None:
    """Let a sound update pass.

    Parameters
    ----------
    update : what the site returned
    base : the weights that were sent out; `base_digest` is their digest
    norm_bound : largest Euclidean norm of the update's parameters

    Raises
    ------
    UpdateRefused : with one of `CODES`
    """
    if update.weights_in != base_digest:
        raise UpdateRefused("wrong_base", f"the update starts from {update.weights_in[:12]}, sent was {base_digest[:12]}")
    expected = floating(base)
    if update.delta.keys() != expected.keys():
        odd = sorted(update.delta.keys() ^ expected.keys())
        raise UpdateRefused("names", f"tensors that are missing or unknown: {', '.join(odd[:5])}")
    for name, tensor in expected.items():
        delta = update.delta[name]
        if delta.shape != tensor.shape:
            raise UpdateRefused("shapes", f"{name} has shape {tuple(delta.shape)}, expected {tuple(tensor.shape)}")
        if delta.dtype != tensor.dtype:
            raise UpdateRefused("dtypes", f"{name} has type {delta.dtype}, expected {tensor.dtype}")
        if not bool(delta.isfinite().all()):
            raise UpdateRefused("not_finite", f"{name} holds NaN or infinite values")
        if name.endswith("running_var") and bool((tensor + delta < 0).any()):
            raise UpdateRefused("statistics", f"{name} would become negative; a variance cannot")
    size = norm(update.delta)
    if size > norm_bound:
        raise UpdateRefused("norm", f"norm {size:.3g} exceeds the bound {norm_bound:.3g}")
