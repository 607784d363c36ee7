"""Parameter counts against closed forms and against the numbers that the literature quotes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

from raybench.errors import UserError
from raybench.models.allcnn import allcnn
from raybench.models.lenet5 import lenet5
from raybench.models.mlp import mlp
from raybench.models.resnet8 import resnet8
from raybench.models.resnet18 import resnet18
from raybench.models.vgg8 import vgg8
from raybench.registry import MODELS

MNIST, CIFAR, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of a convolution without bias and of the batch norm after it."""
    return inputs * outputs * kernel**2 + 2 * outputs


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ([1000], 784 * 1000 + 1000 + 1000 * 10 + 10),  # the 784-1000-10 net of the mnemonic-code paper
        (1000, 795_010),
        ([], 784 * 10 + 10),
        ((30, 20), 784 * 30 + 30 + 30 * 20 + 20 + 20 * 10 + 10),
    ],
)
def test_mlp(hidden, expected):
    assert size(mlp(10, MNIST, hidden=hidden, activation="sigmoid")) == expected


def test_mlp_is_softmax_regression_without_hidden_layers():
    model = mlp(10, MNIST, hidden=[])
    x = torch.randn(3, *MNIST)
    assert model.stages() == []
    torch.testing.assert_close(model(x), x.flatten(1) @ model.head.weight.T + model.head.bias)


def test_mlp_sigmoid_by_hand():
    model = mlp(4, MNIST, hidden=[6], activation="sigmoid").double()
    x = torch.randn(3, *MNIST, dtype=torch.float64)
    first = model.stages()[0][1]
    hidden = 1 / (1 + torch.exp(-(x.flatten(1) @ first.weight.T + first.bias)))
    torch.testing.assert_close(model.features(x), hidden)


@pytest.mark.parametrize("hidden", [[0], [-3], [True], ["a"], "wide", 2.5, [1.5], None])
def test_mlp_widths(hidden):
    with pytest.raises(UserError, match="hidden of model mlp must be an integer of at least 1, got"):
        mlp(10, MNIST, hidden=hidden)


@pytest.mark.parametrize("activation", ["tanh", None, ["relu"]])
def test_mlp_activation(activation):
    with pytest.raises(UserError, match="activation of model mlp must be relu or sigmoid, got"):
        mlp(10, MNIST, activation=activation)


def test_lenet5():
    convolutions = 6 * 25 + 6 + 16 * 6 * 25 + 16
    dense = 120 * 84 + 84 + 84 * 10 + 10
    assert size(lenet5(10, MNIST)) == convolutions + 400 * 120 + 120 + dense == 61_706
    assert size(lenet5(10, CIFAR)) == convolutions + 2 * 6 * 25 + 400 * 120 + 120 + dense == 62_006
    assert lenet5(10, MNIST).stages()[1](lenet5(10, MNIST).stages()[0](torch.zeros(1, *MNIST))).shape == (1, 16, 5, 5)


@pytest.mark.parametrize(("shape", "width"), [(MNIST, 96), (CIFAR, 96), (CIFAR, 10)])
def test_allcnn(shape, width):
    n, w = width, 2 * width
    expected = (
        conv(shape[0], n, 3) + 2 * conv(n, n, 3) + conv(n, w, 3) + 3 * conv(w, w, 3) + conv(w, w, 1) + w * 10 + 10
    )
    model = allcnn(10, shape, width=width)
    assert size(model) == expected
    assert len(model.stages()) == 8


def test_allcnn_attention_maps():
    sides, x = [], torch.zeros(2, *CIFAR)
    for stage in allcnn(10, CIFAR, width=4).stages():
        x = stage(x)
        sides.append(x.shape[-1])
    assert sides == [32, 32, 16, 16, 16, 8, 8, 8]


def test_resnet18():
    blocks, inputs = 0, 64
    for filters in (64, 128, 256, 512):
        blocks += conv(inputs, filters, 3) + 3 * conv(filters, filters, 3)
        blocks += conv(inputs, filters, 1) if inputs != filters else 0
        inputs = filters
    model = resnet18(10, CIFAR)
    assert size(model) == conv(3, 64, 3) + blocks + 512 * 10 + 10 == 11_173_962  # the number quoted for CIFAR-10
    assert len(model.stages()) == 5


def test_resnet18_stages_compute_what_torchvision_computes():
    """Same weights into torchvision's network, its stem replaced by that for small images."""
    ours = resnet18(10, CIFAR).double().eval()
    oracle = torchvision_resnet18(num_classes=10)
    oracle.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    oracle.maxpool = nn.Identity()
    oracle.double().eval()
    values = list(ours.state_dict().values())
    names = list(oracle.state_dict())
    assert [tuple(t.shape) for t in values] == [tuple(t.shape) for t in oracle.state_dict().values()]
    generator = torch.Generator().manual_seed(0)
    values = [torch.rand(t.shape, generator=generator).to(t) * 0.1 + 0.01 for t in values]
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    oracle.load_state_dict(dict(zip(names, values, strict=True)))
    x = torch.randn(2, *CIFAR, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(ours(x), oracle(x))


def test_resnet8():
    blocks = 2 * conv(16, 16, 3)
    for inputs, filters in ((16, 32), (32, 64)):
        blocks += conv(inputs, filters, 3) + conv(filters, filters, 3) + conv(inputs, filters, 1)
    assert size(resnet8(10, CIFAR)) == conv(3, 16, 3) + blocks + 64 * 10 + 10 == 78_042
    assert len(resnet8(10, CIFAR).stages()) == 4


@pytest.mark.parametrize(("shape", "batch_norm"), [(MNIST, True), (CIFAR, True), (MNIST, False)])
def test_vgg8(shape, batch_norm):
    filters, inputs, expected = (64, 128, 256, 512, 512), shape[0], 512 * 10 + 10
    for outputs in filters:
        expected += conv(inputs, outputs, 3) if batch_norm else inputs * outputs * 9 + outputs
        inputs = outputs
    model = vgg8(10, shape, batch_norm=batch_norm)
    assert size(model) == expected
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == batch_norm
    if shape == MNIST and batch_norm:
        assert expected == 3_916_234


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(MNIST, [14, 7, 3, 3, 3]), (CIFAR, [16, 8, 4, 4, 4]), ((1, 8, 8), [4, 2, 2, 2, 2]), ((1, 4, 4), [2, 2, 2, 2, 2])],
)
def test_vgg8_pools_while_four_pixels_are_left_and_trains_on_one_sample(shape, expected):
    sides, x, model = [], torch.randn(1, *shape), vgg8(10, shape, width=3).train()
    for stage in model.stages():
        x = stage(x)
        sides.append(x.shape[-1])
    assert sides == expected


@pytest.mark.parametrize("value", [1, "true", None])
def test_vgg8_batch_norm_is_true_or_false(value):
    with pytest.raises(UserError, match="batch_norm of model vgg8 must be true or false, got"):
        vgg8(10, MNIST, batch_norm=value)


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "expected"),
    [
        ("resnet18", IMAGENET, 1000, 11_689_512),
        ("resnet50", IMAGENET, 1000, 25_557_032),
        ("resnext50", IMAGENET, 1000, 25_028_904),
        ("vgg16", IMAGENET, 1000, 138_365_992),
        ("vit_b16", IMAGENET, 1000, 86_567_656),
        ("vit_tiny", IMAGENET, 1000, 5_717_416),  # DeiT-Ti
        ("swin_t", IMAGENET, 1000, 28_288_354),
        ("convnext_t", IMAGENET, 1000, 28_589_128),
        ("pvt_v2_b0", IMAGENET, 1000, 3_666_760),
        ("resnet20", CIFAR, 10, 272_474),
        ("resnet9", CIFAR, 10, 6_573_130),
        ("resnet50", CIFAR, 10, 23_520_842),
        ("vgg16", CIFAR, 10, 14_728_266),
    ],
)
def test_as_many_parameters_as_published(name, shape, num_classes, expected):
    """The numbers of torchvision's and timm's documentation, and those that papers on CIFAR quote."""
    if name == "pvt_v2_b0":
        pytest.importorskip("timm", reason="pvt_v2_b0 needs the extra timm")
    with torch.device("meta"):
        assert size(MODELS[name].fn(num_classes, shape)) == expected


@pytest.mark.parametrize(
    ("name", "stem", "side", "expected"),
    [
        ("resnet18", "auto", 32, 32),
        ("resnet18", "auto", 96, 96),
        ("resnet18", "auto", 128, 32),
        ("resnet50", "imagenet", 64, 16),
        ("resnext50", "small", 128, 128),
    ],
)
def test_stems(name, stem, side, expected):
    with torch.device("meta"):
        model = MODELS[name].fn(10, (3, side, side), stem=stem, width=2)
        assert model.stages()[0](torch.zeros(1, 3, side, side)).shape[-1] == expected


BAD = [
    ("resnet18", {"stem": "big"}, "stem of model resnet18 must be auto, small or imagenet, got 'big'"),
    ("resnet50", {"stem": ["small"]}, "stem of model resnet50 must be auto, small or imagenet, got"),
    ("vgg16", {"dense": "yes"}, "dense of model vgg16 must be true, false or null, got 'yes'"),
    ("vit_tiny", {"patch": 5}, "patch of model vit_tiny must divide the sides of the images, got 5 for 28x28"),
    ("vit_tiny", {"heads": 5}, "width of model vit_tiny must be a multiple of its 5 heads, got 192"),
    ("vit_b16", {"depth": 0}, "depth of model vit_b16 must be an integer of at least 1, got 0"),
    ("swin_t", {"width": 40}, "width of model swin_t must be a multiple of 32, got 40"),
    ("swin_t", {"depths": [2]}, "depths of model swin_t must be at least 2 numbers"),
    ("convnext_t", {"drop": 1}, "drop of model convnext_t must be from 0 to below 1, got 1"),
    ("convnext_t", {"depths": [1, 0]}, "depths of model convnext_t must be an integer of at least 1, got 0"),
    ("convnext_t", {"patch": 4}, "model convnext_t must get images of at least 32x32 pixels, got 28x28"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_options(name, options, message):
    with pytest.raises(UserError, match=message), torch.device("meta"):
        MODELS[name].fn(10, MNIST, **options)


def test_imagenet_stem_needs_room():
    with pytest.raises(
        UserError, match="stem imagenet of model resnet18 must get images of at least 32 pixels, got 28"
    ):
        resnet18(10, MNIST, stem="imagenet")


@pytest.mark.parametrize("model", [allcnn, resnet18, resnet8, vgg8])
@pytest.mark.parametrize("width", [0, -1, 1.5, True, "8"])
def test_widths(model, width):
    with pytest.raises(
        UserError, match=rf"width of model {model.__name__} must be an integer of at least 1, got {width!r}"
    ):
        model(10, CIFAR, width=width)
