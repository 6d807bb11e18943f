"""Model weights as plain dictionaries: digest, difference, norm, and a file that is either old or new, never half written.

Weights are what `torch.nn.Module.state_dict()` returns: names to CPU tensors. *Parameters and batch-norm statistics* are
floating point and are learned, sent and composed; *integer buffers* (batch counters) are not, and stay as they were.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load, save
from torch import Tensor

from excise.common.errors import DataError
from excise.common.files import write_atomically

Weights = dict[str, Tensor]


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the names, dtypes, shapes and bytes of `weights`, independent of their order."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():  # an empty tensor from numpy has a stride that `view` refuses, and no bytes
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def floating(weights: Mapping[str, Tensor]) -> Weights:
    """The part of `weights` that is learned: floating-point parameters and buffers."""
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Weights:
    """Return ``after − before`` over the floating-point tensors: a site's update Δ."""
    return {name: after[name] - tensor for name, tensor in floating(before).items()}


def moved(base: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> Weights:
    """Return ``base + delta``; tensors that `delta` does not name stay as they are in `base`."""
    return {
        name: (tensor + delta[name].to(tensor.dtype) if name in delta else tensor.clone()) for name, tensor in base.items()
    }


def is_statistic(name: str) -> bool:
    """Whether `name` is a running statistic of batch norm: learned by counting, not by gradient."""
    return name.endswith(("running_mean", "running_var"))


def norm(delta: Mapping[str, Tensor]) -> float:
    """Euclidean norm of an update's parameters. Batch-norm statistics are left out: they live on another scale.

    To the last digit the same in any order of the names and any memory format: weights that were read from a checkpoint have
    others than those that were sent.
    """
    squares = (tensor.contiguous().double().pow(2).sum() for name, tensor in delta.items() if not is_statistic(name))
    return math.sqrt(math.fsum(map(float, squares)))


def snapshot(model: torch.nn.Module) -> Weights:
    """A copy of the model's weights on the CPU that later training does not change."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def save_weights(
    weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None, spare: Path | None = None
) -> None:
    """Write a safetensors file atomically; with `spare`, keep there what `path` held before.

    Raises
    ------
    StorageError : the file cannot be written; an earlier file of that name is untouched
    """
    write_atomically(path, save({name: t.contiguous() for name, t in weights.items()}, dict(metadata or {})), spare)


def load_weights(path: Path) -> Weights:
    """Read a safetensors file, or a torch state dict (``weights_only=True``: no code runs).

    Raises
    ------
    DataError : the file is missing or is neither
    """
    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())  # of a file by its name, safetensors 0.8.0 never frees two objects a tensor
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler answers damaged bytes with errors of any type
        # torch's own text advises to load again with code allowed; nobody should.
        reason = "it is damaged or holds more than tensors" if isinstance(error, UnpicklingError) else error
        raise DataError(f"no readable model at {path}: {reason}. Expected .safetensors or a torch state dict.") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise DataError(f"{path} holds {type(loaded).__name__}, not a state dict of tensors; save model.state_dict().")
    return dict(loaded)
