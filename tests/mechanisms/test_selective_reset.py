"""Selection against closed forms, and that what is not selected does not move by a bit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.data import Pixels, Split
from raybench.mechanisms.masking import norm_parameters, selected_share
from raybench.mechanisms.selective_reset import reset_and_finetune, select_by_fisher
from raybench.methods.deepclean import DeepCleanHparams
from raybench.models.mlp import mlp
from raybench.registry import FORGET, RETAIN, VALIDATION
from raybench.task import Facts, UnlearningTask
from raybench.testing import Bench, make_bench, make_task
from raybench.training import Trained

CLASSES, FORGOTTEN = 10, 3
ABSOLUTE = DeepCleanHparams(gamma_unit="absolute")


def softmax_task() -> UnlearningTask:
    """Softmax regression at W = b = 0 on ten balanced classes of random images, class 3 to forget."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(6)
    images = torch.randint(0, 256, (len(labels), 1, 3, 4), generator=draw, dtype=torch.uint8)
    pixels = Pixels(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    gone = labels == FORGOTTEN
    parts = {FORGET: gone, RETAIN: ~gone, VALIDATION: ~gone}
    splits = {name: Split(images, labels, where.nonzero().flatten(), pixels) for name, where in parts.items()}
    model = mlp(CLASSES, (1, 3, 4), hidden=[])
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    facts = Facts("toy", "mlp", CLASSES, (1, 3, 4), (FORGOTTEN,), "class")
    return make_task("deepclean", bench=Bench(Trained(model), splits, facts, pixels, (("hidden", ()),)))


@pytest.mark.parametrize("samples", [None, 54])
def test_ratio_81_and_0101_decide_which_biases_are_selected(samples: int | None) -> None:
    """r(b_c) = (K - 1)^2 = 81 and r(b_k) = (1/K^2) / ([(1 - 1/K)^2 + (K - 2)/K^2] / (K - 1)) = 0.01 / 0.0989."""
    other = (1 / CLASSES**2) / (((1 - 1 / CLASSES) ** 2 + (CLASSES - 2) / CLASSES**2) / (CLASSES - 1))
    assert other == pytest.approx(0.101, abs=5e-4)

    def biases(gamma: float) -> list[int]:
        hp = dataclasses.replace(ABSOLUTE, gamma=gamma, cap=1.0, fisher_samples=samples)
        mask, threshold = select_by_fisher(softmax_task(), hp)
        assert threshold == gamma
        return mask["head.bias"].nonzero().flatten().tolist()

    for gamma in (0.102, 1.0, 50.0, 80.999):
        assert biases(gamma) == [FORGOTTEN]
    assert biases(81.001) == []
    assert biases(0.1011) == list(range(CLASSES))


def test_only_the_selected_bias_moves() -> None:
    task = softmax_task()
    hp = dataclasses.replace(ABSOLUTE, gamma=50.0, epochs=1)
    mask, _ = select_by_fisher(task, hp)
    model = reset_and_finetune(task, mask, hp)
    moved = model.get_parameter("head.bias").detach().nonzero().flatten().tolist()
    assert moved == [FORGOTTEN]


def random_mask_of(model: nn.Module, share: float = 0.3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.rand(p.shape, generator=draw) < share for name, p in model.named_parameters()}


@pytest.mark.parametrize("bn_buffers", ["update", "freeze"])
@pytest.mark.parametrize("reset", ["zero", "reinit", "none"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_what_is_not_selected_stays_to_the_bit(optimiser: Any, reset: Any, bn_buffers: Any) -> None:
    """With momentum and with weight decay, in convolutions, batch norm and the linear head."""
    bench = make_bench("vgg8", samples=120, model_options=(("width", 2),))
    task = make_task("deepclean", bench=bench)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    buffers = {name: b.clone() for name, b in task.model.named_buffers()}
    mask = random_mask_of(task.model)
    hp = DeepCleanHparams(optimiser=optimiser, reset=reset, bn_buffers=bn_buffers, lr=0.01, weight_decay=0.1, epochs=2)
    model = reset_and_finetune(task, mask, hp)
    kept = [(p.detach() - before[name])[~mask[name]] for name, p in model.named_parameters()]
    assert float(torch.cat(kept).abs().max()) == 0.0
    moved = torch.cat([(p.detach() - before[name])[mask[name]] for name, p in model.named_parameters()])
    assert float((moved != 0.0).float().mean()) > 0.9  # weights of dead units may stay
    assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers()) == (bn_buffers == "freeze")


def test_reset_alone() -> None:
    """Zero, a fresh draw of the initialiser, or nothing, before the first step."""
    bench = make_bench("mlp")
    values = {}
    for reset in ("zero", "reinit", "none"):
        task = make_task("deepclean", bench=bench)
        mask = random_mask_of(task.model)
        model = reset_and_finetune(task, mask, DeepCleanHparams(reset=reset, epochs=0))
        values[reset] = torch.cat([p.detach()[mask[name]] for name, p in model.named_parameters()])
    start = torch.cat([p.detach()[mask[name]] for name, p in bench.original.model.named_parameters()])
    assert bool((values["zero"] == 0.0).all())
    assert torch.equal(values["none"], start)
    weight = make_task("deepclean", bench=bench).new_model().get_parameter("head.weight").detach()
    bound = 1 / math.sqrt(weight.shape[1])  # torch's default for linear layers
    assert 0.9 * bound < float(weight.abs().max()) <= bound
    assert float((values["reinit"] == start).float().mean()) < 0.01
    assert float(values["reinit"].abs().max()) < float(start.abs().max())


def test_nothing_selected_is_the_identity() -> None:
    task = make_task("deepclean", model="mlp")
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    mask, threshold = select_by_fisher(task, dataclasses.replace(ABSOLUTE, gamma=math.inf, fisher_samples=50))
    assert threshold == math.inf
    assert selected_share(mask) == 0.0
    model = reset_and_finetune(task, mask, DeepCleanHparams())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_cap_quantile_and_norm_layers() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 2),))

    def mask_of(**options: Any) -> dict[str, Tensor]:
        return select_by_fisher(make_task("deepclean", bench=bench), DeepCleanHparams(**options))[0]

    for name, chosen in mask_of(gamma=0.0, cap=0.5).items():
        assert int(chosen.sum()) <= math.ceil(0.5 * chosen.numel()), name
    assert selected_share(mask_of(gamma=None, quantile=0.2, cap=1.0)) == pytest.approx(0.2, abs=2e-3)
    norms = norm_parameters(bench.original.model)
    assert norms
    assert norms <= set(mask_of(gamma=1.0))
    assert not norms & set(mask_of(gamma=1.0, exclude_norm=True))
