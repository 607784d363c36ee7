"""torchvision's and timm's networks under the contract, and what happens to those that cannot be laid out."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch import nn
from torchvision import models

from raybench.contract import broken_rules
from raybench.errors import UserError
from raybench.problem import build_model
from raybench.registry import MODELS
from raybench.seeding import seeded_globals
from raybench.spec import Choice

SHAPE = (3, 64, 64)
TORCHVISION = ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "mobilenet_v2"]
TIMM = ["resnet10t", "pvt_v2_b0", "convnext_atto", "efficientnet_lite0", "vit_tiny_patch16_224"]


def built(name: str, num_classes: int = 5, shape: tuple[int, int, int] = SHAPE, **options) -> nn.Module:
    with seeded_globals(0):
        return build_model(Choice(name, options), num_classes, shape)


def images(shape=SHAPE, n: int = 3) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_computes_the_same_and_keeps_the_contract(name):
    ours = built(f"torchvision:{name}").eval()
    with seeded_globals(0):
        theirs = models.get_model(name, num_classes=5).eval()
    assert broken_rules(ours, images(), 5) == []
    assert set(ours.origin) == set(theirs.state_dict())
    for key, own in ours.origin.items():
        assert torch.equal(theirs.state_dict()[key], ours.state_dict()[own])
    torch.testing.assert_close(ours(images()), theirs(images()))


def test_swin_of_torchvision():
    with torch.device("meta"):
        theirs = models.swin_t(num_classes=5)
    ours = built("torchvision:swin_t", arguments={"dropout": 0.0})
    assert broken_rules(ours, images(), 5) == []
    assert set(ours.origin) == set(theirs.state_dict())


@pytest.mark.parametrize("name", TIMM)
def test_timm_computes_the_same_and_keeps_the_contract(name):
    timm = pytest.importorskip("timm", reason="timm:<name> needs the extra timm")
    shape = (1, 32, 32)
    options = {"img_size": (32, 32)} if "vit" in name else {}
    ours = built(f"timm:{name}", shape=shape).eval()
    with seeded_globals(0):
        theirs = timm.create_model(name, num_classes=5, in_chans=1, **options).eval()
    assert broken_rules(ours, images(shape), 5) == []
    assert set(ours.origin) == set(theirs.state_dict())
    torch.testing.assert_close(ours(images(shape)), theirs(images(shape)), atol=1e-5, rtol=1e-4)


def test_bad_torchvision_names_and_images():
    with pytest.raises(UserError, match="model torchvision must be given a name, got none; write torchvision:NAME"):
        built("torchvision")
    with pytest.raises(UserError, match="torchvision must be a registered name, got 'resnet19'; did you mean resnet1"):
        built("torchvision:resnet19")
    with pytest.raises(UserError, match=r"torchvision:resnet18 must get RGB images \(3 channels\), got 1; use a model"):
        built("torchvision:resnet18", shape=(1, 64, 64))
    with pytest.raises(UserError, match=r"arguments of model torchvision:resnet18 must be torchvision's, got .*colour"):
        built("torchvision:resnet18", arguments={"colour": 3})
    with pytest.raises(UserError, match=r"model torchvision:squeezenet1_1 must be laid out as stages.* another struct"):
        built("torchvision:squeezenet1_1")
    with pytest.raises(UserError, match=r"model torchvision:alexnet must take images of \(3, 16, 16\), got Runtime"):
        built("torchvision:alexnet", shape=(3, 16, 16))


def test_bad_timm_names():
    pytest.importorskip("timm", reason="timm:<name> needs the extra timm")
    with pytest.raises(UserError, match="model timm must be given a name, got none; write timm:NAME"):
        built("timm")
    with pytest.raises(UserError, match="timm must be a registered name, got 'resnet26x'; did you mean resnet26"):
        built("timm:resnet26x")
    with pytest.raises(UserError, match=r"model timm:resnet10t must be built for images of .*, got .*colour"):
        built("timm:resnet10t", arguments={"colour": 3})


@pytest.mark.parametrize("name", ["timm:resnet18", "pvt_v2_b0"])
def test_without_timm(name, monkeypatch):
    real = builtins.__import__

    def missing(module, *rest, **more):
        if module == "timm":
            raise ModuleNotFoundError("No module named 'timm'")
        return real(module, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=rf"model {name} must have the package timm, got .*; install it: .*raybench\[t"):
        built(name)


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_names(name):
    entry = MODELS[name]
    assert entry.fn.__name__ == entry.fn.__module__.rsplit(".", 1)[1] == entry.name
    assert entry.summary
