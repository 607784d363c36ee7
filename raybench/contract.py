"""The contract of a model: what a classifier must offer so that every method works on it.

A model is stages, then a neck, then a head::

    stages()   feature blocks in order; each output is [n, ...], in convolutional networks [n, c, h, w]
    neck       pooling, flattening and hidden dense layers, down to a vector [n, d]
    head       the last nn.Linear, [n, d] -> logits [n, K]

    features(x) = neck(stage_m(... stage_1(x)))        forward(x) = head(features(x))

Guarantees that methods build on: stages are submodules that forward calls, so forward hooks on them see every
pass (attention maps in distillation); every activation is a module of its own, never in place, and every layer is
called once per pass, but for what does nothing in evaluation, such as dropout (activations can be swapped, layers
hooked); state-dict keys do not depend on the seed; each function of
``raybench/models`` initialises by torch's defaults from the global generator, which the harness seeds.
A network that is not built from such parts keeps the contract by overriding ``stages`` and ``features``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raybench.errors import UserError

Shape = tuple[int, int, int]  # channels, height, width


class Classifier(nn.Module):
    """Stages, neck and head as above. ``head.out_features`` is the number of classes."""

    def __init__(self, stages: Sequence[nn.Module], neck: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(stages)
        self.neck = neck
        self.head = head

    def stages(self) -> list[nn.Module]:
        """The feature blocks, in the order in which forward calls them."""
        return list(self.blocks)

    def features(self, x: Tensor) -> Tensor:
        """Normalised images [n, C, H, W] to the vectors [n, d] that the head reads."""
        for stage in self.stages():
            x = stage(x)
        features: Tensor = self.neck(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [n, C, H, W] to logits [n, K]."""
        logits: Tensor = self.head(self.features(x))
        return logits


def check_problem(model: str, num_classes: int, input_shape: Shape, smallest: int = 1) -> Shape:
    """``input_shape`` as three integers. ``UserError`` for fewer than two classes, for a shape that is not
    (channels, height, width), and for images with a side below ``smallest`` pixels."""
    shape = tuple(int(size) for size in input_shape)
    if num_classes < 2:
        raise UserError(f"model {model} must tell at least 2 classes apart, got {num_classes}; use another dataset")
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"model {model} must get images of (channels, height, width), got {shape}; reshape the data")
    if min(shape[1:]) < smallest:
        raise UserError(
            f"model {model} must get images of at least {smallest}x{smallest} pixels, got {shape[1]}x{shape[2]}; "
            "use larger images or the model mlp"
        )
    return shape


def check_width(model: str, option: str, value: int) -> int:
    """``value`` if it is an integer of at least 1, else ``UserError``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{option} of model {model} must be an integer of at least 1, got {value!r}; change it")
    return value


def broken_rules(model: nn.Module, images: Tensor, num_classes: int) -> list[str]:
    """The rules above that ``model`` breaks on normalised ``images`` [n, C, H, W]; empty when it keeps them all.

    Used by the conformance suite and for the models of other people. The model is looked at in evaluation mode
    and gets its modes back; it must be on the device of ``images``.
    """
    missing = [name for name in ("stages", "neck", "head", "features") if not hasattr(model, name)]
    if missing:
        return [f"has no {name}" for name in missing]
    broken: list[str] = []
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        broken += _broken_structure(model, num_classes)
        broken += _broken_passes(model, images, num_classes)
    finally:
        for module, training in modes.items():
            module.training = training
    return broken


def _broken_structure(model: nn.Module, num_classes: int) -> list[str]:
    broken = []
    head, submodules = model.head, list(model.modules())
    if not isinstance(head, nn.Linear) or head.out_features != num_classes:
        broken.append(f"head must be nn.Linear with {num_classes} outputs, is {head}")
    stages = model.stages()  # type: ignore[operator]
    if not isinstance(stages, list) or not all(any(stage is module for module in submodules) for stage in stages):
        broken.append("stages() must be a list of submodules of the model")
    broken += [f"{name} works in place" for name, module in model.named_modules() if getattr(module, "inplace", False)]
    addresses = Counter(tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel())
    if any(count > 1 for count in addresses.values()):
        broken.append("two keys of the state dict share one tensor")
    return broken


def _broken_passes(model: nn.Module, images: Tensor, num_classes: int) -> list[str]:
    broken: list[str] = []
    calls: Counter[nn.Module] = Counter()
    idle: Counter[nn.Module] = Counter()  # calls that handed the input on as it was
    versions: dict[nn.Module, int] = {}
    order: list[nn.Module] = []
    stages = list(model.stages())  # type: ignore[operator]

    def before_call(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        versions[module] = inputs[0]._version

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        same = output.data_ptr() == inputs[0].data_ptr() and output.shape == inputs[0].shape
        idle[module] += same and output._version == versions[module]
        if any(module is stage for stage in stages):
            order.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    hooks += [module.register_forward_pre_hook(before_call) for module in model.modules()]
    before = images.clone()
    try:
        with torch.no_grad():
            logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    leaves = [module for module in names if not list(module.children())]
    broken += [
        f"{names[m]} is called {calls[m]} times in a pass, not once"
        for m in leaves
        if calls[m] != 1 and not _does_nothing(m, calls[m], idle[m])
    ]
    in_order = order == stages
    if not in_order:
        broken.append("forward must call each of stages() once, in their order")
    if logits.shape != (len(images), num_classes) or not bool(torch.isfinite(logits).all()):
        broken.append(f"logits must be finite [{len(images)}, {num_classes}], are {list(logits.shape)}")
    with torch.no_grad():
        features = model.features(images)  # type: ignore[operator]
        if features.ndim != 2 or not torch.equal(model.head(features), logits):  # type: ignore[operator]
            broken.append("head(features(x)) must equal forward(x), with features [n, d]")
        x = images
        for stage in stages if in_order else []:  # in another order they may not even fit together
            x = stage(x)
        if in_order and not torch.equal(model.neck(x), features):  # type: ignore[operator]
            broken.append("the neck after the stages in sequence must equal features(x)")
    if not torch.equal(images, before):
        broken.append("the input must not be written to")
    return broken


def _does_nothing(module: nn.Module, calls: int, idle: int) -> bool:
    """Whether a leaf has no tensors and handed on its input unchanged whenever it was called: dropout and the like."""
    if module.state_dict() or calls != idle:
        return False
    kinds = (nn.Identity, nn.modules.dropout._DropoutNd)
    return calls > 0 or isinstance(module, kinds) or type(module).__name__ in ("StochasticDepth", "DropPath")
