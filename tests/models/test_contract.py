"""The contract of a model (raybench/contract.py), over every registered model, and broken on purpose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.contract import Classifier, broken_rules
from raybench.errors import UserError
from raybench.registry import CLASSIFICATION, MODELS
from raybench.seeding import seeded_globals

FAMILIES = ("timm", "torchvision")  # one name of each stands for all: tests/models/test_adapted.py
ENTRIES = [entry for entry in MODELS if entry.name not in FAMILIES and entry.task == CLASSIFICATION]
SHAPES = [(1, 28, 28), (3, 32, 32)]
TRANSFORMER = {"width": 8, "depth": 2, "heads": 2}
WIDTHS = {
    "allcnn": {"width": 6},
    "convnext_t": {"width": 4, "depths": [1, 1, 2]},
    "mlp": {"hidden": [7, 5]},
    "resnet18": {"width": 4},
    "resnet20": {"width": 2},
    "resnet50": {"width": 2},
    "resnet8": {"width": 4},
    "resnet9": {"width": 2},
    "resnext50": {"width": 2},
    "swin_t": {"width": 32, "depths": [2, 1]},
    "vgg16": {"width": 2},
    "vgg8": {"width": 3},
    "vit_b16": TRANSFORMER,
    "vit_tiny": TRANSFORMER,
}
NORMALISED = ("convnext_t", "pvt_v2_b0", "swin_t", "vit_b16", "vit_tiny")  # layer norm is not affine, nor is attention
LARGE = ("resnet50", "resnext50", "vit_b16")  # at their default widths too slow for the quick tests
each_model = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def build(entry, shape, seed=0, num_classes=10):
    if entry.name == "pvt_v2_b0":
        pytest.importorskip("timm", reason="pvt_v2_b0 needs the extra timm")
        if min(shape[1:]) < 32:
            pytest.skip("pvt_v2_b0 takes images from 32 pixels on")
    with seeded_globals(seed):
        return entry.fn(num_classes, shape, **WIDTHS.get(entry.name, {}))


def images(shape, n=4):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


@each_model
@each_shape
def test_keeps_the_contract(entry, shape):
    assert broken_rules(build(entry, shape, num_classes=7), images(shape), 7) == []


@each_model
@each_shape
def test_default_options(entry, shape):
    if entry.name in LARGE:
        pytest.skip("its size is looked at without memory in test_sizes")
    if entry.name == "pvt_v2_b0":
        build(entry, shape)
    with seeded_globals(0):
        model = entry.fn(10, shape)
    assert model.eval()(images(shape, 2)).shape == (2, 10)


@each_model
@each_shape
def test_every_non_linearity_is_a_module(entry, shape):
    """With activations and max pooling replaced, what is left must be affine: f(a) + f(b) = f(a + b) + f(0)."""
    if entry.name in NORMALISED:
        pytest.skip("layer norm and attention are not affine")
    model = build(entry, shape).double().eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU | nn.Sigmoid):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(child.kernel_size))
            elif isinstance(child, nn.AdaptiveMaxPool2d):
                setattr(parent, name, nn.AdaptiveAvgPool2d(child.output_size))
    a, b = images(shape, 2).double().split(1)
    torch.testing.assert_close(model(a) + model(b), model(a + b) + model(torch.zeros_like(a)))


@each_model
@each_shape
def test_every_parameter_learns(entry, shape):
    if entry.name == "pvt_v2_b0" and min(shape[1:]) >= 32:
        shape = (3, 64, 64)  # on 32 pixels there is one key: nothing for a query to choose from
    model = build(entry, shape).train()
    nn.functional.cross_entropy(model(images(shape, 8)), torch.arange(8)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@each_model
def test_seed_decides_the_weights_and_nothing_else_does(entry):
    state = torch.get_rng_state()
    one, same, other = (build(entry, SHAPES[1], seed).state_dict() for seed in (1, 1, 2))
    assert list(one) == list(other)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), state)


@each_model
def test_samples_do_not_see_each_other_in_evaluation(entry):
    model = build(entry, SHAPES[1]).double().eval()
    x = images(SHAPES[1]).double()
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


@each_model
def test_state_goes_into_a_new_copy(entry):
    model, copy = build(entry, SHAPES[1], 1).eval(), build(entry, SHAPES[1], 2).eval()
    copy.load_state_dict(model.state_dict())
    assert torch.equal(model(images(SHAPES[1])), copy(images(SHAPES[1])))


@each_model
def test_errors(entry):
    with pytest.raises(UserError, match=rf"model {entry.name} must tell at least 2 classes apart, got 1"):
        entry.fn(1, (1, 28, 28))
    with pytest.raises(
        UserError, match=rf"model {entry.name} must get images of \(channels, height, width\), got \(28,"
    ):
        entry.fn(10, (28, 28))
    with pytest.raises(
        UserError, match=rf"an option of {entry.name} must be one that it has, got 'colour'; its options:"
    ):
        entry.fn(10, (1, 28, 28), colour=3)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        *(("lenet5", 12), ("allcnn", 8), ("resnet18", 8), ("resnet8", 8), ("vgg8", 4), ("resnet20", 8)),
        *(("resnet50", 8), ("resnext50", 8), ("resnet9", 16), ("vgg16", 8), ("convnext_t", 8), ("swin_t", 4)),
    ],
)
def test_smallest_images(name, smallest):
    model = build(MODELS[name], (1, smallest, smallest + 3))
    assert broken_rules(model, images((1, smallest, smallest + 3)), 10) == []
    with pytest.raises(
        UserError, match=rf"{name} must get images of at least {smallest}x{smallest} pixels, got {smallest - 1}x99"
    ):
        build(MODELS[name], (1, smallest - 1, 99))


@each_model
def test_names(entry):
    assert entry.fn.__name__ == entry.fn.__module__.rsplit(".", 1)[1] == entry.name
    assert entry.summary


class Twisted(Classifier):
    """A small sound model; the cases below break one rule each."""

    def __init__(self) -> None:
        first = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
        neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__([first, second], neck, nn.Linear(3, 4))


class CopiedStages(Twisted):
    def stages(self):
        return [nn.Sequential(*stage) for stage in self.blocks]


class ReversedStages(Twisted):
    def stages(self):
        return list(self.blocks)[::-1]

    def features(self, x):
        return self.neck(self.blocks[1](self.blocks[0](x)))


class OtherForward(Twisted):
    def forward(self, x):
        return self.head(self.features(x)) * 2


class NaNLogits(Twisted):
    def forward(self, x):
        return self.head(self.features(x)) / 0


class SharedActivation(Twisted):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1][1] = self.blocks[0][1]


class InPlace(Twisted):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[0][1] = nn.ReLU(inplace=True)


class WritesInput(Twisted):
    def forward(self, x):
        return super().forward(x.mul_(0.5))


class TiedWeights(Twisted):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(3, 4)
        self.extra.weight = self.head.weight


class WrongHead(Twisted):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(3, 4))


class TwoDropouts(Twisted):
    """One dropout at two places, and one at none: nothing is to be hooked or swapped there."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[0].append(nn.Dropout(0.5))
        self.blocks[1].append(self.blocks[0][2])
        self.unused = nn.Dropout(0.5)


class UnusedLayer(Twisted):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)


class QuietInPlace(Twisted):
    """An activation without the flag ``inplace``, called twice, that hands on the tensor it was given."""

    class Act(nn.Module):
        def forward(self, x):
            return x.relu_()

    def __init__(self) -> None:
        super().__init__()
        self.blocks[0][1] = self.blocks[1][1] = self.Act()


def test_dropout_may_be_called_any_number_of_times():
    assert broken_rules(TwoDropouts(), images((1, 8, 8)), 4) == []


def test_sound_model_breaks_nothing_and_keeps_its_modes():
    model = Twisted().train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    assert broken_rules(model, images((1, 8, 8)), 4) == []
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (CopiedStages, "stages() must be a list of submodules"),
        (ReversedStages, "in their order"),
        (OtherForward, "head(features(x)) must equal forward(x)"),
        (NaNLogits, "logits must be finite"),
        (SharedActivation, "is called 2 times in a pass"),
        (UnusedLayer, "unused is called 0 times in a pass"),
        (QuietInPlace, "is called 2 times in a pass"),
        (InPlace, "blocks.0.1 works in place"),
        (WritesInput, "the input must not be written to"),
        (TiedWeights, "share one tensor"),
        (WrongHead, "head must be nn.Linear with 4 outputs"),
        (lambda: nn.Linear(3, 4), "has no stages"),
    ],
)
def test_every_rule_can_be_broken(model, message):
    rules = broken_rules(model(), images((1, 8, 8)), 4)
    assert any(message in rule for rule in rules), rules
