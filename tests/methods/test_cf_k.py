"""CF-k: fine-tuning that stops at a stage."""

from __future__ import annotations

import pytest
import torch

from raybench.mechanisms.last_stages import split_stages
from raybench.testing import make_bench, make_task, run_method

SMALL = (("width", 4),)


def moved(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    """First two words of the keys that changed: which block, neck or head."""
    changed = {key for key, value in model.state_dict().items() if not torch.equal(before[key], value)}
    return {".".join(key.split(".")[:2]) if key.startswith("blocks") else key.split(".")[0] for key in changed}


@pytest.mark.parametrize(("k", "expected"), [(0, {"head"}), (2, {"blocks.6", "blocks.7", "head"})])
def test_the_other_stages_stay_to_the_bit_with_their_buffers(k: int, expected: set[str]) -> None:
    task = make_task("cf_k", bench=make_bench("allcnn", samples=120, model_options=SMALL))
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    model = run_method("cf_k", task, k=k, epochs=1, pull=0.1)
    assert moved(before, model) == expected
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_buffers_of_what_trains_stay_in_evaluation_mode() -> None:
    task = make_task("cf_k", bench=make_bench("allcnn", samples=120, model_options=SMALL))
    before = {key: value.clone() for key, value in task.model.named_buffers()}
    run_method("cf_k", task, epochs=1, eval_mode=True)
    assert all(torch.equal(before[key], value) for key, value in task.model.named_buffers())


def test_all_stages_are_finetuning_to_the_bit() -> None:
    bench = make_bench("allcnn", samples=120, model_options=SMALL)
    one = run_method("cf_k", make_task("cf_k", bench=bench, seed=4), k=8, epochs=1)
    other = run_method("finetune", make_task("finetune", bench=bench, seed=4), epochs=1)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in one.state_dict().items())


def test_the_frozen_part_costs_no_backward_pass() -> None:
    costs = []
    for k in (0, 1, 2):
        task = make_task("cf_k")  # lenet5: two stages
        run_method("cf_k", task, k=k, epochs=1)
        assert task._passes.forward == pytest.approx(len(task.retain))
        costs.append(task._passes.backward / len(task.retain))
    assert costs == sorted(costs)
    assert costs[0] < 0.5
    assert costs[2] == pytest.approx(1.0)


def test_the_pull_is_to_the_original_weights() -> None:
    """On a loss that is constant nothing moves but by the pull, and it has nothing to pull at the start; off the
    start it halves the way in one step of lr * pull = 1/2."""
    task = make_task("cf_k", model="mlp")
    task._loss = lambda model, batch: 0.0 * model(batch[0]).sum(1)
    weight = task.model.head.weight
    start = weight.detach().clone()
    task._on_checkpoint = lambda model, step, scalars: weight.data.add_(1.0) if step == 1 else None
    options = {"lr": 0.5, "pull": 1.0, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 10**6}
    run_method("cf_k", task, epochs=2, **options)
    torch.testing.assert_close(weight.detach(), start + 0.5)


def test_training_the_head_on_the_rest_lowers_the_class_and_raises_the_rest() -> None:
    """In probability, which moves whatever the rounding; whether the prediction turns is chance at this size."""

    def confidence(model: torch.nn.Module, part: str) -> float:
        images, labels = task._splits[part].tensors()
        with torch.no_grad():
            return float(torch.softmax(model(images), dim=1).gather(1, labels[:, None]).mean())

    for seed in range(3):
        task = make_task("cf_k", seed=seed)
        before = [confidence(task.model, part) for part in ("retain", "forget")]
        model = run_method("cf_k", task, k=1, lr=0.02, epochs=10, batch_size=32)
        after = [confidence(model, part) for part in ("retain", "forget")]
        assert after[0] > before[0] + 0.005
        assert after[1] < before[1] - 0.002


def test_negative_k_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        split_stages(make_task("cf_k").model, -1)
