"""The loop that methods share: the recipe's treatment of images, the method's own settings, steps offered."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from raybench.mechanisms.finetuning import train
from raybench.testing import RECIPE, make_task
from raybench.training import fit, own_recipe


@dataclass(frozen=True)
class Settings:
    lr: float = 0.01
    epochs: int = 2
    batch_size: int = 50
    clip_norm: float = 1.0
    alpha: float = 3.0  # no field of a recipe


def test_own_recipe_takes_the_fields_of_its_name_and_is_plain_otherwise() -> None:
    base = RECIPE.__class__(epochs=9, schedule="cosine", warmup=0.1, optimiser="adam", precision="bf16", augment=False)
    own = own_recipe(base, Settings(), momentum=0.5)
    assert (own.lr, own.epochs, own.batch_size, own.clip_norm, own.momentum) == (0.01, 2, 50, 1.0, 0.5)
    assert (own.optimiser, own.schedule, own.warmup, own.weight_decay) == ("sgd", "none", 0.0, 0.0)
    assert (own.precision, own.augment) == ("bf16", False)


def test_train_is_fit_with_that_recipe_and_offers_every_epoch() -> None:
    steps: list[int] = []
    task, other = (make_task("finetune", samples=300, on_checkpoint=lambda m, s, _: steps.append(s)) for _ in range(2))
    trained = train(task, task.model, task.retain, Settings(), offset=4)
    expected = copy.deepcopy(other.model)
    fit(expected, other.retain, own_recipe(other.recipe, Settings()), loss=other.loss)
    assert steps == [5, 6]
    assert not trained.training
    for name, value in expected.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value)
