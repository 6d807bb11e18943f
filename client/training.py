"""Ordinary local training: what a site does in a round of federated averaging, before anyone asks to forget."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from excise.client.augmentation import augment
from excise.client.unlearning.labels import boundary_losses
from excise.common.randomness import layers_seeded_by
from excise.common.settings import TrainingSettings


def steps_of(settings: TrainingSettings, images: int) -> int:
    """Gradient steps of one round over so many images."""
    return settings.epochs * math.ceil(images / settings.batch_size)


def train_locally(
    model: nn.Module, x: Tensor, y_N: Tensor, settings: TrainingSettings, round_index: int, generator: Generator
) -> tuple[float, int]:
    """Train `model` in place for `settings.epochs` passes over the images.

    Parameters
    ----------
    x : images in [0, 1], (N, channels, *spatial)
    y_N : classes, int64 (N,); or labels, float (N, L), whose binary cross-entropies are averaged
    round_index : 0-based; the step size falls along a cosine over all rounds
    generator : source of the order and of the augmentation

    Returns
    -------
    mean loss of the last pass, and the number of images sent through the model
    """
    learning_rate = settings.learning_rate * (1 + math.cos(math.pi * round_index / settings.rounds)) / 2
    parameters = list(model.parameters())
    optimiser = torch.optim.SGD(parameters, learning_rate, settings.momentum, weight_decay=settings.weight_decay)
    model.train()
    mean_loss, passes = math.nan, 0
    with layers_seeded_by(generator, x.device):
        for _ in range(settings.epochs):
            losses = []
            for index in torch.randperm(len(x), generator=generator).split(settings.batch_size):
                if len(index) < 2:
                    continue  # batch norm cannot normalise a single image
                batch = augment(x[index], generator) if settings.augment and x.ndim == 4 else x[index]
                loss = boundary_losses(model(batch), y_N[index]).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                optimiser.step()
                losses.append(loss.detach())
                passes += len(index)
            mean_loss = float(torch.stack(losses).mean()) if losses else math.nan
    model.eval()
    return mean_loss, passes
