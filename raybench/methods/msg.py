"""MSG (masked small gradients): re-initialise convolution weights that retain and forget set agree on, fine-tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.mechanisms.finetuning import train
from raybench.mechanisms.saliency import summed_gradients
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import at_least, nuisance, scientific
from raybench.task import UnlearningTask

SALIENCY_BATCH = 64  # samples a batch of the gradients that choose the weights, fixed in the published code


@dataclass(frozen=True)
class MsgHparams:
    """Defaults: the entry of the NeurIPS 2023 challenge as Deep Unlearn ports it."""

    share: Annotated[float, scientific(FloatDistribution(0.0, 1.0))] = 0.3
    """Share of every convolution's weights that is re-initialised, those with the smallest gradients; 1 takes all."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-5, 1e-1, log=True))] = 1e-3
    """Peak learning rate."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 5
    """Passes over D_r."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    slowdown: float = 0.1
    """Factor on the gradients of the convolution weights that are kept."""
    schedule: Literal["linear", "cosine", "none"] = "linear"
    """Learning rate after the warm-up."""
    warmup: float = 0.5
    """Fraction of the run over which the learning rate rises."""

    def __post_init__(self) -> None:
        at_least(self, 0, "slowdown")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share must be in [0, 1], got {self.share}")


@METHODS.register(
    "msg",
    hparams=MsgHparams,
    label="MSG",
    paper="arXiv:2410.01276",
    needs={FORGET, RETAIN},
    tiny={"epochs": 2},
    complexity="2 N_f + E N_r",
    batch_norm="move",
)
def msg(task: UnlearningTask, hp: MsgHparams) -> nn.Module:
    """g = sum of grad loss(D_r subset) - sum of grad loss(D_f); reset where |g| is small; fine-tune on D_r.

    Second place of the NeurIPS 2023 unlearning challenge; as Cadet et al. 2024 (Deep Unlearn) describe and port it.
    The subset of D_r is random and as large as D_f. In each convolution separately the share of entries with the
    smallest |g| gets a fresh Kaiming draw (normal, fan out); in the fine-tuning the gradients of its other entries
    count a tenth. All other parameters train as usual; a network without convolutions is just fine-tuned.
    Batch norm trains in the fine-tuning, so its buffers move. Reports ``reset``, the re-initialised share of all
    parameters. Cost: 2 |D_f| + epochs x |D_r| sample passes.

    Deviations:
        - g is taken in evaluation mode on images without augmentation; the ported code uses whatever mode the network
          is in, and where that is training, its gradients depend on the order and move batch norm.
        - biases of convolutions are kept; the ported code, which swaps the layers, draws them anew by accident.
        - the learning rate moves by step, up over half of the run and down to zero; the code moves it by epoch.
        - augmentation is the recipe's, so that all methods see the same images.
    """
    model = task.model
    weights = {
        f"{name}.weight": module.weight for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    if not weights:
        return train(task, model, task.retain, hp)
    saliency = task.once("saliency", lambda generator: gradient_difference(task, set(weights), generator))
    scales = []
    changed = 0
    for name, weight in weights.items():
        mask = smallest(saliency[name].abs(), hp.share)
        fresh = nn.init.kaiming_normal_(torch.empty_like(weight), mode="fan_out", generator=task.generator)
        with torch.no_grad():
            weight.copy_(torch.where(mask, fresh, weight))
        scales.append((weight, torch.where(mask, 1.0, hp.slowdown)))
        changed += int(mask.sum())

    def slow_down() -> None:
        for weight, scale in scales:
            if weight.grad is not None:
                weight.grad.mul_(scale)

    task.report({"reset": changed / sum(p.numel() for p in model.parameters())})
    return train(task, model, task.retain, hp, before_step=slow_down)


def gradient_difference(task: UnlearningTask, names: set[str], generator: torch.Generator) -> dict[str, Tensor]:
    """Parameter name -> summed gradients on a random part of D_r, as large as D_f, minus those on D_f."""
    order = torch.randperm(len(task.retain), generator=generator, device=generator.device)
    part = task.retain.subset(order[: len(task.forget)])
    kept = summed_gradients(task.model, part.batches(SALIENCY_BATCH), task.loss)
    gone = summed_gradients(task.model, task.forget.batches(SALIENCY_BATCH), task.loss, weight=-1.0)
    return {name: kept[name] + gone[name] for name in names}


def smallest(values: Tensor, share: float) -> Tensor:
    """Bool mask of the round(share * numel) smallest entries of ``values``."""
    chosen = torch.topk(values.flatten(), round(share * values.numel()), largest=False).indices
    return (
        torch.zeros(values.numel(), dtype=torch.bool, device=values.device).index_fill_(0, chosen, True).view_as(values)
    )
