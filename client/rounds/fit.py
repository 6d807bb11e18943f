"""One round of ordinary federated training."""

from __future__ import annotations

import time

from torch import Generator

from excise.client.compute import device_of, to_device
from excise.client.extent import check_images, check_steps
from excise.client.rounds.model import check_model, load_model
from excise.client.rounds.update import make_update
from excise.client.site import Site
from excise.client.training import steps_of, train_locally
from excise.common.errors import DataError
from excise.common.messages import FitInstruction, SiteUpdate


def answer(site: Site, instruction: FitInstruction) -> SiteUpdate:
    """Ordinary local training on the training images, without those of `instruction.without`."""
    began = time.perf_counter()
    check_model(site, instruction.model)
    index = site.select(instruction.without).retain
    if len(index) == 0:
        raise DataError("no training image is left")
    check_images([(1.0, len(index))], site.config.policy.min_count)
    check_steps(steps_of(instruction.training, len(index)), site.config.limits)
    model, device = load_model(site, instruction.model, instruction.weights), device_of(site.config)
    generator = Generator().manual_seed(instruction.seed)
    x, y_N = to_device(site.x[index], device), to_device(site.y_N[index], device)
    loss, passes = train_locally(model, x, y_N, instruction.training, instruction.round_index, generator)
    told = {"loss": loss} if len(index) >= site.config.policy.min_count else {}
    return make_update(instruction.weights, model, site.config.policy.told(passes), began, told)
