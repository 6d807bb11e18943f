"""One round of unlearning: a few joint steps on this site's share of the objective."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from excise.client.compute import device_of, to_device
from excise.client.extent import check_images, check_steps
from excise.client.preparation import Preparation, prepare_unlearning
from excise.client.rounds.model import SiteFailure, check_model, load_model, read_teacher
from excise.client.rounds.update import make_update
from excise.client.site import Site
from excise.client.unlearning.correction import corrected_overshoot, is_corrected, measured_rows
from excise.client.unlearning.labels import boundary_losses, mix_of, scored_labels, sought_labels, strata
from excise.client.unlearning.local import (
    Diverged,
    ForgetSet,
    LocalResult,
    RetainSet,
    drawn_in_round,
    steps_of_round,
    unlearn_locally,
)
from excise.client.unlearning.negation import STEPS, images_of_step_away, is_step_away, step_away
from excise.client.unlearning.reference import Reference, as_if_unseen
from excise.client.unlearning.targets import make_targets
from excise.common.errors import MessageError, SiteError
from excise.common.messages import SiteUpdate, UnlearnInstruction
from excise.common.profiles import ALL_CLASSES, losses_of


def answer(site: Site, instruction: UnlearnInstruction) -> SiteUpdate:
    """A few joint steps on this site's share of the unlearning objective."""
    began = time.perf_counter()
    check_model(site, instruction.model)
    sets, device = site.select(instruction.request), device_of(site.config)
    teacher_weights = read_teacher(site, instruction.teacher_digest)
    teacher = load_model(site, instruction.model, teacher_weights)
    prepared = prepare_unlearning(site, sets, teacher, instruction)
    student = load_model(site, instruction.model, instruction.weights)
    forget, aimed, looks = _forget_set(site, prepared, site.y_N[sets.retain], student, instruction, device)
    retain = None
    if len(sets.retain) and instruction.a_k < 1:
        logits = prepared.teacher_logits_NC
        x, y_N = to_device(site.x[sets.retain], device), to_device(site.y_N[sets.retain], device)
        retain = RetainSet(x, y_N, logits.to(device) if logits is not None else None)
    a_k, min_count, generator = instruction.a_k, site.config.policy.min_count, Generator().manual_seed(instruction.seed)
    try:
        if forget and a_k > 0 and is_step_away(instruction.settings, instruction.round_index, forget.x, min_count):
            y_N = to_device(site.y_N[prepared.forget], device)
            result, drawn_f, drawn_r = _step_away(site, student, forget.x, y_N, instruction, generator)
        else:
            start = {name: tensor.to(device) for name, tensor in teacher_weights.items()}
            result, drawn_f, drawn_r = _joint_steps(site, student, forget, retain, start, instruction, generator)
    except Diverged as error:
        raise SiteFailure(SiteError.DIVERGED, str(error)) from error
    # Means over fewer than `min_count` images stay here, as in an audit.
    measured = {"gradient_norm": result.gradient_norm, "step_sum": result.step_sum}
    ascent = torch.empty(0)
    if drawn_r >= min_count:
        measured["retain_loss"] = result.retain_loss
    if drawn_f >= min_count:
        measured["forget_loss"] = result.forget_loss
    if len(prepared.forget) >= min_count:
        measured |= aimed | {name: float(value) for name, value in prepared.measured.items() if name != "ascent"}
        ascent = prepared.measured.get("ascent", ascent)
    passes = site.config.policy.told(prepared.passes + looks + result.passes)
    update = make_update(instruction.weights, student, passes, began, measured)
    return replace(update, ascent=tuple(ascent[~ascent.isnan()].tolist()))


def _step_away(
    site: Site, student: nn.Module, x: Tensor, y_N: Tensor, instruction: UnlearnInstruction, generator: Generator
) -> tuple[LocalResult, int, int]:
    """The step away from the forget images, and how many forget and retain images it was taken from."""
    check_steps(STEPS, site.config.limits)
    check_images([(1.0, images_of_step_away(x))], site.config.policy.min_count)
    settings = instruction.settings
    scale = settings.negation * instruction.a_k / settings.psi
    return step_away(student, x, y_N, scale, settings.local.clip_norm, generator), images_of_step_away(x), 0


def _joint_steps(
    site: Site,
    student: nn.Module,
    forget: ForgetSet | None,
    retain: RetainSet | None,
    teacher: Mapping[str, Tensor],
    instruction: UnlearnInstruction,
    generator: Generator,
) -> tuple[LocalResult, int, int]:
    """The joint steps of this round, and how many forget and retain images they were taken from."""
    local, a_k = instruction.settings.local, instruction.a_k
    of_forget, of_retain = len(forget.x) if forget else 0, len(retain.x) if retain else 0
    check_steps(steps_of_round(local, of_forget), site.config.limits)
    drawn_f, drawn_r = drawn_in_round(local, of_forget, of_retain)
    check_images([(a_k if forget else 0.0, drawn_f), (1 - a_k if retain else 0.0, drawn_r)], site.config.policy.min_count)
    result = unlearn_locally(student, forget, retain, a_k, local, instruction.round_index, generator, teacher)
    return result, drawn_f, drawn_r


def _forget_set(
    site: Site, prepared: Preparation, y_R: Tensor, student: nn.Module, instruction: UnlearnInstruction, device: torch.device
) -> tuple[ForgetSet | None, dict[str, float], int]:
    """The forget images with the targets of this round; what may be told of its overshoot, and images looked at for that.

    `y_R` are the retain images' classes.
    """
    if prepared.logits_TNC is None:
        return None, {}, 0
    settings = instruction.settings.target
    x, y_N = to_device(site.x[prepared.forget], device), to_device(site.y_N[prepared.forget], device)
    logits_TNC = to_device(prepared.logits_TNC, device)
    reference, trained = _reference_of(instruction.reference, y_N), _reference_of(instruction.trained, y_N)
    if trained:
        reference = as_if_unseen(boundary_losses(logits_TNC[0], y_N), y_N, trained, reference)
    overshoot, told, looks = None, {}, 0
    if reference and is_corrected(settings, instruction.round_index):
        min_count = site.config.policy.min_count
        looked = measured_rows(logits_TNC, y_N, settings.looks, min_count)
        overshoot = corrected_overshoot(student, x[looked], y_N[looked], settings, reference, prepared.forgotten)
        looks = len(looked)
        told = _told_overshoot(overshoot, y_N[looked], prepared.forgotten, min_count)
    targets = make_targets(logits_TNC, y_N, settings, reference, prepared.forgotten, overshoot)
    distance = mix_of(y_N.cpu(), y_R).distance()
    return ForgetSet(x, targets, labels=y_N.ndim > 1, distance=distance), told, looks


def _told_overshoot(overshoot: Tensor, y: Tensor, forgotten: Sequence[int], min_count: int) -> dict[str, float]:
    """The factor, of labels the mean of those that may be told; it tells the mean confidence on the images looked at."""
    if y.ndim == 1:
        return {"overshoot": float(overshoot)} if len(y) >= min_count else {}
    scored = scored_labels(sought_labels(y, forgotten), min_count).any(0)
    return {"overshoot": float(overshoot[scored].mean())} if bool(scored.any()) else {}


def _reference_of(told: Mapping[str, Sequence[float]], y: Tensor) -> Reference:
    """For each stratum in `y` the losses that were told of it, or stand for it; empty when nothing was told."""
    if not told:
        return {}
    if ALL_CLASSES not in told:
        raise MessageError(f"reference losses came without those of '{ALL_CLASSES}' classes together")
    return {s: torch.tensor(losses_of(s, told, y.ndim > 1), dtype=torch.float64) for s in strata(y)}
