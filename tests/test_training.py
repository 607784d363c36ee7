"""The training loop against a plain PyTorch loop, written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.data import Pixels, Split, crop_flip
from raybench.errors import UserError
from raybench.seeding import seeded_globals
from raybench.training import (
    Recipe,
    Trained,
    TrainingJob,
    cross_entropy,
    fit,
    make_optimiser,
    make_recipe,
    train_standard,
)

N, EPOCHS, BATCH = 22, 3, 8


def make_split(seed: int = 0) -> Split:
    draw = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (30, 1, 6, 6), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, 3, (30,), generator=draw)
    one = torch.ones(1, 1, 1, 1)
    return Split(
        images, labels, torch.arange(N), Pixels(0.5 * one, 0.3 * one), "crop_flip", torch.Generator().manual_seed(seed)
    )


def make_model(dropout: float = 0.0) -> nn.Module:
    with seeded_globals(1):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 3)
        )


def plain_loop(recipe: Recipe, model: nn.Module, objective: Callable[[Tensor], Tensor] = torch.mean) -> nn.Module:
    """What a textbook does: permute, take batches, step."""
    split = make_split()
    draw = torch.Generator().manual_seed(0)
    kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(
            model.parameters(), lr=1.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        ),
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=1.0, weight_decay=recipe.weight_decay),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=recipe.weight_decay),
    }
    optimiser = kinds[recipe.optimiser]()
    model.train()
    total, step = EPOCHS * math.ceil(N / BATCH), 0
    for _ in range(EPOCHS):
        order = torch.randperm(N, generator=draw)
        for start in range(0, N, BATCH):
            rows = order[start : start + BATCH]
            images = split.images[rows]
            if recipe.augment:
                images = crop_flip(images, draw)
            x = (images.float() / 255.0 - 0.5) / 0.3
            rate = recipe.lr
            if recipe.schedule == "cosine":
                rate = recipe.lr * 0.5 * (1.0 + math.cos(math.pi * (step / total)))
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad()
            objective(F.cross_entropy(model(x), split.labels[rows], reduction="none")).backward()
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimiser.step()
            step += 1
    return model.eval()


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": False, "schedule": "none"},
        {"clip_norm": 0.05},
        {"optimiser": "adam", "lr": 1e-3},
        {"optimiser": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        {"momentum": 0.0, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_fit_is_a_plain_loop_bit_for_bit(changes: dict[str, Any]) -> None:
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, **changes)
    model = make_model()
    start = copy.deepcopy(model)
    fit(model, make_split(), recipe)
    assert_equal(model, plain_loop(recipe, make_model()))
    assert not torch.equal(model[0].weight, start[0].weight)  # type: ignore[index]
    assert not model.training


def test_objective_and_loss_are_the_callers() -> None:
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH)
    model = make_model()
    fit(model, make_split(), recipe, objective=lambda losses: -losses.sum())
    assert_equal(model, plain_loop(recipe, make_model(), lambda losses: -losses.sum()))
    halved, other = make_model(), make_model()
    fit(halved, make_split(), recipe, loss=lambda m, batch: 2.0 * cross_entropy(m, batch))
    fit(other, make_split(), recipe, objective=lambda losses: (2.0 * losses).mean())
    assert_equal(halved, other)


def test_only_the_chosen_parameters_move() -> None:
    model, start = make_model(), make_model()
    model[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    recipe = Recipe(epochs=1, batch_size=BATCH)
    fit(model, make_split(), recipe, parameters=[*model[5].parameters(), model[0].bias])  # type: ignore[index, union-attr]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start.get_parameter(n))}
    assert moved == {"5.weight", "5.bias"}


def test_batch_transform_changes_what_the_model_sees() -> None:
    seen: list[Tensor] = []

    def shifted(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return images + labels.view(-1, 1, 1, 1)

    recipe = Recipe(epochs=1, batch_size=BATCH, augment=False, momentum=0.0, weight_decay=0.0, schedule="none")
    model, other = make_model(), make_model()
    fit(model, make_split(), recipe, batch_transform=shifted)
    fit(
        other,
        make_split(),
        recipe,
        loss=lambda m, batch: cross_entropy(m, (batch[0] + batch[1].view(-1, 1, 1, 1), batch[1])),
    )
    assert_equal(model, other)
    assert sum(map(len, seen)) == N


def test_observers_count_from_one() -> None:
    steps: list[int] = []
    epochs: list[int] = []
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH)
    fit(make_model(), make_split(), recipe, after_step=steps.append, after_epoch=epochs.append)
    assert steps == list(range(1, EPOCHS * 3 + 1))
    assert epochs == [1, 2, 3]
    fit(make_model(), make_split(), Recipe(epochs=0), after_step=steps.append)
    assert len(steps) == 9


def test_before_step_sees_the_clipped_gradients_and_changes_what_is_applied() -> None:
    model, start = make_model(), make_model()
    norms: list[float] = []

    def silence() -> None:
        found = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in found]).norm()))
        for g in found:
            g.zero_()

    recipe = Recipe(epochs=1, batch_size=BATCH, weight_decay=0.0, clip_norm=1e-3)
    fit(model, make_split(), recipe, before_step=silence, train_mode=False)
    assert norms == [pytest.approx(1e-3, rel=1e-2)] * 3
    assert_equal(model, start)


def test_bf16_runs_on_a_cpu_and_keeps_fp32_weights() -> None:
    full, half = make_model(), make_model()
    fit(full, make_split(), Recipe(epochs=1, batch_size=BATCH))
    fit(half, make_split(), Recipe(epochs=1, batch_size=BATCH, precision="bf16", channels_last=True))
    assert all(p.dtype == torch.float32 for p in half.parameters())
    difference = max((a - b).abs().max().item() for a, b in zip(full.parameters(), half.parameters(), strict=True))
    assert 0 < difference < 0.05


def test_evaluation_mode_keeps_batch_norm_buffers() -> None:
    model, start = make_model(), make_model()
    fit(model, make_split(), Recipe(epochs=1, batch_size=BATCH), train_mode=False)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, start.get_buffer(name)), name
    trained = make_model()
    fit(trained, make_split(), Recipe(epochs=1, batch_size=BATCH))
    assert not torch.equal(trained.get_buffer("1.running_mean"), start.get_buffer("1.running_mean"))


def make_job(seed: int, observer: Callable[[int], None] | None = None) -> TrainingJob:
    return TrainingJob(
        train=make_split(seed),
        recipe=Recipe(epochs=2, batch_size=BATCH),
        hparams=None,
        seed=seed,
        build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Dropout(0.5), nn.Linear(16, 3)),
        num_classes=3,
        input_shape=(1, 6, 6),
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
        observer=observer,
    )


def test_a_job_is_a_function_of_its_seed_dropout_included() -> None:
    before = torch.get_rng_state()
    one = train_standard(make_job(0)).model
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)  # the global state is elsewhere now
    assert_equal(one, train_standard(make_job(0)).model)
    other = train_standard(make_job(1)).model
    assert not torch.equal(one[1].weight, other[1].weight)  # type: ignore[index]
    job = make_job(0)
    assert_equal(job.new_model(), job.new_model(0))
    assert not torch.equal(job.new_model(5)[1].weight, job.new_model()[1].weight)  # type: ignore[index]


def test_a_job_has_an_observer_beside_the_trainings_own() -> None:
    seen: list[int] = []
    own: list[int] = []
    job = make_job(0, seen.append)
    job.fit(job.new_model(), after_step=own.append)
    assert seen == own == list(range(1, 7))


def test_artefact_bytes() -> None:
    trained = Trained(nn.Linear(1, 1), {"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.uint8)})
    assert trained.artefact_bytes == 3 * 2 * 4 + 5
    assert Trained(nn.Linear(1, 1)).artefact_bytes == 0


# --- recipes ------------------------------------------------------------------------------------------------------


def test_cosine_is_torchs() -> None:
    recipe = Recipe(lr=0.3)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)
    for step in range(20):
        assert recipe.lr_at(step, 20) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        schedule.step()


def test_step_is_torchs() -> None:
    recipe = Recipe(lr=0.3, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [10, 15], gamma=0.1)
    for step in range(20):
        assert recipe.lr_at(step, 20) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        schedule.step()


def test_linear_is_torchs_and_with_a_warmup_a_triangle() -> None:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 20)
    for step in range(20):
        rate = Recipe(lr=0.3, schedule="linear").lr_at(step, 20)
        assert rate == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        schedule.step()
    triangle = Recipe(lr=1.0, schedule="linear", warmup=0.5)
    assert [triangle.lr_at(step, 8) for step in range(8)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("total", [7, 15, 20, 33])
@pytest.mark.parametrize("schedule", ["none", "cosine", "step"])
def test_warmup_rises_to_the_peak_and_never_above(schedule: Any, total: int) -> None:
    recipe = Recipe(lr=0.3, schedule=schedule, warmup=0.2, milestones=(0.5,))
    rates = [recipe.lr_at(step, total) for step in range(total)]
    first = next(step for step in range(total) if step / total >= 0.2)
    assert max(rates) <= 0.3 + 1e-12
    assert rates[:first] == sorted(rates[:first])
    assert rates[0] == pytest.approx(min(0.3, 0.3 / (0.2 * total)))
    assert rates[first] == pytest.approx(0.3, rel=0.1)
    if schedule == "cosine":
        assert rates[first:] == sorted(rates[first:], reverse=True)


def test_constant() -> None:
    assert {Recipe(lr=0.2, schedule="none").lr_at(step, 9) for step in range(9)} == {0.2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "did you mean epochs"),
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": -0.1}, "lr must not be negative"),
        ({"lr": float("nan")}, "lr must not be negative"),
        ({"warmup": 1.0}, "warmup must be in"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"clip_norm": -1.0}, "clip_norm must be above 0"),
        ({"optimiser": "lion"}, "recipe.optimiser must be one of sgd, adam, adamw"),
        ({"schedule": "exponential"}, "recipe.schedule must be one of"),
    ],
)
def test_bad_recipes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe(values)
    assert make_recipe({"lr": "1e-2", "milestones": [0.3]}) == Recipe(lr=0.01, milestones=(0.3,))


def test_make_optimiser() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    for name, kind in kinds.items():
        optimiser = make_optimiser(iter(weights), Recipe(optimiser=name, weight_decay=0.1))  # type: ignore[arg-type]
        assert type(optimiser) is kind
        assert optimiser.param_groups[0]["weight_decay"] == 0.1
