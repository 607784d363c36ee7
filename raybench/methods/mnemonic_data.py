"""Mnemonic's step from real images: the paper's ablation "ours-w-data", the control that says what codes are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from raybench.fisher import fisher_of_split
from raybench.mechanisms.fisher_step import class_mean, perturbation, step_by_race
from raybench.registry import CLASS, FORGET, METHODS, RETAIN
from raybench.space import scientific
from raybench.task import UnlearningTask

IMAGES_A_PASS = 256


@dataclass(frozen=True)
class MnemonicDataHparams:
    """Defaults and ranges of lambda1 and lambda2 as for the codes."""

    lambda1: Annotated[float, scientific(FloatDistribution(1e-6, 1e-1, log=True))] = 1e-3
    """Step length: the most that a weight change is of its Fisher ratio."""
    lambda2: Annotated[float, scientific(FloatDistribution(1e-1, 1e5, log=True))] = 10.0
    """The most that any weight of a tensor changes."""
    n: int = 100
    """Real images of each class (paper: 1, 5, 10, 100, 1000); all of a class that has fewer."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1 image of each class, got {self.n}")


@METHODS.register(
    "mnemonic_data",
    hparams=MnemonicDataHparams,
    label="MNC, real images",
    version=2,
    paper="arXiv:2306.05670",
    needs={FORGET, RETAIN},
    scope={CLASS},
    tiny={"n": 20},
    complexity="n K",
    batch_norm="read",
)
def mnemonic_data(task: UnlearningTask, hp: MnemonicDataHparams) -> nn.Module:
    """Yamashita et al. 2024, Algorithm 2 without codes (the ablation of Figure 4): w +- alpha eta, eta = f_F / f_R.

    The original is a standard one. I_c is the mean over n training images of class c of the *per-sample* squared
    gradients (an empirical Fisher diagonal, model in evaluation mode); f_F and f_R are the means of I_c over the
    forgotten and the other classes, so that every class weighs the same, with the offset of the codes' rule. Step
    lengths (Equation 7) are the codes' as well, and the one sign is that with the larger A_R + E_F on those same
    images; equal sums mean minus. n = 1 is the codes' rule with an image for the code. Batch-norm buffers stay.
    Reports ``image_a_r``, ``image_e_f``, ``sign``, ``largest_change`` and ``images``, how many were used in all.
    Cost: n K sample passes and n K to 2 n K forward passes: a sign that cannot win any more is not looked at further,
    which changes nothing but the cost (version 1 looked at all images with both, and drew others).

    Deviations:
        - the squares are per sample. The paper does not say whether an ablation's gradients are squared before or
          after the mean over the n images of a class; squared after it, f_F would shrink with n.
        - the images are drawn by the unlearn seed from the training split; whose images the paper takes is not said.
    """
    found = task.once("fishers", lambda generator: _draw_and_measure(task, hp.n, generator), n=hp.n)
    chosen = [task.forget.subset(found["forget_images"]), task.retain.subset(found["retain_images"])]
    step = {
        name: perturbation(found[f"forget/{name}"], found[f"retain/{name}"], hp.lambda1, hp.lambda2)
        for name, _ in task.model.named_parameters()
    }

    forgotten, kept = (list(split.batches(IMAGES_A_PASS)) for split in chosen)
    end = step_by_race(task.model, step, [*forgotten, *kept], task.forget_classes, start=len(forgotten) + 1)
    task.report({"image_a_r": end.a_r, "image_e_f": end.e_f, "sign": end.sign})
    task.report({"largest_change": end.largest_change, "images": sum(len(split) for split in chosen)})
    return task.model


def _draw_and_measure(task: UnlearningTask, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Positions in D_f and in D_r of up to ``n`` images of each class, and f_F and f_R on them."""
    found: dict[str, Tensor] = {}
    for part, split in (("forget", task.forget), ("retain", task.retain)):
        order = torch.randperm(len(split), generator=generator, device=generator.device)
        labels = split.targets[order]
        positions = [order[labels == label][:n] for label in labels.unique()]
        fishers = class_mean(fisher_of_split(task.model, split.subset(some), loss=task.loss) for some in positions)
        images = torch.cat(positions)  # mixed, so that the first of them tell of all classes
        found[f"{part}_images"] = images[torch.randperm(len(images), generator=generator, device=generator.device)]
        found |= {f"{part}/{name}": value for name, value in fishers.items()}
    return found
