"""The model of a round: whether it fits this site, its weights, and the deployed model that stays here."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from excise.client.compute import placed
from excise.client.extent import watch
from excise.client.site import Site
from excise.common.errors import DataError, ExciseError, MessageError, SiteError
from excise.common.models import ModelSpec, build_model, known_models
from excise.common.weights import Weights, load_weights


class SiteFailure(ExciseError):
    """A failure whose code the coordinator may know."""

    def __init__(self, code: SiteError, message: str) -> None:
        super().__init__(message)
        self.code = code


def load_model(site: Site, spec: ModelSpec, weights: Weights) -> nn.Module:
    """The model with these weights, where and how the site runs models, in evaluation mode.

    Raises
    ------
    MessageError : the weights do not fit the model
    """
    model = build_model(spec)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise MessageError(f"the weights that came do not fit the model '{spec.name}': {error}") from error
    ready = placed(model, spec, site.config).eval()
    watch(ready)
    return ready


def check_model(site: Site, spec: ModelSpec) -> None:
    """Refuse a model that this site may not run, or that is for other images than it has.

    Raises
    ------
    SiteFailure : nobody here knows a model of that name
    DataError : it wants other classes, channels or sizes
    """
    if spec.name not in (*known_models(), *site.config.models):
        raise SiteFailure(
            SiteError.UNKNOWN_MODEL, f"neither this release of excise nor `models` in site.toml knows the model '{spec.name}'"
        )
    data = site.config.data
    theirs = (spec.classes, spec.multi_label, spec.channels, spec.size, spec.dims)
    ours = (len(data.classes), data.multi_label, data.channels, data.size, data.dims)
    if theirs != ours:
        raise DataError(f"the model wants {theirs} classes, multi_label, channels, pixels, dimensions; we have {ours}")


def teacher_path(site: Site, digest: str) -> Path:
    """Where the deployed model stays at the site."""
    return site.config.state / "teachers" / f"{digest}.safetensors"


def read_teacher(site: Site, digest: str) -> Weights:
    """The deployed model that an earlier round brought.

    Raises
    ------
    SiteFailure : none of this digest came
    """
    path = teacher_path(site, digest)
    if not path.exists():
        raise SiteFailure(SiteError.TEACHER_MISSING, f"teacher {digest[:12]} never came; it travels in 'query.reference'")
    return load_weights(path)
