"""Rewind (InvWNN): train on D_f a little more, and let a learned predictor undo that and what came before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.mechanisms.rewind_loop import check_settings, rewind_by_history
from raybench.mechanisms.rewinding import HISTORY, load_predictors
from raybench.registry import CLASSIFICATION, DENOISING, FORGET, METHODS
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class RewindHparams:
    """Defaults: the authors' ResNet-18 script (25,000 images to forget; smaller sets need larger steps)."""

    rewinds: Annotated[int, scientific(IntDistribution(1, 10))] = 10
    """Rewinds R; a stopping rule of the spec may end the run earlier."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-6, 1e-2, log=True))] = 1e-6
    """Learning rate of the fine-tuning on D_f: how far each recorded history goes."""
    warmup_epochs: int = 2
    """Epochs on D_f before a history begins (the authors' PVT script has none, and so has the paper)."""
    batch_size: int = 256
    """Samples a step of the fine-tuning."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Update rule of the fine-tuning; sgd (the PVT script) has momentum 0.9. Its state lives through the rewinds."""
    augment: bool = True
    """Apply the dataset's augmentation to D_f."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Scales, shifts and running statistics of normalisation layers: held still, or trained and rewound (running
    statistics then follow D_f and are not rewound). Frozen runs the whole network in evaluation mode."""
    clip: float | None = None
    """Guard: no tensor's step is longer than this share of its own norm (0.05 is mild); None is off."""

    def __post_init__(self) -> None:
        check_settings(self)


@METHODS.register(
    "rewind",
    hparams=RewindHparams,
    label="Rewind (InvWNN)",
    paper="doi:10.1609/aaai.v39i25.34822",
    needs={FORGET},
    tasks={CLASSIFICATION, DENOISING},
    tiny={"rewinds": 1, "warmup_epochs": 1, "lr": 1e-3},
    complexity="rewinds x (warm-up + 14) x N_f",
    batch_norm="read unless batch_norm: train",
)
def rewind(task: UnlearningTask, hp: RewindHparams) -> nn.Module:
    """Jang, Kim and Youn 2025: a learned predictor undoes the fine-tuning of each weight on D_f, and what came before.

    AAAI, algorithm 1: fine-tune on D_f for K = 15 recorded states Phi_0..Phi_14, then
    theta_i <- Phi_0,i + g_op(i)(history of i) for every single weight i; repeat.

    The predictors g (convolutions, dense layers, all else) guess where a weight was 3 epochs before Phi_0; they were
    trained once on histories of other small networks and come with the package (``resources/rewind``). Nothing but
    D_f is used. Reports ``moved``, the norm of Phi_14 - Phi_0: where the model fits D_f already, histories are noise
    and so is the rewind. ``task_vector`` is the control that it has to beat: the authors' own predictors are nearly
    linear in Phi_0 - Phi_14 at the step sizes of their script.
    Cost: rewinds x (warm-up + 14) x |D_f| sample passes, and 62,609 multiplications per weight and rewind.
    Batch norm: scales, shifts and running statistics stay as they are, unless told to train.

    Deviations:
        - predictors of our own; the released ones carry no licence, and two of the three are the same file. They were
          trained on 40 histories of LeNet-5 and VGG-8 on MNIST by Adam, and for a quarter on made-up exponential ones,
          which the paper does not have. Trained on real histories alone, conv is 7 % better on held-out networks (fc
          and bias within 2 %), but on exponential histories a single coefficient on the last step beats all three, and
          convolutions that stand still drift by 1e-4 a rewind instead of 6e-6. Spec and validation numbers of both lie
          beside the file; those on exponential histories are of the family that a quarter of the training was.
        - the biases of the predictors' dense layers are held at zero instead of being driven there by an L1 penalty of
          0.1 (so is that of the joining unit, which the authors leave free), the penalty of 1e-6 on the kernels is left
          out, and all layers start small; the authors start ActNet and the joining unit by Glorot's rule.
        - windows are stratified by how far they move, and seen with a random sign.
        - no epoch after the last recorded one; the authors' code runs a fifteenth, of which only the optimiser's state
          has an effect.
        - augmentation is the dataset's (crops and flips); the authors' code also rotates, shears and zooms.
        - with frozen batch norm the whole network is in evaluation mode, so dropout is off as well.
        - ranks 3 and above use the predictor of convolutions, 2 that of dense layers, 0 and 1 that of biases; the
          authors' code leaves other ranks undefined.
    """
    predictors = load_predictors(task.resource("predictors.safetensors"), task.device)
    for net in predictors.values():
        task.track(net)

    def predict(kind: str, history: Tensor) -> Tensor:
        residual: Tensor = predictors[kind](history.float()).to(history.dtype)
        return residual

    return rewind_by_history(task, hp, predict, HISTORY)
