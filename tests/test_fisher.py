"""Fisher diagonals against a closed form and against float64 gradients of one sample at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from raybench.data import Batch, Pixels, Split
from raybench.fisher import data_loss, fisher_diag, fisher_of_split, over_labels
from raybench.passes import PassCounter


def one_by_one(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The oracle: float64, a batch of one at a time, plain autograd."""
    double = copy.deepcopy(model).double().eval().requires_grad_(True)
    names = [name for name, _ in double.named_parameters()]
    total = [torch.zeros_like(p) for p in double.parameters()]
    for x, y in zip(images, labels, strict=True):
        x = x.double() if x.is_floating_point() else x
        value = F.cross_entropy(double(x[None]), y[None])
        grads = torch.autograd.grad(value, list(double.parameters()), allow_unused=True)
        for sums, g in zip(total, grads, strict=True):
            if g is not None:
                sums += g.detach() ** 2
    return {name: sums.detach() / len(labels) for name, sums in zip(names, total, strict=True)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        # relative to the tensor's scale where entries vanish, to the entry elsewhere
        torch.testing.assert_close(found[name].double(), value, rtol=rtol, atol=1e-7 * float(value.max()), msg=name)


def seeded(*layers: nn.Module) -> nn.Module:
    """Layers with drawn parameters and batch-norm buffers."""
    model = nn.Sequential(*layers)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=draw))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=draw))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw))
    return model


def conv_net(groups: int = 2) -> nn.Module:
    return seeded(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=groups**2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, (1, 3), stride=(2, 1), groups=groups),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 12),
        nn.BatchNorm1d(12),
        nn.Tanh(),
        nn.Linear(12, 4, bias=False),
    )


@pytest.fixture
def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(11, 3, 10, 10, generator=draw), torch.randint(4, (11,), generator=draw)


def test_closed_form_of_softmax_regression() -> None:
    """mean_n (p_nk - 1[k = y_n])^2 x_nj^2."""
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 7, generator=draw), torch.randint(5, (50,), generator=draw)
    model = seeded(nn.Linear(7, 5))
    error = torch.softmax(model(x).double(), 1) - F.one_hot(y, 5)
    expected = {"0.weight": (error**2).T @ (x.double() ** 2) / 50, "0.bias": (error**2).mean(0)}
    assert_same(fisher_diag(model, x, y, batch_size=8), {k: v.detach() for k, v in expected.items()})


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_conv_net_equals_one_sample_at_a_time(batch: Batch, batch_size: int) -> None:
    model = conv_net()
    expected = one_by_one(model, *batch)
    assert_same(fisher_diag(model, *batch, batch_size=batch_size), expected)
    assert_same(fisher_diag(model, *batch, batch_size=batch_size, slice_elements=1), expected)


def test_per_batch_is_the_mean_of_squared_mean_gradients(batch: Batch) -> None:
    model = conv_net()
    images, labels = batch
    double = copy.deepcopy(model).double().eval()
    squares = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 11)):
        value = F.cross_entropy(double(images[part].double()), labels[part])
        squares.append([g**2 for g in torch.autograd.grad(value, list(double.parameters()))])
    expected = [sum(parts) / 3 for parts in zip(*squares, strict=True)]
    found = fisher_diag(model, *batch, mode="per_batch", batch_size=4)
    for value, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-7 * float(wanted.max()))
    single = fisher_diag(model, *batch, mode="per_batch", batch_size=1)
    assert_same(single, one_by_one(model, *batch))


class Shared(nn.Module):
    """One linear layer twice in a pass, a tied weight, a sequence layer, and a parameter of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(5)))
        self.embed = nn.Embedding(9, 6)
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.sequence = nn.Linear(6, 5)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(5, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.token
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        x = F.linear(torch.relu_(self.tied(x)), self.tied.weight)
        x = self.sequence(self.norm(x))
        out: Tensor = self.head(x.mean(1))
        return out


def test_fallback_for_shared_and_unknown_layers() -> None:
    draw = torch.Generator().manual_seed(2)
    ids, labels = torch.randint(9, (7, 3), generator=draw), torch.randint(4, (7,), generator=draw)
    model = seeded(Shared())
    expected = one_by_one(model, ids, labels)
    assert_same(fisher_diag(model, ids, labels, batch_size=3), expected)
    assert_same(fisher_diag(model, ids, labels, slice_elements=1), expected)
    assert float(expected["0.twice.weight"].min()) > 0.0
    assert float(expected["0.unused.weight"].max()) == 0.0


def test_fallback_equals_the_fast_path(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_net()
    fast = fisher_diag(model, *batch)
    monkeypatch.setattr("raybench.sample_gradients.FAST", ())
    slow = fisher_diag(model, *batch)
    for name, value in fast.items():
        torch.testing.assert_close(slow[name], value, rtol=1e-5, atol=1e-6 * float(value.max()))


def test_circular_padding_falls_back() -> None:
    draw = torch.Generator().manual_seed(2)
    images, labels = torch.randn(5, 1, 4, 4, generator=draw), torch.randint(4, (5,), generator=draw)
    model = seeded(nn.Conv2d(1, 4, 3, padding="same", padding_mode="circular"), nn.Flatten(), nn.Linear(64, 4))
    assert_same(fisher_diag(model, images, labels), one_by_one(model, images, labels))


def test_the_model_is_left_as_it_was(batch: Batch) -> None:
    model = conv_net().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    for mode in ("per_sample", "per_batch"):
        found = fisher_diag(model, *batch, mode=mode)
        assert float(found["0.weight"].max()) > 0.0  # frozen parameters have a Fisher diagonal too
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 13
    assert [p.grad is None for p in model.parameters()].count(False) == 1
    assert bool((model[3].weight.grad == 1.0).all())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def split_of(count: int, generator: torch.Generator | None = None) -> Split:
    draw = torch.Generator().manual_seed(4)
    images = torch.randint(256, (30, 3, 10, 10), generator=draw).to(torch.uint8)
    pixels = Pixels(torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25))
    return Split(images, torch.randint(4, (30,), generator=draw), torch.arange(count), pixels, generator=generator)


def test_split_and_unbiased_subsample() -> None:
    model, split = conv_net(), split_of(30)
    whole = fisher_of_split(model, split, batch_size=7)
    assert_same(whole, {k: v.double() for k, v in fisher_diag(model, *split.tensors()).items()})
    draw = torch.Generator().manual_seed(0)
    parts = [fisher_of_split(model, split, samples=10, generator=draw)["8.bias"] for _ in range(150)]
    stacked = torch.stack(parts)
    error = stacked.std(0) / 150**0.5
    assert bool(((stacked.mean(0) - whole["8.bias"]).abs() < 4.5 * error).all())
    with pytest.raises(ValueError, match="needs a generator"):
        fisher_of_split(model, split, samples=10)
    with pytest.raises(ValueError, match="at least one sample"):
        fisher_of_split(model, split_of(0))


def test_what_cannot_have_a_fisher_diagonal(batch: Batch) -> None:
    with pytest.raises(ValueError, match="running statistics"):
        fisher_diag(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), *batch)
    with pytest.raises(ValueError, match="per_sample or per_batch"):
        fisher_diag(conv_net(), *batch, mode="batch")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["per_sample", "per_batch"])
def test_passes_agree_with_the_flop_counter(batch: Batch, mode: str) -> None:
    model = conv_net(groups=1).eval()  # FlopCounterMode overcounts the backward pass of grouped convolutions
    passes = PassCounter(model, (3, 10, 10))
    passes.track(model)
    with FlopCounterMode(display=False) as flops:
        fisher_diag(model, *batch, mode=mode, batch_size=4)  # type: ignore[arg-type]
    assert passes.forward == pytest.approx(11)
    assert passes.backward == pytest.approx(11)
    counted = passes.forward_flops + passes.backward_flops
    assert flops.get_total_flops() == pytest.approx(counted, rel=0.05)


def test_functional_passes_are_counted(batch: Batch) -> None:
    circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    model = seeded(nn.Conv2d(3, 4, 3), circular, nn.Flatten(), nn.Linear(256, 4)).eval()
    passes = PassCounter(model, (3, 10, 10))
    passes.track(model)
    fisher_diag(model, *batch)
    assert passes.forward == pytest.approx(22)  # the fast path, and vmap(grad) for circular padding


def expected_one_by_one(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The oracle of ``over_labels``: sum_y p(y|x) (d loss(x, y) / d w)^2, a sample and a label at a time."""
    double = copy.deepcopy(model).double().eval()
    total = [torch.zeros_like(p) for p in double.parameters()]
    for x in images:
        x = x.double() if x.is_floating_point() else x
        shares = double(x[None]).softmax(1)[0].detach()
        for k, share in enumerate(shares):
            value = F.cross_entropy(double(x[None]), torch.tensor([k]))
            grads = torch.autograd.grad(value, list(double.parameters()), allow_unused=True)
            for sums, g in zip(total, grads, strict=True):
                if g is not None:
                    sums += share * g.detach() ** 2
    names = [name for name, _ in double.named_parameters()]
    return {name: sums.detach() / len(images) for name, sums in zip(names, total, strict=True)}


def test_expectation_over_labels_of_a_linear_head() -> None:
    """Logits (1, 0, -1) of one feature x = 2: p (1 - p) x^2, and the empirical Fisher at y = 0."""
    head = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.5], [0.0], [-0.5]]))
    x, y = torch.tensor([[2.0]]), torch.tensor([0])
    found = fisher_diag(head, x, y, loss=over_labels(data_loss))["weight"].flatten()
    assert found.tolist() == pytest.approx([0.890782, 0.739346, 0.327700], abs=1e-6)
    empirical = fisher_diag(head, x, y)["weight"].flatten()
    assert empirical.tolist() == pytest.approx([0.448254, 0.239568, 0.032422], abs=1e-6)


def test_expectation_over_labels_equals_a_label_at_a_time(batch: Batch) -> None:
    model = conv_net()
    found = fisher_diag(model, *batch, loss=over_labels(data_loss), batch_size=4)
    assert_same(found, expected_one_by_one(model, batch[0]))
    ids = torch.randint(9, (4, 3), generator=torch.Generator().manual_seed(2))
    shared = seeded(Shared())  # the path through torch.func
    found = fisher_diag(shared, ids, torch.zeros(4, dtype=torch.int64), loss=over_labels(data_loss))
    assert_same(found, expected_one_by_one(shared, ids))
    with pytest.raises(ValueError, match="need mode per_sample"):
        fisher_diag(model, *batch, loss=over_labels(data_loss), mode="per_batch")


def test_expectation_over_labels_costs_a_forward_and_k_backward_passes(batch: Batch) -> None:
    model = conv_net(groups=1).eval()
    passes = PassCounter(model, (3, 10, 10))
    passes.track(model)
    with FlopCounterMode(display=False) as flops:
        fisher_diag(model, *batch, loss=over_labels(data_loss))
    assert passes.forward == pytest.approx(11)
    assert passes.backward == pytest.approx(44)
    assert flops.get_total_flops() == pytest.approx(passes.forward_flops + passes.backward_flops, rel=0.05)


def test_power_one_sums_magnitudes(batch: Batch) -> None:
    for model, (images, labels) in (
        (conv_net(), batch),
        (seeded(Shared()), (torch.randint(9, (4, 3), generator=torch.Generator().manual_seed(2)), batch[1][:4])),
    ):
        double = copy.deepcopy(model).double().eval()
        total = [torch.zeros_like(p) for p in double.parameters()]
        for x, y in zip(images, labels, strict=True):
            value = F.cross_entropy(double(x[None].double() if x.is_floating_point() else x[None]), y[None])
            grads = torch.autograd.grad(value, list(double.parameters()), allow_unused=True, materialize_grads=True)
            total = [sums + g.abs() for sums, g in zip(total, grads, strict=True)]
        names = [name for name, _ in model.named_parameters()]
        expected = {name: (sums / len(labels)).detach() for name, sums in zip(names, total, strict=True)}
        found = fisher_diag(model, images, labels, power=1)
        for name, value in expected.items():
            torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-6 * float(value.max()))
    single = fisher_diag(conv_net(), *batch, power=1, mode="per_batch", batch_size=1)
    for name, value in fisher_diag(conv_net(), *batch, power=1).items():
        torch.testing.assert_close(single[name], value, rtol=1e-4, atol=1e-6 * float(value.max()))
    with pytest.raises(ValueError, match="1 or 2"):
        fisher_diag(conv_net(), *batch, power=3)  # type: ignore[arg-type]
