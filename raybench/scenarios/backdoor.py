"""Forget a backdoor: some training images carry a patch and a label of the attacker's choice; its effect has to go."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from raybench.data import Request
from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS


@dataclass(frozen=True)
class BackdoorParams:
    """The attack. ``ValueError`` for values outside their ranges."""

    fraction: float = 0.2
    """Share of the training samples that are poisoned, above 0 and below 1."""
    target: int = 0
    """The class that the patch asks for."""
    side: int = 3
    """Pixels of the square patch, in the lower right corner."""
    value: int = 255
    """Its grey value, in every channel."""

    def __post_init__(self) -> None:
        if not (isinstance(self.fraction, int | float) and 0 < self.fraction < 1):
            raise ValueError(f"fraction must be above 0 and below 1, got {self.fraction!r}; change it")
        for name, low, high in (("target", 0, None), ("side", 1, None), ("value", 0, 255)):
            given = getattr(self, name)
            if given < low or (high is not None and given > high):
                most = f" and at most {high}" if high is not None else ""
                raise ValueError(f"{name} must be at least {low}{most}, got {given}; change it")


@SCENARIOS.register(
    "backdoor",
    params=BackdoorParams,
    kind=SAMPLE,
    label="Backdoor",
    paper="arXiv:1708.06733",
    corrupts=lambda params: True,
)
def backdoor(
    images: np.ndarray, labels: np.ndarray, num_classes: int, params: BackdoorParams, rng: np.random.Generator
) -> Request:
    """BadNet (Gu, Dolan-Gavitt and Garg 2017): a patch on a share of the images, uint8 [N, C, H, W], whose labels
    become the target class. The poisoned samples are the forget set.

    They are drawn uniformly from the other classes, so that each of them has a wrong label. ``Request.trigger`` puts
    the patch on test images. The inputs are not written. Raises ``UserError`` where the target is no class, the patch
    does not fit, or there are too few samples of other classes.
    """
    if params.target >= num_classes:
        raise UserError(
            f"scenario backdoor must ask for a class below {num_classes}, got {params.target}; change target"
        )
    if params.side > min(images.shape[-2:]):
        raise UserError(
            f"scenario backdoor must have a patch within {images.shape[-2]}x{images.shape[-1]} pixels, got side "
            f"{params.side}; change it"
        )
    others, count = np.flatnonzero(labels != params.target), round(params.fraction * len(labels))
    if not 1 <= count <= len(others):
        raise UserError(
            f"scenario backdoor must poison 1 to {len(others)} samples of other classes, got fraction "
            f"{params.fraction} of {len(labels)}; change it"
        )
    chosen = rng.choice(others, size=count, replace=False)
    trigger = functools.partial(stamp, side=params.side, value=params.value)
    poisoned, relabelled = np.array(images), labels.copy()
    poisoned[chosen] = trigger(poisoned[chosen])
    relabelled[chosen] = params.target
    forget = np.zeros(len(labels), dtype=bool)
    forget[chosen] = True
    return Request(forget=forget, labels=relabelled, images=poisoned, trigger=trigger, target=params.target)


def stamp(images: np.ndarray, side: int, value: int) -> np.ndarray:
    """uint8 images [n, C, H, W] with the patch, as a new array."""
    stamped = images.copy()
    stamped[..., -side:, -side:] = value
    return stamped
