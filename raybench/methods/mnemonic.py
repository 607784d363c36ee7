"""Mnemonic codes: train with one random code per class mixed in, then forget a class without any data.

Written from the paper's equations. Where the paper's Algorithm 2 and its Equation 6 differ (gradients summed, or
squared and summed) the equation holds: unsquared sums over the retained classes would cancel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from raybench.registry import CLASS, METHODS
from raybench.space import scientific
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob, train_standard

OFFSET = 1e-16  # added to both sums of squares before they are divided by the numbers of classes
CODES_A_PASS = 256


@dataclass(frozen=True)
class MnemonicTraining:
    """Own training of the original model."""

    t_mix: float = 0.1
    """Chance that a sample is replaced by the code of its class (paper: 0.1 on MNIST, 0.3 on CIFAR-10, 0.1 to 0.8
    tried). On 1 300 digits 0.1 does for the paper's sigmoid network; ReLU networks want 0.5 or more, and fail on
    some seeds even so."""
    code_dist: Literal["uniform01", "normal"] = "uniform01"
    """How codes are drawn: uniform on [0, 1], or standard normal. The paper's text says normal, but its published
    lambda1 and lambda2 fit uniform codes, so they go together as defaults."""
    finetune_epochs: int = 0
    """0 mixes codes in from the start. Otherwise the model is first trained by the standard recipe without codes,
    then this many epochs with them, as the paper does on ImageNet."""
    finetune_lr: float = 1e-3
    """Constant learning rate of those epochs."""

    def __post_init__(self) -> None:
        if not 0.0 < self.t_mix <= 1.0:
            raise ValueError(f"t_mix must be in (0, 1], got {self.t_mix}")
        if self.finetune_epochs < 0:
            raise ValueError(f"finetune_epochs must not be negative, got {self.finetune_epochs}")


@METHODS.training("mnemonic", hparams=MnemonicTraining, label="Mnemonic codes", paper="arXiv:2306.05670")
def train_with_codes(job: TrainingJob) -> Trained:
    """Yamashita et al. 2024, Algorithm 1: p(x) = t_mix p_code + (1 - t_mix) p_data (Equation 1).

    A code takes the place of the augmented and normalised image and is never normalised itself; the label stays.
    Artefact ``codes`` [K, C, H, W].
    """
    hp: MnemonicTraining = job.hparams
    shape = (job.num_classes, *job.input_shape)
    draw = torch.rand if hp.code_dist == "uniform01" else torch.randn
    codes = draw(shape, generator=job.generator, device=job.device)

    def mix(images: Tensor, labels: Tensor) -> Tensor:
        replace = torch.rand(len(labels), generator=job.generator, device=job.device) < hp.t_mix
        return torch.where(replace[:, None, None, None], codes[labels], images)

    if hp.finetune_epochs == 0:
        model = job.new_model()
        job.fit(model, batch_transform=mix)
    else:
        model = train_standard(job).model
        recipe = dataclasses.replace(
            job.recipe, epochs=hp.finetune_epochs, lr=hp.finetune_lr, schedule="none", warmup=0.0
        )
        job.fit(model, recipe, batch_transform=mix)
    return Trained(model, {"codes": codes})


@dataclass(frozen=True)
class MnemonicHparams:
    """Defaults: the paper's for MNIST (appendix A); it uses (1e-5, 1e4) on CIFAR-10."""

    lambda1: Annotated[float, scientific(FloatDistribution(1e-6, 1e-1, log=True))] = 1e-3
    """Step length: the most that a weight change is of its Fisher ratio."""
    lambda2: Annotated[float, scientific(FloatDistribution(1e-1, 1e5, log=True))] = 10.0
    """The most that any weight of a tensor changes."""
    last_layer_only: bool = False
    """Control: perturb the head only. Much of the effect is suppression of the class's output row."""


@METHODS.register(
    "mnemonic",
    hparams=MnemonicHparams,
    label="MNC",
    paper="arXiv:2306.05670",
    needs=set(),
    scope={CLASS},
    training="mnemonic",
)
def mnemonic(task: UnlearningTask, hp: MnemonicHparams) -> nn.Module:
    """Yamashita et al. 2024, Algorithm 2: one perturbation w +- alpha eta along the Fisher ratio of the codes.

    eta = f_F / f_R (Equation 6) with the class means of squared gradients at the codes, alpha per tensor
    (Equation 7), one sign for the whole network: that with the larger A_R + E_F on the codes; equal means minus.
    Batch-norm buffers stay. Reports ``code_a_r``, ``code_e_f``, ``sign`` and ``largest_change``.
    Cost: K sample passes and 2 K forward passes; no data.
    """
    codes = task.artefacts["codes"]
    forget, retain = _code_gradients(task, codes)
    part: nn.Module = task.model.head if hp.last_layer_only else task.model  # type: ignore[assignment]
    chosen = {id(p) for p in part.parameters()}
    step = {
        name: perturbation(forget[name], retain[name], hp.lambda1, hp.lambda2)
        for name, p in task.model.named_parameters()
        if id(p) in chosen
    }
    start = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    outcome = {}
    for sign in (-1, 1):
        _move(task.model, start, step, sign)
        outcome[sign] = _code_scores(task.model, codes, task.forget_classes)
    sign = 1 if sum(outcome[1]) > sum(outcome[-1]) else -1
    _move(task.model, start, step, sign)
    a_r, e_f = outcome[sign]
    largest = max(float(change.abs().max()) for change in step.values())
    task.report({"code_a_r": a_r, "code_e_f": e_f, "sign": sign, "largest_change": largest})
    return task.model


def perturbation(forget: Tensor, retain: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """alpha eta of one tensor (Equations 6 and 7), float64, with alpha = min(lambda1, lambda2 / max eta).

    ``forget`` and ``retain`` are f_F and f_R of the tensor. The ratio is taken in log space; where it is not a
    number eta is 1, and where it is infinite eta is the tensor's largest finite one.
    """
    log_ratio = forget.double().log() - retain.double().log()
    log_ratio = torch.where(log_ratio.isnan(), 0.0, log_ratio)
    largest = log_ratio[log_ratio < torch.inf].max() if bool((log_ratio < torch.inf).any()) else log_ratio.new_zeros(())
    eta = log_ratio.clamp(max=largest).exp()
    return torch.clamp(lambda2 / eta.max(), max=lambda1) * eta


def mean_squares(gradients: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """(sum of squares + 1e-16) / number of gradients, per parameter: f_F or f_R from the gradients of its classes."""
    total: dict[str, Tensor] = {}
    count = 0
    for count, gradient in enumerate(gradients, start=1):  # noqa: B007, the last count is what divides
        for name, value in gradient.items():
            total[name] = total.get(name, torch.full_like(value, OFFSET)) + value.square()
    return {name: value / count for name, value in total.items()}


def _code_gradients(task: UnlearningTask, codes: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """f_F and f_R of the original model, one backward pass per class, batches of one."""
    model = task.model

    def gradient(label: int) -> dict[str, Tensor]:
        target = torch.tensor([label], device=codes.device)
        parameters = dict(model.named_parameters())
        value = task.loss(model, (codes[label : label + 1], target)).sum()
        return dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))

    def compute(_: torch.Generator) -> dict[str, Tensor]:
        kept = [label for label in range(task.num_classes) if label not in task.forget_classes]
        forget = mean_squares(gradient(label) for label in task.forget_classes)
        retain = mean_squares(gradient(label) for label in kept)
        return {f"forget/{n}": v for n, v in forget.items()} | {f"retain/{n}": v for n, v in retain.items()}

    both = task.once("code_gradients", compute)
    names = [name for name, _ in model.named_parameters()]
    return {name: both[f"forget/{name}"] for name in names}, {name: both[f"retain/{name}"] for name in names}


@torch.no_grad()
def _move(model: nn.Module, start: Mapping[str, Tensor], step: Mapping[str, Tensor], sign: int) -> None:
    for name, p in model.named_parameters():
        if name in step:
            p.copy_(start[name] + sign * step[name])


@torch.no_grad()
def _code_scores(model: nn.Module, codes: Tensor, forget_classes: Sequence[int]) -> tuple[float, float]:
    """(A_R, E_F) measured on the codes themselves."""
    predicted = torch.cat([model(some).argmax(1) for some in codes.split(CODES_A_PASS)])
    correct = predicted == torch.arange(len(codes), device=codes.device)
    forgotten = torch.zeros_like(correct)
    forgotten[list(forget_classes)] = True
    return float(correct[~forgotten].double().mean()), 1.0 - float(correct[forgotten].double().mean())
