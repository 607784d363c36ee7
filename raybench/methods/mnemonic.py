"""Mnemonic codes: train with one random code per class mixed in, then forget a class without any data.

Written from the paper's equations. Where the paper's Algorithm 2 and its Equation 6 differ (gradients summed, or
squared and summed) the equation holds: unsquared sums over the retained classes would cancel.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from raybench.mechanisms.codes import code_fishers, replaced_by_codes
from raybench.mechanisms.fisher_step import class_scores, perturbation, step_by_better_sign
from raybench.registry import CLASS, METHODS
from raybench.space import scientific
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob, train_standard

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
    mix = replaced_by_codes(job, codes, hp.t_mix)
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
    complexity="K",
    batch_norm="read",
)
def mnemonic(task: UnlearningTask, hp: MnemonicHparams) -> nn.Module:
    """Yamashita et al. 2024, Algorithm 2: one perturbation w +- alpha eta along the Fisher ratio of the codes.

    eta = f_F / f_R (Equation 6) with the class means of squared gradients at the codes, alpha per tensor
    (Equation 7), one sign for the whole network: that with the larger A_R + E_F on the codes; equal means minus.
    Gradients are taken in evaluation mode; batch-norm buffers are read and stay. Reports ``code_a_r``, ``code_e_f``,
    ``sign`` and ``largest_change``. Codes that are not one per class of the problem's shape raise ``ValueError``.
    Cost: K sample passes and 2 K forward passes; no data. The training with codes costs what a standard one does.

    Deviations:
        - gradients are squared class by class before they are summed, as Equation 6 and the official code have it;
          the printed Algorithm 2 sums them unsquared, so that those of the retained classes would cancel.
        - codes are uniform on [0, 1] unless ``code_dist`` is normal: the text says standard normal, the official code
          draws uniform ones, and the published lambda1 and lambda2 fit these.
        - a "layer" of Equation 7 is one parameter tensor (kernels and shifts apart, scale and shift of a batch norm
          too), as in the official code; the paper gives no list.
        - 1e-16 is added to both sums before they are divided, and eta is 1 where 0 / 0 and the tensor's largest
          finite value where it is infinite: the official code's rules, of which the paper says nothing.
        - replacements are drawn from the seeded generator of the training; the official code's draws cannot be
          repeated.
        - lambda1, lambda2 and t_mix are chosen on validation data; the paper's criterion A_R + E_F is on test data.
    """
    codes = _codes(task)
    forget, retain = code_fishers(task, codes)
    part: nn.Module = task.model.head if hp.last_layer_only else task.model  # type: ignore[assignment]
    chosen = {id(p) for p in part.parameters()}
    step = {
        name: perturbation(forget[name], retain[name], hp.lambda1, hp.lambda2)
        for name, p in task.model.named_parameters()
        if id(p) in chosen
    }

    @torch.no_grad()
    def scores(model: nn.Module) -> tuple[float, float]:
        predicted = torch.cat([model(some).argmax(1) for some in codes.split(CODES_A_PASS)])
        return class_scores(predicted, torch.arange(len(codes), device=codes.device), task.forget_classes)

    found = step_by_better_sign(task.model, step, scores)
    task.report({"code_a_r": found.a_r, "code_e_f": found.e_f, "sign": found.sign})
    task.report({"largest_change": found.largest_change})
    return task.model


def _codes(task: UnlearningTask) -> Tensor:
    """The codes [K, C, H, W] that the own training left; ``ValueError`` where they are not this problem's."""
    codes, expected = task.artefacts.get("codes"), (task.num_classes, *task.input_shape)
    if codes is None or tuple(codes.shape) != expected:
        got = "none" if codes is None else f"codes of shape {tuple(codes.shape)}"
        raise ValueError(
            f"mnemonic must get one code per class of shape {expected} from the training of the original, got {got}; "
            "train the original of this dataset and model with codes"
        )
    return codes
