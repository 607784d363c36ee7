"""EU-k: the end of the network made anew."""

from __future__ import annotations

import pytest
import torch

from raybench.errors import UserError
from raybench.methods.eu_k import EuKHparams
from raybench.space import resolve
from raybench.task import UndeclaredAccess
from raybench.testing import RECIPE, make_bench, make_task, run_method


def changed(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {key for key, value in model.state_dict().items() if not torch.equal(before[key], value)}


def test_what_is_above_starts_anew_and_what_is_below_stays() -> None:
    """Without steps the result is the original below and a fresh network above, buffers included."""
    task = make_task("eu_k", bench=make_bench("allcnn", samples=120, model_options=(("width", 4),)), seed=2)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    state = task.generator.get_state()
    fresh = task.new_model().state_dict()
    task.generator.set_state(state)
    model = run_method("eu_k", task, k=2, epochs=0)
    for key, value in model.state_dict().items():
        new = key.startswith(("blocks.6", "blocks.7", "head"))
        assert torch.equal(value, fresh[key] if new else before[key]), key
    assert not torch.equal(fresh["head.weight"], before["head.weight"])


def test_training_leaves_the_rest_to_the_bit() -> None:
    task = make_task("eu_k", bench=make_bench("allcnn", samples=120, model_options=(("width", 4),)))
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    model = run_method("eu_k", task, epochs=1, pull=0.1)
    assert all(key.startswith(("blocks.7", "head")) for key in changed(before, model))
    assert "blocks.7.1.running_mean" in changed(before, model)


def test_all_stages_are_a_retraining() -> None:
    """With k of all stages nothing of the original is left: two originals give one result."""
    results = []
    for noise in (0.0, 1.0):
        task = make_task("eu_k", model="mlp", seed=1)
        with torch.no_grad():
            for p in task.model.parameters():
                p.add_(noise)
        results.append(run_method("eu_k", task, k=4, epochs=2).state_dict())
    assert all(torch.equal(results[0][key], value) for key, value in results[1].items())


def test_forgets_the_class_and_keeps_the_rest() -> None:
    task = make_task("eu_k")
    model = run_method("eu_k", task, tiny=False, k=1, lr=0.03, batch_size=32)
    found = {}
    for part in ("retain", "forget"):
        images, labels = task._splits[part].tensors()
        with torch.no_grad():
            found[part] = float((model(images).argmax(1) == labels).float().mean())
    assert found["retain"] > 0.97
    assert found["forget"] < 0.05


def test_cost_is_that_of_the_original_training() -> None:
    task = make_task("eu_k", model="mlp")
    steps: list[int] = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("eu_k", task, tiny=False)
    assert task._passes.forward == pytest.approx(RECIPE.epochs * len(task.retain))
    assert steps == list(range(1, RECIPE.epochs + 1))
    with pytest.raises(UndeclaredAccess):
        _ = task.forget
    with pytest.raises(UserError, match="epochs must not be negative"):
        resolve(EuKHparams, {"epochs": -1}, "eu_k")
