"""Mnemonic's step from real images: against the rule for codes, and against per-sample gradients by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.data import Pixels, Split
from raybench.errors import UserError
from raybench.mechanisms.fisher_step import perturbation
from raybench.methods.mnemonic_data import MnemonicDataHparams
from raybench.registry import FORGET, METHODS, RETAIN, VALIDATION
from raybench.space import resolve
from raybench.task import Facts, UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method
from raybench.training import Trained

SHAPE = (1, 3, 3)


class Net(nn.Module):
    """One hidden layer of tanh units; four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh())
        self.head = nn.Linear(5, 4)
        draw = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=draw) * 0.7)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class ToyBench(Bench):
    """Its architecture is in no registry."""

    def build(self) -> nn.Module:
        return Net()


def bench_of(labels: Tensor, forget_classes: tuple[int, ...], codes: bool = False) -> Bench:
    """Random images with these labels; ``codes`` hands the (normalised) images over as codes as well."""
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (len(labels), *SHAPE), generator=draw, dtype=torch.uint8)
    pixels = Pixels(torch.full((1, 1, 1, 1), 0.4), torch.full((1, 1, 1, 1), 0.3))
    gone = torch.isin(labels, torch.tensor(forget_classes))
    parts = {FORGET: gone, RETAIN: ~gone, VALIDATION: ~gone}
    splits = {name: Split(images, labels, where.nonzero().flatten(), pixels) for name, where in parts.items()}
    artefacts = {"codes": pixels.normalise(images)} if codes else {}
    facts = Facts("toy", "toy", 4, SHAPE, forget_classes, "class", "mnemonic" if codes else "standard")
    return ToyBench(Trained(Net(), artefacts), splits, facts, pixels, ())


@pytest.mark.parametrize("forget_classes", [(1,), (0, 2)])
def test_one_image_a_class_is_the_rule_for_codes(forget_classes: tuple[int, ...]) -> None:
    labels, options = torch.arange(4), {"lambda1": 0.2, "lambda2": 1.0}
    image_task = make_task("mnemonic_data", bench=bench_of(labels, forget_classes))
    code_task = make_task("mnemonic", bench=bench_of(labels, forget_classes, codes=True))
    by_images = run_method("mnemonic_data", image_task, n=1, **options)
    by_codes = run_method("mnemonic", code_task, **options)
    for (name, p), q in zip(by_images.named_parameters(), by_codes.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    mine, theirs = image_task.reported.scalars, code_task.reported.scalars
    assert mine["sign"] == theirs["sign"]
    assert (mine["image_a_r"], mine["image_e_f"]) == (theirs["code_a_r"], theirs["code_e_f"])
    assert mine["largest_change"] == pytest.approx(theirs["largest_change"], rel=1e-4)
    assert mine["images"] == 4


def test_squares_per_sample_mean_per_class_then_mean_over_classes() -> None:
    """Every sample's gradient by autograd in float64; class 3 has one image only and weighs as much as the others."""
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3])
    bench = bench_of(labels, (0,))
    task = make_task("mnemonic_data", bench=bench)
    model = run_method("mnemonic_data", task, n=3, lambda1=0.1, lambda2=5.0)
    oracle = Net().double()
    names = [name for name, _ in oracle.named_parameters()]
    images = torch.cat([bench.splits[part].tensors()[0] for part in (FORGET, RETAIN)]).double()
    squares: dict[int, list[list[Tensor]]] = {}
    for image, label in zip(images, labels.tolist(), strict=True):
        value = nn.functional.cross_entropy(oracle(image[None]), torch.tensor([label]))
        gradients = torch.autograd.grad(value, list(oracle.parameters()))
        squares.setdefault(label, []).append([g**2 for g in gradients])
    for i, name in enumerate(names):
        means = {c: torch.stack([s[i] for s in found]).mean(0) for c, found in squares.items()}
        forget, retain = means[0] + 1e-16, (means[1] + means[2] + means[3] + 1e-16) / 3
        step = perturbation(forget, retain, 0.1, 5.0)
        expected = oracle.get_parameter(name) + task.reported.scalars["sign"] * step
        torch.testing.assert_close(model.get_parameter(name).double(), expected, rtol=1e-3, atol=1e-6)
    assert task.reported.scalars["images"] == len(labels)


def test_images_are_drawn_by_the_seed_and_scored_as_drawn() -> None:
    labels = torch.arange(4).repeat(20)

    def run(seed: int, n: int) -> tuple[Tensor, UnlearningTask, list[int]]:
        task = make_task("mnemonic_data", bench=bench_of(labels, (0,)), seed=seed)
        sizes: list[int] = []
        task.model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
        model = run_method("mnemonic_data", task, n=n)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), task, sizes

    one, task, sizes = run(0, 3)
    assert torch.equal(one, run(0, 3)[0])
    assert not torch.equal(one, run(1, 3)[0])
    assert not torch.equal(one, run(0, 2)[0])
    assert sizes == [3] * 4 + [3, 9] * 2  # a Fisher diagonal a class, then both signs on the same twelve images
    assert task.reported.scalars["images"] == 12
    # All of a class that has fewer, whatever their order in the sum.
    torch.testing.assert_close(run(0, 20)[0], run(0, 500)[0])


def test_cost_buffers_and_data() -> None:
    bench = make_bench("vgg8", samples=120, model_options=(("width", 3),))
    task = make_task("mnemonic_data", bench=bench)
    buffers = {name: b.clone() for name, b in task.model.named_buffers()}
    model = run_method("mnemonic_data", task, n=2)
    assert task._passes.backward == pytest.approx(20)
    assert task._passes.forward == pytest.approx(20 + 2 * 20)  # so few images are the first batches of both signs
    assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())
    assert METHODS["mnemonic_data"].needs == {"forget", "retain"}
    assert METHODS["mnemonic_data"].scope == {"class"}
    assert METHODS["mnemonic_data"].training is None


def test_some_setting_forgets_class_0_of_digits() -> None:
    """The paper's network with fewer units, 30 images a class; one cell of a small grid must do."""
    options = (("hidden", (128,)), ("activation", "sigmoid"))
    cells = []
    for lambda1 in (1e-4, 1e-3, 1e-2, 1e-1):
        for lambda2 in (0.1, 1.0, 10.0):
            task = make_task("mnemonic_data", model="mlp", model_options=options)
            model = run_method("mnemonic_data", task, n=30, lambda1=lambda1, lambda2=lambda2)
            scores: list[float] = []
            for part in (VALIDATION, FORGET):
                images, labels = task._splits[part].tensors()
                with torch.no_grad():
                    scores.append(float((model(images).argmax(1) == labels).float().mean()))
            cells.append(tuple(scores))
    assert any(kept > 0.85 and forgotten < 0.05 for kept, forgotten in cells), cells


def test_settings() -> None:
    wrong: dict[str, Any] = {"n": 0}
    with pytest.raises(UserError, match="n must be at least 1 image of each class, got 0"):
        resolve(MnemonicDataHparams, wrong, "mnemonic_data")
