"""Mnemonic codes: the worked case by hand, each rule of the perturbation, the own training, and forgetting."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.data import Pixels, Split
from raybench.ledger import Ledger
from raybench.methods.mnemonic import MnemonicHparams, MnemonicTraining, mnemonic
from raybench.registry import DATASETS, FORGET, METHODS, RETAIN, TRAININGS, VALIDATION
from raybench.task import Facts, UndeclaredAccess, UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method
from raybench.training import Recipe, Trained, TrainingJob


class Head(nn.Module):
    """z = W x + b on flattened inputs."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.flatten(1))
        return out


class ToyBench(Bench):
    """Its architecture is in no registry."""

    def build(self) -> nn.Module:
        return copy.deepcopy(self.original.model)


def task_of(model: nn.Module, codes: Tensor, forget_classes: tuple[int, ...]) -> UnlearningTask:
    """A task without a single sample: the codes are all there is."""
    shape = (codes.shape[1], codes.shape[2], codes.shape[3])
    pixels = Pixels(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    nothing = Split(torch.zeros(0, *shape, dtype=torch.uint8), torch.zeros(0).long(), torch.zeros(0).long(), pixels)
    splits = dict.fromkeys((FORGET, RETAIN, VALIDATION), nothing)
    facts = Facts("toy", "toy", len(codes), shape, forget_classes, "class", "mnemonic")
    bench = ToyBench(Trained(model, {"codes": codes}), splits, facts, pixels, ())
    return make_task("mnemonic", bench=bench)


def test_worked_case() -> None:
    """K = 2, W = b = 0, codes (1, 0) and (0, 1), forget 0: f_F = 1/4 in column 0, f_R = 1/4 in column 1.

    With the offsets eta is 2.5e15 and 4e-16, so lambda2 caps: both rows of column 0 move by lambda2 alike and the
    predictions stay. E_F + A_R ties, and a tie takes the minus sign.
    """
    codes = torch.eye(2).view(2, 1, 1, 2)
    task = task_of(Head(2, 2), codes, (0,))
    model = mnemonic(task, MnemonicHparams(lambda1=1e-3, lambda2=10.0))
    weight = model.get_parameter("head.weight").detach()
    torch.testing.assert_close(weight[:, 0], torch.tensor([-10.0, -10.0]))
    assert weight[:, 1].tolist() == pytest.approx([-1.6e-30] * 2, rel=1e-4, abs=0)  # 10 / 2.5e15 * 4e-16
    torch.testing.assert_close(model.get_parameter("head.bias").detach(), torch.full((2,), -1e-3))  # eta = 1
    assert task.reported.scalars["sign"] == -1.0
    assert task.reported.scalars["largest_change"] == pytest.approx(10.0)
    logits = model(codes)
    assert torch.equal(logits[:, 0], logits[:, 1])  # invisible to softmax: the signless limitation


def trained_head() -> tuple[nn.Module, Tensor]:
    """Softmax regression fitted to its codes, in four classes."""
    codes = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    model = Head(9, 4)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(codes), torch.arange(4)).backward()
        optimiser.step()
    return model, codes


@pytest.mark.parametrize("forget_classes", [(2,), (0, 3)])
def test_better_sign_of_the_two_by_hand(forget_classes: tuple[int, ...]) -> None:
    model, codes = trained_head()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    squares = []
    for label in range(4):
        value = nn.functional.cross_entropy(model(codes[label : label + 1]), torch.tensor([label]))
        squares.append([g.double() ** 2 for g in torch.autograd.grad(value, list(model.parameters()))])
    kept = [label for label in range(4) if label not in forget_classes]
    scores, candidates = {}, {}
    for sign in (1, -1):
        new = {}
        for i, (name, w) in enumerate(start.items()):
            f = (sum(squares[c][i] for c in forget_classes) + 1e-16) / len(forget_classes)
            r = (sum(squares[c][i] for c in kept) + 1e-16) / len(kept)
            eta = f / r
            new[name] = w + sign * min(0.3, 2.0 / float(eta.max())) * eta
        candidates[sign] = new
        predicted = (codes.flatten(1).double() @ new["head.weight"].T + new["head.bias"]).argmax(1)
        a_r = sum(int(predicted[c]) == c for c in kept) / len(kept)
        e_f = sum(int(predicted[c]) != c for c in forget_classes) / len(forget_classes)
        scores[sign] = a_r + e_f
    expected = candidates[1 if scores[1] > scores[-1] else -1]
    task = task_of(model, codes, forget_classes)
    unlearned = mnemonic(task, MnemonicHparams(lambda1=0.3, lambda2=2.0))
    for name, p in unlearned.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], rtol=1e-4, atol=1e-6)
    assert sum(task.reported.scalars[key] for key in ("code_a_r", "code_e_f")) == pytest.approx(max(scores.values()))


def job_of(hparams: MnemonicTraining, **changes: Any) -> TrainingJob:
    bench = make_bench("mlp")
    split = bench.splits[RETAIN].bound(torch.Generator().manual_seed(0))
    values = {
        "train": split,
        "recipe": Recipe(epochs=1, batch_size=50, lr=0.05, augment=False),
        "hparams": hparams,
        "seed": 0,
        "build": bench.build,
        "num_classes": 10,
        "input_shape": (1, 28, 28),
        "generator": torch.Generator().manual_seed(7),
        "device": torch.device("cpu"),
    }
    return TrainingJob(**{**values, **changes})


def test_training_replaces_the_share_t_mix_by_raw_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def fit(self: TrainingJob, model: nn.Module, recipe: Recipe | None = None, **options: Any) -> None:
        for images, labels in self.train.batches(100, shuffle=True):
            for _ in range(20):
                seen.append((options["batch_transform"](images, labels), labels))

    job, other = job_of(MnemonicTraining(t_mix=0.3)), job_of(MnemonicTraining(code_dist="normal"))
    monkeypatch.setattr(TrainingJob, "fit", fit)
    trained = TRAININGS["mnemonic"].fn(job)
    codes = trained.artefacts["codes"]
    assert codes.shape == (10, 1, 28, 28)
    assert 0.0 <= float(codes.min()) < 0.01 < 0.99 < float(codes.max()) <= 1.0
    replaced = torch.cat([(images == codes[labels]).flatten(1).all(1) for images, labels in seen])
    assert float(replaced.double().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / len(replaced)))
    normal = TRAININGS["mnemonic"].fn(other).artefacts["codes"]
    assert float(normal.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(normal.std()) == pytest.approx(1.0, abs=0.05)


def test_training_learns_the_codes_in_both_ways() -> None:
    for hparams in (MnemonicTraining(t_mix=0.3), MnemonicTraining(t_mix=0.5, finetune_epochs=6, finetune_lr=0.02)):
        job = job_of(hparams, recipe=Recipe(epochs=6, batch_size=32, lr=0.05, augment=False))
        trained = TRAININGS["mnemonic"].fn(job)
        present = torch.arange(1, 10)  # the split of the job has no class 0
        assert bool((trained.model(trained.artefacts["codes"])[1:].argmax(1) == present).all())
        images, labels = job.train.tensors()
        assert float((trained.model(images).argmax(1) == labels).float().mean()) > 0.9


def test_training_hyperparameters_are_checked() -> None:
    with pytest.raises(ValueError, match="t_mix"):
        MnemonicTraining(t_mix=0.0)
    with pytest.raises(ValueError, match="finetune_epochs"):
        MnemonicTraining(finetune_epochs=-1)


def test_needs_no_data_and_costs_k_passes() -> None:
    task = make_task("mnemonic", model="mlp")
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    model = run_method("mnemonic", task)
    assert task._passes.backward == pytest.approx(10)
    assert task._passes.forward == pytest.approx(10 + 20)
    assert METHODS["mnemonic"].needs == frozenset()
    for part in ("forget", "retain", "validation"):
        with pytest.raises(UndeclaredAccess):
            getattr(task, part)
    assert not all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_gradients_are_taken_in_evaluation_mode_and_buffers_stay() -> None:
    """Statistics of a batch of one would be garbage: with them the ratio of every batch norm is another."""
    options = {"samples": 120, "model_options": (("width", 3),)}
    task = make_task("mnemonic", model="vgg8", **options)
    buffers = {name: b.clone() for name, b in task.model.named_buffers()}
    modes: list[bool] = []
    task.model.register_forward_pre_hook(lambda module, _: modes.append(any(m.training for m in module.modules())))
    model = run_method("mnemonic", task)
    assert modes
    assert not any(modes)
    assert buffers
    assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())


@pytest.mark.parametrize(
    ("artefacts", "got"),
    [
        ({}, "got none"),
        ({"codes": torch.zeros(9, 1, 28, 28)}, r"got codes of shape \(9, 1, 28, 28\)"),
        ({"codes": torch.zeros(10, 3, 32, 32)}, r"got codes of shape \(10, 3, 32, 32\)"),
    ],
)
def test_codes_of_another_problem_are_refused(artefacts: dict[str, Tensor], got: str) -> None:
    bench = make_bench("mlp", training="mnemonic")
    task = make_task("mnemonic", bench=dataclasses.replace(bench, original=Trained(bench.original.model, artefacts)))
    expected = rf"one code per class of shape \(10, 1, 28, 28\) from the training of the original, {got}"
    with pytest.raises(ValueError, match=expected) as raised:
        run_method("mnemonic", task)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["mnemonic", "mnemonic_data"])
def test_sample_requests_are_skipped_rows(method: str, make_spec: Any, plan_of: Any) -> None:
    spec = make_spec(methods=[method], seeds={"train": [0, 1]})
    spec["problems"][0]["scenarios"] = [{"random": {"fraction": 0.1}}]
    plan = plan_of(spec)
    assert plan.searches() == []
    rows = [request for request in plan.finals(Ledger()) if request.spec.method == method]
    said = f"{METHODS[method].label} forgets class requests, this scenario is a sample request"
    assert [request.context["skip"] for request in rows] == [said] * 2


def test_several_classes_at_once_on_the_codes() -> None:
    """The more classes, the fewer codes are left that vote for the sign; each count of classes gives a result."""
    model, codes = trained_head()
    for forget_classes in ((0,), (0, 1), (0, 1, 2)):
        task = task_of(copy.deepcopy(model), codes, forget_classes)
        mnemonic(task, MnemonicHparams(lambda1=0.3, lambda2=20.0))
        reported = task.reported.scalars
        assert reported["code_e_f"] * len(forget_classes) == pytest.approx(
            round(reported["code_e_f"] * len(forget_classes))
        )
        kept = 4 - len(forget_classes)
        assert reported["code_a_r"] * kept == pytest.approx(round(reported["code_a_r"] * kept))
        assert reported["code_a_r"] + reported["code_e_f"] >= 1.0  # no worse than standing still


def test_last_layer_only_moves_the_head_alone() -> None:
    task = make_task("mnemonic", model="mlp")
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    model = run_method("mnemonic", task, last_layer_only=True)
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == {"head.weight", "head.bias"}


def test_some_setting_forgets_class_0_of_held_out_digits() -> None:
    """All ten classes trained with codes; forgetting sees codes only. One cell of a small grid must do.
    The network is the paper's with fewer units."""
    raw = DATASETS["digits"].fn(None, False)
    bench = make_bench("mlp", model_options=(("hidden", (256,)), ("activation", "sigmoid")))
    images, labels = torch.from_numpy(raw.x_train.copy()), torch.from_numpy(raw.y_train.copy())
    train = Split(images, labels, torch.arange(len(labels)), bench.pixels)
    recipe = Recipe(epochs=40, batch_size=64, lr=0.05, augment=False)
    bound = train.bound(torch.Generator().manual_seed(0))
    job = job_of(MnemonicTraining(), recipe=recipe, train=bound, build=bench.build)
    trained = TRAININGS["mnemonic"].fn(job)
    codes = trained.artefacts["codes"]
    held_out = bench.pixels.normalise(torch.from_numpy(raw.x_test.copy()))
    truth = torch.from_numpy(raw.y_test.copy())

    @torch.no_grad()
    def a_r_and_e_f(model: nn.Module) -> tuple[float, float]:
        right = (model(held_out).argmax(1) == truth).float()
        return float(right[truth != 0].mean()), 1.0 - float(right[truth == 0].mean())

    kept, gone = a_r_and_e_f(trained.model)
    assert kept > 0.93
    assert gone < 0.1
    cells = []
    for lambda1 in (1e-4, 1e-3, 1e-2, 1e-1):
        for lambda2 in (0.1, 1.0, 10.0):
            task = task_of(trained.model, codes, (0,))
            cells.append(a_r_and_e_f(mnemonic(task, MnemonicHparams(lambda1=lambda1, lambda2=lambda2))))
    assert any(a_r >= 0.9 and e_f >= 0.9 for a_r, e_f in cells), cells
