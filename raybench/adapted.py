"""Networks of other libraries as stages, neck and head (``raybench.contract``), where they are laid out so.

Their modules are used as they are, with what breaks the contract mended: activations work in place no more, one that
is called twice becomes two, attention is computed in plain matrix products. What cannot be laid out is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raybench.contract import Classifier, Shape, broken_rules
from raybench.errors import UserError
from raybench.window_attention import window_attention


class Adapted(Classifier):
    """A classifier of another library's modules. ``origin``: key of the library's state dict -> key of this one's."""

    def __init__(self, network: nn.Module, stages: Sequence[nn.Module], neck: nn.Module, head: nn.Linear) -> None:
        given = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
        super().__init__(stages, neck, head)
        ours = self.state_dict(keep_vars=True)
        self.origin = {given[id(tensor)]: name for name, tensor in ours.items() if id(tensor) in given}
        for module in self.modules():
            for flag in ("inplace", "fused_attn"):
                if getattr(module, flag, False):
                    setattr(module, flag, False)


class Mean(nn.Module):
    """[n, c, h, w] to [n, c]."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.mean(dim=(-1, -2))


def check_layout(name: str, build: Callable[[], nn.Module | None], num_classes: int, shape: Shape) -> None:
    """``UserError`` where a network of another library cannot be laid out, or breaks the contract (tried once per
    process, on the CPU, on two images of noise)."""
    if (name, num_classes, shape) in _KEPT:
        return
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model = build()
        rules = ["has another structure than those that raybench knows"]
        if model is not None:
            images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
            try:
                rules = broken_rules(model, images, num_classes)
            except (RuntimeError, AssertionError, ValueError) as error:  # images that it was not made for
                raise UserError(
                    f"model {name} must take images of {shape}, got {type(error).__name__}: {error}; use larger ones"
                ) from error
    if rules:
        raise UserError(
            f"model {name} must be laid out as stages, neck and head (raybench/contract.py), got one that {rules[0]}; "
            "use one of raybench's own models, or write a plug-in"
        )
    _KEPT.add((name, num_classes, shape))


_KEPT: set[tuple[str, int, Shape]] = set()


def split_activations(network: nn.Module) -> None:
    """Give each block of torchvision's residual networks an activation per place, in the place of one for all."""
    from torchvision.models import resnet

    for module in network.modules():
        for kind, splitted in zip((resnet.BasicBlock, resnet.Bottleneck), _split_blocks(), strict=True):
            if type(module) is kind:
                module.__class__ = splitted
                module.relu, module.relu2, module.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
                if kind is resnet.BasicBlock:
                    del module.relu3


@functools.cache
def _split_blocks() -> tuple[type[nn.Module], type[nn.Module]]:
    """The blocks of torchvision with an activation per place; made late, since the import is slow."""
    from torchvision.models import resnet

    class SplitBasic(resnet.BasicBlock):  # type: ignore[misc]
        """Two activations."""

        def forward(self, x: Tensor) -> Tensor:
            """As torchvision's."""
            carried = x if self.downsample is None else self.downsample(x)
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            out: Tensor = self.relu2(y + carried)
            return out

    class SplitBottleneck(resnet.Bottleneck):  # type: ignore[misc]
        """Three activations."""

        def forward(self, x: Tensor) -> Tensor:
            """As torchvision's."""
            carried = x if self.downsample is None else self.downsample(x)
            y = self.relu2(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
            out: Tensor = self.relu3(self.bn3(self.conv3(y)) + carried)
            return out

    return SplitBasic, SplitBottleneck


def from_torchvision(network: nn.Module) -> Adapted | None:
    """A torchvision classifier laid out: ResNet and its kin, RegNet, Swin, and those of ``features``, ``avgpool`` and
    ``classifier`` (VGG, AlexNet, MobileNetV3, EfficientNet, ConvNeXt ...). None for another structure."""
    from torchvision.models import ConvNeXt, MobileNetV2, SwinTransformer
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    if isinstance(network, SwinTransformer):
        for module in network.modules():
            if type(module) is ShiftedWindowAttention:
                module.__class__ = window_attention()
    if isinstance(network, MobileNetV2):
        network.avgpool = nn.AdaptiveAvgPool2d(1)  # a function there
    parts = dict(network.named_children())
    flat = nn.Flatten()
    if {"conv1", "bn1", "relu", "maxpool", "layer4", "avgpool", "fc"} <= set(parts):
        split_activations(network)
        stem = nn.Sequential(*(parts[k] for k in ("conv1", "bn1", "relu", "maxpool")))
        stages = [stem, *(parts[f"layer{i}"] for i in range(1, 5))]
        return Adapted(network, stages, nn.Sequential(parts["avgpool"], flat), _linear(parts["fc"]))
    if {"stem", "trunk_output", "avgpool", "fc"} <= set(parts):
        stages = [parts["stem"], *parts["trunk_output"].children()]
        return Adapted(network, stages, nn.Sequential(parts["avgpool"], flat), _linear(parts["fc"]))
    if {"features", "norm", "permute", "avgpool", "flatten", "head"} <= set(parts):
        neck = nn.Sequential(*(parts[k] for k in ("norm", "permute", "avgpool", "flatten")))
        return Adapted(network, list(parts["features"].children()), neck, _linear(parts["head"]))
    if {"features", "avgpool", "classifier"} <= set(parts):
        *hidden, head = parts["classifier"].children()
        neck = nn.Sequential(parts["avgpool"], *([] if isinstance(network, ConvNeXt) else [flat]), *hidden)
        return Adapted(network, list(parts["features"].children()), neck, _linear(head))
    return None


def from_timm(network: nn.Module) -> Adapted | None:
    """A timm classifier laid out: ResNet, EfficientNet, PVTv2, ConvNeXt, Swin and plain vision transformers and their
    kin. None for another structure."""
    parts = dict(network.named_children())
    if {"conv1", "bn1", "act1", "maxpool", "layer4", "global_pool", "fc"} <= set(parts):
        stem = nn.Sequential(*(parts[k] for k in ("conv1", "bn1", "act1", "maxpool")))
        stages = [stem, *(parts[f"layer{i}"] for i in range(1, 5))]
        return Adapted(network, stages, parts["global_pool"], _linear(parts["fc"]))
    if {"conv_stem", "bn1", "blocks", "conv_head", "bn2", "global_pool", "classifier"} <= set(parts):
        stages = [nn.Sequential(parts["conv_stem"], parts["bn1"]), *parts["blocks"].children()]
        neck = nn.Sequential(parts["conv_head"], parts["bn2"], parts["global_pool"])
        return Adapted(network, stages, neck, _linear(parts["classifier"]))
    if {"patch_embed", "stages", "head_drop", "head"} <= set(parts):
        stages = [parts["patch_embed"], *parts["stages"].children()]
        return Adapted(network, stages, nn.Sequential(Mean(), parts["head_drop"]), _linear(parts["head"]))
    if {"patch_embed", "blocks", "norm", "fc_norm", "head"} <= set(parts) and hasattr(network, "_pos_embed"):
        return _vision_transformer(network, parts)
    for first, then, between in (("stem", "stages", "norm_pre"), ("patch_embed", "layers", "norm")):
        if {first, then, between, "head"} <= set(parts) and hasattr(parts["head"], "fc"):
            head = dict(parts["head"].named_children())
            fc = head.pop("fc")
            stages = [parts[first], *parts[then].children()]
            return Adapted(network, stages, nn.Sequential(parts[between], *head.values()), _linear(fc))
    return None


def _vision_transformer(network: nn.Module, parts: dict[str, nn.Module]) -> Adapted | None:
    from timm.layers import global_pool_nlc

    if getattr(network, "attn_pool", None) is not None or not hasattr(network, "pool_include_prefix"):
        return None
    embed: Callable[[nn.Module, Tensor], Tensor] = getattr(type(network), "_pos_embed")  # noqa: B009 (unbound on purpose)

    class Tokens(nn.Module):
        """Images to tokens, by timm's own function on the tensors that it needs."""

        def __init__(self) -> None:
            super().__init__()
            for key in ("patch_embed", "cls_token", "reg_token", "pos_embed", "pos_drop"):
                setattr(self, key, getattr(network, key))
            self.after = nn.Sequential(parts["patch_drop"], parts["norm_pre"])
            for key in ("num_prefix_tokens", "no_embed_class", "dynamic_img_size"):
                setattr(self, key, getattr(network, key))

        def forward(self, x: Tensor) -> Tensor:
            """[n, C, H, W] to [n, tokens, d]."""
            assert isinstance(self.patch_embed, nn.Module)
            tokens: Tensor = self.after(embed(self, self.patch_embed(x)))
            return tokens

    class Pool(nn.Module):
        """[n, tokens, d] to [n, d], as the network pools."""

        kind, prefix = network.global_pool, network.num_prefix_tokens
        include = network.pool_include_prefix

        def forward(self, x: Tensor) -> Tensor:
            """See the class."""
            pooled: Tensor = global_pool_nlc(x, self.kind, self.prefix, self.include)
            return pooled

    stages = [Tokens(), *parts["blocks"].children()]
    neck = nn.Sequential(parts["norm"], Pool(), parts["fc_norm"], parts["head_drop"])
    return Adapted(network, stages, neck, _linear(parts["head"]))


def _linear(head: nn.Module) -> nn.Linear:
    """The head; another kind than nn.Linear is found by ``check_layout``."""
    return head  # type: ignore[return-value]
