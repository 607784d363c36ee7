"""The loop that InvWNN and the task-vector control share: fine-tune on D_f, record the history, step back from it.

Algorithm 1 of Jang, Kim and Youn, AAAI 2025 (doi:10.1609/aaai.v39i25.34822), with the warm-up epochs, optimisers and
frozen batch norm that only their code has.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from raybench.mechanisms.masking import norm_parameters
from raybench.mechanisms.rewinding import PredictKind, clip_to, in_chunks, kind_of
from raybench.task import UnlearningTask
from raybench.training import fit


class RewindSettings(Protocol):
    """The hyperparameters that the loop reads; documented in ``raybench.methods.rewind``."""

    @property
    def lr(self) -> float: ...
    @property
    def rewinds(self) -> int: ...
    @property
    def warmup_epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def optimiser(self) -> Literal["adam", "sgd"]: ...
    @property
    def augment(self) -> bool: ...
    @property
    def batch_norm(self) -> Literal["frozen", "train"]: ...
    @property
    def clip(self) -> float | None: ...


def check_settings(hp: RewindSettings) -> None:
    """``ValueError`` for settings with which the loop has no meaning."""
    for name, low in (("rewinds", 1), ("warmup_epochs", 0), ("batch_size", 1)):
        if getattr(hp, name) < low:
            raise ValueError(f"{name} must be at least {low}, got {getattr(hp, name)}")
    if hp.clip is not None and not hp.clip > 0.0:
        raise ValueError(f"clip must be above 0 or null, got {hp.clip}")


def rewind_by_history(
    task: UnlearningTask, hp: RewindSettings, predict: PredictKind, history: int, ends_only: bool = False
) -> nn.Module:
    """``hp.rewinds`` times: warm-up epochs on D_f to Phi_0, ``history - 1`` more to Phi_{K-1}, then
    Theta <- Phi_0 + predict(kind, history), tensor by tensor.

    ``ends_only`` keeps Phi_0 and Phi_{K-1} alone and gives ``predict`` those two. All epochs run in one call of the
    common loop, so the optimiser's state lives through the rewinds. Reports ``rewinds``, ``moved`` and
    ``moved_first`` (the norm of Phi_{K-1} - Phi_0 in the last and first rewind: on a model that fits D_f it is noise),
    ``stepped`` (norm of the last residual) and ``clipped`` (tensors that the guard shortened, over all rewinds).
    """
    model = task.model
    still = norm_parameters(model) if hp.batch_norm == "frozen" else set()
    moving = {name: p for name, p in model.named_parameters() if name not in still}
    frozen = [p for name, p in model.named_parameters() if name in still]
    cycle = hp.warmup_epochs + history - 1
    recorded: list[dict[str, Tensor]] = []
    clipped = 0

    def record() -> None:
        if ends_only and len(recorded) == 2:
            recorded.pop()
        recorded.append({name: p.detach().clone() for name, p in moving.items()})

    @torch.no_grad()
    def step_back() -> tuple[float, float]:
        nonlocal clipped
        moved, stepped = 0.0, 0.0
        for name, p in moving.items():
            phi = torch.stack([state[name] for state in recorded])
            kind = kind_of(p)
            residual = in_chunks(lambda part, kind=kind: predict(kind, part), phi)  # type: ignore[misc]
            if hp.clip is not None:
                residual, short = clip_to(residual, phi[0], hp.clip)
                clipped += short
            moved += float((phi[-1] - phi[0]).double().square().sum())
            stepped += float(residual.double().square().sum())
            p.copy_(phi[0] + residual)
        return math.sqrt(moved), math.sqrt(stepped)

    def after_epoch(epoch: int) -> None:
        place = (epoch - 1) % cycle + 1
        if place >= hp.warmup_epochs:
            record()
        if place == cycle:
            moved, stepped = step_back()
            index = epoch // cycle
            said = {"rewinds": index, "moved": moved, "stepped": stepped, "clipped": clipped}
            task.report(said if index > 1 else {**said, "moved_first": moved})
            recorded.clear()
            if hp.warmup_epochs == 0:
                record()
            task.checkpoint(model, index, moved=moved, stepped=stepped)

    if hp.warmup_epochs == 0:
        record()
    for p in frozen:
        p.requires_grad_(False)
    recipe = dataclasses.replace(
        task.recipe,
        epochs=hp.rewinds * cycle,
        batch_size=hp.batch_size,
        optimiser=hp.optimiser,
        lr=hp.lr,
        momentum=0.9,
        weight_decay=0.0,
        schedule="none",
        warmup=0.0,
        augment=hp.augment,
        clip_norm=None,
    )
    try:
        fit(
            model,
            task.forget,
            recipe,
            loss=task.loss,
            parameters=moving.values(),
            after_epoch=after_epoch,
            train_mode=hp.batch_norm == "train",
        )
    finally:  # a stopping rule may end the loop: the model is then the result, as trainable as it came
        for p in frozen:
            p.requires_grad_(True)
    return model
