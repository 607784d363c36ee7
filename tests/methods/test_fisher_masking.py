"""Fisher masking: worked numbers, how much becomes zero and stays zero, and that it forgets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.methods.fisher_masking import masked
from raybench.registry import FORGET, RETAIN
from raybench.task import UnlearningTask
from raybench.testing import make_bench, make_task, run_method


def accuracy(model: nn.Module, task: UnlearningTask, part: str) -> float:
    images, labels = task._splits[part].tensors()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def zeros(model: nn.Module) -> int:
    return sum(int((p == 0.0).sum()) for p in model.parameters())


def test_worked_example() -> None:
    forget, retain = {"w": torch.tensor([4.0, 1.0, 0.0, 2.0])}, {"w": torch.tensor([1.0, 2.0, 0.0, 2.0])}
    assert masked(forget, retain, 0.25)["w"].tolist() == [True, False, False, False]
    assert masked(forget, retain, 0.25, "ratio")["w"].tolist() == [True, False, False, False]
    assert masked(forget, retain, 0.5, "ratio")["w"].tolist() == [True, False, False, True]
    assert not bool(masked(forget, retain, 0.0)["w"].any())
    assert bool(masked(forget, retain, 1.0)["w"].all())


def test_share_of_the_model_or_of_every_tensor() -> None:
    forget = {"a": torch.tensor([5.0, 4.0, 3.0, 2.0]), "b": torch.tensor([1.0, 0.9, 0.8, 0.7])}
    retain = {name: torch.zeros(4) for name in forget}
    whole, each = masked(forget, retain, 0.5), masked(forget, retain, 0.5, per_tensor=True)
    assert [int(whole[name].sum()) for name in "ab"] == [4, 0]
    assert [int(each[name].sum()) for name in "ab"] == [2, 2]


@pytest.mark.parametrize(("score", "kept"), [("ratio", 0.95), ("difference", 0.8)])
def test_forgets_the_class_without_repair(score: str, kept: float) -> None:
    task = make_task("fisher_masking")
    model = run_method("fisher_masking", task, tiny=False, share=0.01, score=score)
    assert accuracy(model, task, FORGET) < 0.1
    assert accuracy(model, task, RETAIN) > kept


def test_repair_restores_the_others_and_masked_entries_stay_zero() -> None:
    kept = []
    for epochs in (0, 4):
        task = make_task("fisher_masking")
        model = run_method("fisher_masking", task, tiny=False, share=0.01, epochs=epochs, weight_decay=0.01)
        expected = round(0.01 * sum(p.numel() for p in model.parameters()))
        assert abs(zeros(model) - expected) <= 1
        assert task.reported.scalars["masked"] == pytest.approx(0.01, abs=1e-4)
        kept.append(accuracy(model, task, RETAIN))
    assert kept[1] > kept[0] + 0.05


def test_share_zero_is_the_identity() -> None:
    task = make_task("fisher_masking", model="mlp")
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    model = run_method("fisher_masking", task, tiny=False, share=0.0)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    with pytest.raises(Exception, match=r"share must be in \[0, 1\]"):
        run_method("fisher_masking", share=1.5)


def test_buffers_move_in_the_repair_unless_asked() -> None:
    bench = make_bench("resnet8", samples=120, model_options=(("width", 4),))

    def same(epochs: int, eval_mode: bool = False) -> bool:
        task = make_task("fisher_masking", bench=bench)
        before = {key: value.clone() for key, value in task.model.named_buffers()}
        model = run_method("fisher_masking", task, epochs=epochs, eval_mode=eval_mode)
        return all(torch.equal(before[key], value) for key, value in model.named_buffers())

    assert same(0)
    assert same(1, eval_mode=True)
    assert not same(1)
