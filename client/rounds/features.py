"""What a model's head sees of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from excise.client.extent import watch
from excise.client.unlearning.inference import frozen, images_at_once
from excise.common.models import Classifier


def features_of(model: nn.Module, x: Tensor) -> Tensor:
    """What the head sees of every image in evaluation mode, float32 (N, F)."""
    assert isinstance(model, Classifier)  # as `build_model` makes every model
    watch(model.backbone)  # the model itself, which looks at the clock, is not called
    with frozen(model), torch.no_grad():
        return torch.cat([model.features(batch).float() for batch in x.split(images_at_once(x))])
