"""Networks that torchvision or timm have too compute what theirs compute, on the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from raybench.models.convnext_t import convnext_t
from raybench.models.resnet18 import residual
from raybench.models.resnet50 import resnet50
from raybench.models.resnext50 import GroupedBottleneck
from raybench.models.swin_t import swin_t
from raybench.models.vgg16 import vgg16
from raybench.models.vit_tiny import vit_tiny
from raybench.registry import MODELS


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Random values into both, tensor by tensor in the order of their state dicts."""
    names, other = ours.state_dict(), theirs.state_dict()
    assert [tuple(t.shape) for t in names.values()] == [tuple(t.shape) for t in other.values()]
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for key, value in other.items():
        if value.is_floating_point():
            positive = key.endswith("running_var")
            drawn = (
                torch.rand(value.shape, generator=generator)
                if positive
                else torch.randn(value.shape, generator=generator)
            )
            kept[key] = (0.1 * drawn + 0.05 * positive).to(value)
        else:
            kept[key] = value  # counters and the positions of a window
    theirs.load_state_dict(kept)
    ours.load_state_dict(dict(zip(names, kept.values(), strict=True)))


def check(ours: nn.Module, theirs: nn.Module, shape: tuple[int, int, int], n: int = 2) -> None:
    ours, theirs = ours.double().eval(), theirs.double().eval()
    same_weights(ours, theirs)
    x = torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x))


def test_bottlenecks_with_the_stem_of_imagenet():
    # Widths of ResNet-50; torchvision's network has no narrower one, so one block a stage.
    ours = residual(3, 7, [64, 128, 256, 512], 1, block=GroupedBottleneck, imagenet=True)
    check(ours, ResNet(Bottleneck, [1, 1, 1, 1], 7, groups=32, width_per_group=4), (3, 64, 64))


def test_resnet50_has_the_blocks_of_torchvisions():
    with torch.device("meta"):
        ours, theirs = resnet50(9, (3, 224, 224)).state_dict(), models.resnet50(num_classes=9).state_dict()
    assert [t.shape for t in ours.values()] == [t.shape for t in theirs.values()]


@pytest.mark.parametrize("patch", [4, 8])
def test_vision_transformer(patch):
    ours = vit_tiny(5, (3, 16, 16), patch=patch, width=12, depth=2, heads=3)
    theirs = VisionTransformer(
        image_size=16, patch_size=patch, num_layers=2, num_heads=3, hidden_dim=12, mlp_dim=48, num_classes=5
    )
    check(ours, theirs, (3, 16, 16))


@pytest.mark.parametrize(("side", "window"), [(32, 4), (28, 4), (24, 7), (40, 3)])
def test_swin_with_and_without_shifts_and_padding(side, window):
    ours = swin_t(5, (3, side, side), patch=2, window=window, width=32, depths=[2, 2], drop=0.0)
    theirs = SwinTransformer([2, 2], 32, [2, 2], [1, 2], [window, window], stochastic_depth_prob=0.0, num_classes=5)
    check(ours, theirs, (3, side, side))


def test_convnext():
    ours = convnext_t(5, (3, 32, 32), patch=4, width=6, depths=[1, 2])
    settings = [CNBlockConfig(6, 12, 1), CNBlockConfig(12, None, 2)]
    check(ours, ConvNeXt(settings, num_classes=5), (3, 32, 32))


def test_vgg16_with_dense_layers():
    with torch.device("meta"):
        ours, theirs = vgg16(9, (3, 224, 224)), models.vgg16_bn(num_classes=9)
    assert [t.shape for t in ours.state_dict().values()] == [t.shape for t in theirs.state_dict().values()]

    def kinds(model):
        leaves = [m for m in model.modules() if not list(m.children())]
        return [nn.MaxPool2d if isinstance(m, nn.MaxPool2d) else type(m) for m in leaves]

    assert [kind for kind in kinds(ours) if kind is not nn.Flatten] == kinds(theirs)


@pytest.mark.parametrize("name", [entry.name for entry in MODELS if entry.published])
def test_published_names_have_the_same_tensors_in_the_same_order(name):
    """So that their weight files fit, see raybench/weights.py."""
    with torch.device("meta"):
        ours = MODELS[name].fn(1000, (3, 224, 224)).state_dict()
        theirs = models.get_model(MODELS[name].published, weights=None).state_dict()
    assert [t.shape for t in ours.values()] == [t.shape for t in theirs.values()]
