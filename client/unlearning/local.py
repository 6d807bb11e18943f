"""The upper level at one site: a few joint gradient steps on F_k.

One *joint* step sends a forget mini-batch and a retain mini-batch through the student in one forward pass. The forget term
stays in every round until the last: "forget, then repair on retain data" brings memorised samples back.

Batch norm. A batch of forget images alone poisons the running statistics, so they are frozen for it whatever the settings
say (but for `published`, which repeats that fault). In mixed batches they may be live, and are then composed like weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from excise.client.unlearning.objective import forget_loss, proximal, retain_loss, site_objective
from excise.common.randomness import layers_seeded_by
from excise.common.settings import LocalSettings

LIVE_UP_TO = 0.25
"""Largest distance of a batch's classes from the retain images' at which `batch_norm = "auto"` is `live` (docs/adr/0014)."""
MAX_REFUSALS = 4
"""Times that a round may be taken back."""


class Diverged(ArithmeticError):
    """A round's gradients were not finite, however small its steps."""


@dataclass(frozen=True)
class ForgetSet:
    """Forget images (N, channels, *spatial) in [0, 1] and their targets (N, C), of labels when `labels` says so.

    `distance` is that of their classes from the retain images' (`ClassMix.distance`), in [0, 1].
    """

    x: Tensor
    targets_NC: Tensor
    labels: bool = False
    distance: float = 0.0


@dataclass(frozen=True)
class RetainSet:
    """Retain images (N, channels, *spatial) in [0, 1], their classes (N,) or labels (N, L), and logits to distil."""

    x: Tensor
    y_N: Tensor
    teacher_logits_NC: Tensor | None = None


@dataclass(frozen=True)
class LocalResult:
    """How the local steps went.

    Attributes
    ----------
    forget_loss, retain_loss : means over the steps; NaN where there was no such term
    gradient_norm : mean norm of ∇F_k before clipping
    step_sum : how far one constant unit gradient would have moved the weights: Σ_t η_t·(1 − m^{t+1})/(1 − m), m the momentum
    passes : images sent through the student, forward and backward
    refusals : times that the round was taken back and begun again with steps half as large
    """

    forget_loss: float
    retain_loss: float
    gradient_norm: float
    step_sum: float
    passes: int
    refusals: int = 0


def unlearn_locally(
    student: nn.Module,
    forget: ForgetSet | None,
    retain: RetainSet | None,
    a_k: float,
    settings: LocalSettings,
    round_index: int,
    generator: Generator,
    teacher: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """Take the joint steps of one round of SGD on F_k, changing `student` in place.

    A round in which a gradient is not finite is taken back and begun again with steps half as large.

    Parameters
    ----------
    student : the model as it came from the coordinator
    forget, retain : this site's images; one of them may be None when `a_k` gives it no weight
    a_k : weight of the forget term in this site's objective, in [0, 1]
    round_index : 0-based; the step size continues its schedule over all rounds
    generator : source of the mini-batches
    teacher : weights θ0 of the deployed model, for the proximal term; needed when μ > 0

    Raises
    ------
    ValueError : a loss with weight has no images, or μ > 0 without `teacher`
    Diverged : the loss or its gradient was not finite, even with smaller steps; `student` is as it came
    """
    use_forget, use_retain = forget is not None and a_k > 0, retain is not None and a_k < 1
    if not (use_forget or use_retain):
        raise ValueError(f"no images for any loss that a_k = {a_k:.3g} weighs")
    if (use_forget and forget and len(forget.x) == 0) or (
        use_retain and retain and 0 in (len(retain.x), settings.retain_batch)
    ):
        raise ValueError(f"no images for a loss that a_k = {a_k:.3g} weighs: its set or its mini-batch is empty")
    if settings.mu > 0 and teacher is None:
        raise ValueError("mu > 0 pulls towards the deployed model, whose weights were not given")
    objective = _Objective(forget if use_forget else None, retain if use_retain else None, a_k, settings, teacher)
    first = round_index * settings.steps
    rates = [step_size(settings, first + step) for step in range(objective.steps)]
    before, batches = {name: x.detach().clone() for name, x in student.state_dict().items()}, generator.get_state()
    for refusals in range(MAX_REFUSALS + 1):
        result = _take_steps(student, objective, [rate / 2**refusals for rate in rates], generator)
        if result is not None:
            return replace(result, passes=result.passes * (refusals + 1), refusals=refusals)
        student.load_state_dict(before)
        generator.set_state(batches)
    raise Diverged(
        f"the loss or its gradient was not finite, even with steps of 1/{2**MAX_REFUSALS} of the size; "
        "use a smaller learning_rate, or look for faults in the images"
    )


@dataclass(frozen=True)
class _Objective:
    """F_k on mini-batches; a set that has no weight is None."""

    forget: ForgetSet | None
    retain: RetainSet | None
    a_k: float
    settings: LocalSettings
    teacher: Mapping[str, Tensor] | None

    @property
    def steps(self) -> int:
        """Steps of one round."""
        return steps_of_round(self.settings, len(self.forget.x) if self.forget else 0)

    def batches(self, steps: int, generator: Generator) -> tuple[Tensor | None, Tensor | None]:
        """Rows of each set in every step, on the device of their images, int64 (steps, B); None for an absent set."""
        forget, retain = self.forget, self.retain
        f = _batches(len(forget.x), self.settings.forget_batch, generator) if forget else None
        r = _batches(len(retain.x), self.settings.retain_batch, generator) if retain else None
        drawn = [(next(f) if f else None, next(r) if r else None) for _ in range(steps)]  # in turn, step by step
        f_SB = torch.stack([i for i, _ in drawn if i is not None]).to(forget.x.device) if forget else None
        r_SB = torch.stack([i for _, i in drawn if i is not None]).to(retain.x.device) if retain else None
        return f_SB, r_SB

    def at(self, student: nn.Module, f: Tensor | None, r: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """F_k on the rows `f` and `r`, sent through the student together, with its forget and its retain term."""
        inputs = [s.x[i] for s, i in ((self.forget, f), (self.retain, r)) if s is not None and i is not None]
        logits = student(torch.cat(inputs))
        cut = len(f) if f is not None else 0
        forget = (
            forget_loss(logits[:cut], self.forget.targets_NC[f], self.forget.labels) if self.forget and f is not None else None
        )
        retain = _retain_term(logits[cut:], self.retain, r, self.settings) if self.retain and r is not None else None
        pull = proximal(student, self.teacher) if self.settings.mu > 0 and self.teacher else None
        return site_objective(forget, retain, self.a_k, pull, self.settings.mu), forget, retain


def _take_steps(student: nn.Module, objective: _Objective, rates: Sequence[float], generator: Generator) -> LocalResult | None:
    """One step of SGD for each of `rates`; None when anything was not finite."""
    settings, steps = objective.settings, len(rates)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    device = parameters[0].device
    optimiser = torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum)
    f_SB, r_SB = objective.batches(steps, generator)
    images = sum(index.shape[1] for index in (f_SB, r_SB) if index is not None)
    distance = objective.forget.distance * f_SB.shape[1] / images if objective.forget and f_SB is not None else 0.0
    _set_mode(student, settings, forget_only=objective.retain is None, distance=distance, single=images == 1)

    # Everything that is measured stays on the device until the round is over: a look at it would wait for the device.
    losses = torch.full((steps, 2), math.nan, device=device)
    norms = torch.zeros(steps, device=device)
    carried, step_sum = 0.0, 0.0
    with layers_seeded_by(generator, device):
        for step, rate in enumerate(rates):
            carried = settings.momentum * carried + 1
            step_sum += rate * carried
            for group in optimiser.param_groups:
                group["lr"] = rate
            f, r = (index[step] if index is not None else None for index in (f_SB, r_SB))
            value, *terms = objective.at(student, f, r)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            norms[step] = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimiser.step()
            for column, term in enumerate(terms):
                if term is not None:
                    losses[step, column] = term.detach()

    student.eval()
    if not bool(norms.isfinite().all()):
        return None
    means = losses.mean(0)
    return LocalResult(float(means[0]), float(means[1]), float(norms.mean()), step_sum, steps * images)


def _retain_term(logits_NC: Tensor, retain: RetainSet, index: Tensor, settings: LocalSettings) -> Tensor:
    teacher = retain.teacher_logits_NC
    return retain_loss(logits_NC, retain.y_N[index], teacher[index] if teacher is not None else None, settings)


def drawn_in_round(settings: LocalSettings, forget: int, retain: int) -> tuple[int, int]:
    """How many different images one round trains on, of so many `forget` and `retain` images."""
    steps = steps_of_round(settings, forget)
    return min(forget, steps * settings.forget_batch), min(retain, steps * settings.retain_batch)


def steps_of_round(settings: LocalSettings, forget: int) -> int:
    """Gradient steps of one round over so many forget images."""
    if forget and settings.epochs is not None:
        return settings.epochs * math.ceil(forget / settings.forget_batch)
    return settings.steps


def step_size(settings: LocalSettings, step: int) -> float:
    """Step size of SGD at `step`, counted from 0 over all rounds."""
    done = step / (settings.rounds * settings.steps)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return settings.learning_rate * fall[settings.schedule]


def _set_mode(student: nn.Module, settings: LocalSettings, forget_only: bool, distance: float, single: bool) -> None:
    """Training mode, with batch norm in evaluation mode where its statistics must not move, or one image gives none.

    `distance` is that of a batch's classes from the retain images'.
    """
    student.train()
    moves = {"frozen": False, "live": not forget_only, "published": True}
    moves["auto"] = not forget_only and distance <= LIVE_UP_TO
    live = moves[settings.batch_norm] and not single
    if not live:
        for module in student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def drawn_rows(y_N: Tensor, most: int | None, generator: Generator, min_count: int = 1) -> Tensor:
    """Row numbers of a random sample, at most `most` of each class, ascending, int64; all rows without `most`.

    Of every class all are drawn, or at least `min_count` and as many are left out: numbers over the sample and over the whole
    set then do not differ by those of a few images.
    """
    if most is None or len(y_N) == 0:
        return torch.arange(len(y_N))
    if y_N.ndim > 1:  # an image with several labels stands for none of them alone
        y_N = torch.zeros(len(y_N))
    most, y_N, chosen = max(most, min_count), y_N.cpu(), []
    for c in y_N.unique():
        rows = (y_N == c).nonzero().flatten()
        if len(rows) >= most + min_count:
            rows = rows[torch.randperm(len(rows), generator=generator)[:most]]
        chosen.append(rows)
    return torch.cat(chosen).sort().values


def _batches(n: int, size: int, generator: Generator) -> Iterator[Tensor]:
    """Endless mini-batches of indices; every image once before any image twice."""
    size = min(size, n)
    pool = torch.empty(0, dtype=torch.int64)
    while True:
        if len(pool) < size:
            pool = torch.cat([pool, torch.randperm(n, generator=generator)])
        yield pool[:size]
        pool = pool[size:]
