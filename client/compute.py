"""Where and how a site runs a model: device, precision, compilation. Whoever calls the model need not know.

GPU paths are the plain patterns: pinned memory and non-blocking copies to CUDA, autocast to bfloat16, `Module.compile`.
float16 is not offered: it needs loss scaling in every loop, and bfloat16 has the range of float32.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from excise.client.config import SiteConfig
from excise.client.unlearning.inference import images_at_once
from excise.common.files import write_atomically
from excise.common.models import ModelSpec

Precision = Literal["float32", "bfloat16"]
CHOICES = "precision.json"
"""In the site's state: what was measured, so that every round and every run repeats it."""
_BATCH, _REPEATS = 32, 3


def device_of(config: SiteConfig) -> torch.device:
    """The device that the site wants; `auto` is a GPU when there is one."""
    wanted = config.device
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy to the device; to CUDA from pinned memory, without waiting for it."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def placed(model: nn.Module, spec: ModelSpec, config: SiteConfig) -> nn.Module:
    """Move `model` to the site's device and let it run as `config.compute` says; names and dtypes of its weights stay.

    Raises
    ------
    StorageError : what was measured cannot be kept
    """
    device = device_of(config)
    if device.type == "cuda" and config.limits.gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(config.limits.gpu_share, device)
    model.to(device)
    wanted = config.compute.precision
    if (_measured(model, spec, device, config.state) if wanted == "auto" else wanted) == "bfloat16":
        run_in_bfloat16(model, device)
    if config.compute.compile:
        model.compile()
    return model


def run_in_bfloat16(model: nn.Module, device: torch.device) -> None:
    """Let `model` compute in bfloat16 wherever autocast finds that safe. It still takes and gives float32."""
    kind = type(model)

    class InBfloat16(kind):  # type: ignore[misc, valid-type] # a class, not a wrapped method: copies must call themselves
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits: Tensor = super().forward(x)
            return logits.float()

    model.__class__ = InBfloat16


def _measured(model: nn.Module, spec: ModelSpec, device: torch.device, state: Path) -> Precision:
    """The faster precision, from the site's disk or measured now."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    key = hashlib.sha256(f"{spec.model_dump_json()}|{name}|{torch.__version__}".encode()).hexdigest()[:16]
    path = state / CHOICES
    known: dict[str, Precision] = json.loads(path.read_text()) if path.exists() else {}
    if key not in known:
        known[key] = faster_precision(model, spec, device)
        write_atomically(path, json.dumps(known, indent=2))
    return known[key]


def faster_precision(model: nn.Module, spec: ModelSpec, device: torch.device) -> Precision:
    """Time a forward and a backward pass in both precisions, in turn; the model's weights are not changed.

    A processor without bfloat16 emulates it many times more slowly, so the measurement ends as soon as it is clear.
    """
    x = torch.rand(1, spec.channels, *[spec.size] * spec.dims, generator=Generator().manual_seed(0)).to(device)
    x = x.expand(min(_BATCH, images_at_once(x)), *x.shape[1:])
    was_training = model.training
    model.eval()  # in training mode batch statistics would move
    try:
        plain, cast = (_seconds(model, x, cast) for cast in (False, True))  # these set things up too
        if cast > 10 * plain:
            return "float32"
        pairs = [(_seconds(model, x, False), _seconds(model, x, True)) for _ in range(_REPEATS)]
        return "bfloat16" if min(cast for _, cast in pairs) < min(plain for plain, _ in pairs) else "float32"
    finally:
        model.train(was_training)


def _seconds(model: nn.Module, x: Tensor, cast: bool) -> float:
    """Seconds of one forward and one backward pass to the weights."""
    _wait(x.device)
    began = time.perf_counter()
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=cast):
        loss = model(x).float().logsumexp(1).sum()
    torch.autograd.grad(loss, [parameter for parameter in model.parameters() if parameter.requires_grad], allow_unused=True)
    _wait(x.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
