"""l1-sparse: fine-tuning with a fading L1 penalty."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from raybench.errors import UserError
from raybench.methods.l1_sparse import L1SparseHparams, l1_norm
from raybench.space import resolve
from raybench.task import UndeclaredAccess
from raybench.testing import make_bench, make_task, run_method


def test_published_schedule() -> None:
    hp = L1SparseHparams()
    assert [hp.gamma_at(t) for t in range(10)] == pytest.approx([k * 0.5e-4 for k in range(10, 0, -1)])
    hp = L1SparseHparams(gamma=1.0, epochs=5, free_epochs=1)
    assert [hp.gamma_at(t) for t in range(5)] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    hp = L1SparseHparams(gamma=1.0, epochs=4, gamma_schedule="growth")
    assert [hp.gamma_at(t) for t in range(4)] == pytest.approx([0.0, 0.25, 0.5, 0.75])
    hp = L1SparseHparams(gamma=1.0, epochs=2, free_epochs=2, gamma_schedule="constant")
    assert [hp.gamma_at(t) for t in range(2)] == [0.0, 0.0]


def test_gamma_zero_is_finetuning_to_the_bit() -> None:
    bench = make_bench("allcnn", samples=120, model_options=(("width", 4),))
    results = {}
    for method, options in {"finetune": {}, "l1_sparse": {"gamma": 0.0}}.items():
        task = make_task(method, bench=bench, seed=5)
        results[method] = run_method(method, task, epochs=2, batch_size=32, **options).state_dict()
    assert all(torch.equal(results["finetune"][key], value) for key, value in results["l1_sparse"].items())


def test_the_first_step_has_the_sign_of_every_weight() -> None:
    task = make_task("l1_sparse", model="mlp")
    with torch.no_grad():
        task.model.head.bias.zero_()  # the sub-gradient at 0 is 0
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    images, labels = task.retain.tensors()
    value = F.cross_entropy(task.model(images), labels)
    grads = dict(zip(before, torch.autograd.grad(value, list(task.model.parameters())), strict=True))
    options = {"lr": 0.03, "epochs": 1, "batch_size": len(labels), "weight_decay": 0.01, "gamma": 0.02}
    model = run_method("l1_sparse", task, **options)
    for name, p in model.named_parameters():
        was = before[name]
        expected = was - 0.03 * (grads[name] + 0.01 * was + 0.02 * was.sign())
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)


def test_the_penalty_fades_by_epoch() -> None:
    """On a loss that is constant only the penalty moves the weights: gamma (1 - t / E) a step, here of sign."""
    task = make_task("l1_sparse", model="mlp")
    task._loss = lambda model, batch: 0.0 * model(batch[0]).sum(1)
    with torch.no_grad():
        for p in task.model.parameters():
            p.fill_(1.0)
    steps = -(-len(task.retain) // 100)
    options = {"lr": 0.01, "epochs": 4, "batch_size": 100, "weight_decay": 0.0, "momentum": 0.0, "gamma": 0.1}
    model = run_method("l1_sparse", task, **options)
    expected = 1.0 - 0.01 * 0.1 * steps * (1.0 + 0.75 + 0.5 + 0.25)
    assert all(torch.allclose(p, torch.full_like(p, expected), atol=1e-5) for p in model.parameters())
    assert task.reported.scalars["l1_norm"] == pytest.approx(expected, abs=1e-5)


def test_forgets_the_class_and_shrinks_the_weights() -> None:
    def after(gamma: float) -> tuple[float, float, float]:
        task = make_task("l1_sparse")
        start = float(l1_norm(list(task.model.parameters())).detach())
        model = run_method("l1_sparse", task, gamma=gamma, lr=0.01, epochs=10, batch_size=32)
        found = []
        for part in ("retain", "forget"):
            images, labels = task._splits[part].tensors()
            with torch.no_grad():
                found.append(float((model(images).argmax(1) == labels).float().mean()))
        return found[0], found[1], float(l1_norm(list(model.parameters())).detach()) / start

    kept, forgotten, norm = after(1e-2)
    plain_kept, plain_forgotten, plain_norm = after(0.0)
    assert kept > 0.95
    assert forgotten < 0.4
    assert min(plain_kept, plain_forgotten) > 0.95
    assert norm < 0.3 * plain_norm


def test_cost_data_and_bad_settings() -> None:
    task = make_task("l1_sparse", model="mlp")
    steps: list[int] = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    run_method("l1_sparse", task, epochs=3)
    assert task._passes.backward == pytest.approx(3 * len(task.retain))
    assert steps == [1, 2, 3]
    with pytest.raises(UndeclaredAccess):
        _ = task.forget
    with pytest.raises(UserError, match="must not be negative"):
        resolve(L1SparseHparams, {"gamma": -1.0}, "l1_sparse")
