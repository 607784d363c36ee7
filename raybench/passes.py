"""Cost of a method that no hardware can bend: seconds off-clock for the harness, and sample passes.

A *sample pass* is one sample through the original model, forward or backward. Passes are counted by hooks on
the linear and convolutional layers of every model that came from the task (copies keep the hooks), in
multiply-add operations, and divided by what the original model needs for one sample; any other network is
thereby counted in equivalents. A layer whose weights are frozen, or whose input needs no gradient, costs that
much less backward, exactly as autograd skips it. (So freeze the weights when only images need gradients:
``autograd.grad(loss, images)`` alone is not told apart from a full backward pass.)
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from raybench.device_memory import reset_peak

COUNTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class TimeLimit(Exception):
    """A method ran past its time limit; a net against hangs, not a judge."""


class Clock:
    """Seconds of a method: wall and process time, device synchronised, pausable, with a limit.

    ``charge`` adds what was spent elsewhere (a value from ``once``); its seconds count in ``shared_s`` too.
    ``peak_memory`` is the most device memory in bytes, as of the last ``note_peak`` (zero on a CPU).
    """

    def __init__(self, device: torch.device, limit_s: float = math.inf) -> None:
        self.device = device
        self.limit_s = limit_s
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self.shared_s = 0.0
        self.peak_memory = 0
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Begin to count (a running clock stays running)."""
        if self._since is None:
            self._synchronise()
            self._since = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """Stop counting, after the device has finished what was asked of it."""
        if self._since is not None:
            self._synchronise()
            self.wall_s += time.perf_counter() - self._since[0]
            self.cpu_s += time.process_time() - self._since[1]
            self._since = None

    @property
    def running(self) -> bool:
        """Whether seconds are being counted."""
        return self._since is not None

    def elapsed(self) -> float:
        """Wall seconds so far."""
        running = time.perf_counter() - self._since[0] if self._since is not None else 0.0
        return self.wall_s + running

    def charge(self, wall_s: float, cpu_s: float, peak_memory: int = 0) -> None:
        """Add the cost of shared work."""
        self.wall_s += wall_s
        self.cpu_s += cpu_s
        self.shared_s += wall_s
        self.peak_memory = max(self.peak_memory, peak_memory)

    def note_peak(self) -> None:
        """Take the device's peak memory into account, and begin to measure it anew."""
        if self.device.type == "cuda":
            self.peak_memory = max(self.peak_memory, torch.cuda.max_memory_allocated(self.device))
            reset_peak()

    def tick(self) -> None:
        """Raise ``TimeLimit`` once the limit has passed."""
        if self.elapsed() > self.limit_s:
            raise TimeLimit(f"ran past the time limit of {self.limit_s:.0f} s")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Work inside is not charged."""
        running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class PassCounter:
    """Counts sample passes in units of ``reference`` (the original model) on inputs of ``input_shape``.

    Attributes:
        forward_flops, backward_flops: operations seen so far.
    """

    def __init__(self, reference: nn.Module, input_shape: tuple[int, ...]) -> None:
        self.forward_flops = 0.0
        self.backward_flops = 0.0
        self.enabled = True
        self.unit_forward, self.unit_backward = _unit(reference, input_shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> PassCounter:
        return self  # a copied model goes on counting into the same account

    @property
    def forward(self) -> float:
        """Forward sample passes."""
        return self.forward_flops / self.unit_forward

    @property
    def backward(self) -> float:
        """Backward sample passes."""
        return self.backward_flops / self.unit_backward

    def track(self, module: nn.Module) -> nn.Module:
        """Count what goes through ``module`` from now on (once, however often it is called)."""
        for layer in module.modules():
            if isinstance(layer, COUNTED) and "_raybench_passes" not in layer.__dict__:
                layer.__dict__["_raybench_passes"] = self
                layer.register_forward_hook(_hook(self))
        return module

    def add(self, forward: float, backward: float) -> None:
        """Add passes that were counted elsewhere (a value from ``once``)."""
        self.forward_flops += forward * self.unit_forward
        self.backward_flops += backward * self.unit_backward

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Passes inside are the harness's, not the method's."""
        enabled, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = enabled


def count_functional(model: nn.Module, samples: int) -> None:
    """Account for ``samples`` forward and backward passes through ``torch.func``, whose wrapped tensors the
    hooks leave alone (a per-sample gradient is one forward and one backward pass per sample)."""
    for layer in model.modules():
        counter = layer.__dict__.get("_raybench_passes")
        if counter is not None:
            if counter.enabled:
                counter.add(samples, samples)
            return


def track_in_place_of(old: nn.Module, new: nn.Module) -> nn.Module:
    """Count what goes through ``new`` into the account of ``old``, a tracked layer or not; returns ``new``."""
    counter = old.__dict__.get("_raybench_passes")
    return new if counter is None else counter.track(new)


def count_products(model: nn.Module, flops: float) -> None:
    """Account for ``flops`` operations of matrix products that a method makes beside the network (curvature
    factors), as backward work."""
    for layer in model.modules():
        counter = layer.__dict__.get("_raybench_passes")
        if counter is not None:
            if counter.enabled:
                counter.backward_flops += flops
            return


def _hook(counter: PassCounter) -> Callable[..., None]:
    """A plain function, so that deep copies of a model share it."""

    def count(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not counter.enabled or torch._C._functorch.is_functorch_wrapped_tensor(output):
            return
        flops = _flops(layer, args[0], output)
        counter.forward_flops += flops
        if output.requires_grad and torch.is_grad_enabled():
            cost = flops * (int(args[0].requires_grad) + int(_weight(layer).requires_grad))

            def backward(_: Tensor) -> None:
                if counter.enabled:
                    counter.backward_flops += cost

            output.register_hook(backward)

    return count


def _flops(layer: nn.Module, inputs: Tensor, output: Tensor) -> float:
    """Multiply and add operations of one forward call, as torch.utils.flop_counter counts them."""
    if isinstance(layer, nn.Linear):
        return 2.0 * output.numel() * layer.in_features
    weight = _weight(layer)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return 2.0 * inputs.numel() * weight[0].numel()  # every input element meets out_channels / groups * kernel
    return 2.0 * output.numel() * weight[0].numel()  # in_channels / groups * kernel


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _unit(reference: nn.Module, input_shape: tuple[int, ...]) -> tuple[float, float]:
    """Operations of one sample forward and backward, measured on the model itself."""
    layers = [layer for layer in reference.modules() if isinstance(layer, COUNTED)]
    total = {"forward": 0.0, "backward": 0.0}

    def record(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        flops = _flops(layer, args[0], output)
        total["forward"] += flops
        total["backward"] += flops * (int(args[0].requires_grad) + int(_weight(layer).requires_grad))

    handles = [layer.register_forward_hook(record) for layer in layers]
    training, required = reference.training, [p.requires_grad for p in reference.parameters()]
    hooks = [layer.__dict__.get("_raybench_passes") for layer in layers]
    with contextlib.ExitStack() as stack:
        for counter in {id(c): c for c in hooks if c is not None}.values():
            stack.enter_context(counter.paused())
        reference.eval().requires_grad_(True)
        parameter = next(reference.parameters())
        reference(torch.zeros((1, *input_shape), device=parameter.device, dtype=parameter.dtype))
    for handle in handles:
        handle.remove()
    reference.train(training)
    for p, flag in zip(reference.parameters(), required, strict=True):
        p.requires_grad_(flag)
    if total["forward"] == 0.0:
        raise ValueError("the model has no linear or convolutional layer to count passes by")
    return total["forward"], total["backward"]


def warm_up(model: nn.Module, images: Tensor) -> None:
    """Steps of training before a clock starts: thread pools, kernels and allocators are ready after it, and what
    torch imports at the first optimiser of a process (seconds) is imported. ``model`` itself is not touched; a
    tracked one counts nothing."""
    scratch = copy.deepcopy(model).requires_grad_(True).train()
    fused = next(scratch.parameters()).is_cuda or None
    optimisers = (
        torch.optim.SGD(scratch.parameters(), lr=0.0, momentum=0.9, fused=fused),
        torch.optim.Adam(scratch.parameters(), lr=0.0, fused=fused),
    )
    with contextlib.ExitStack() as stack:
        counters = [layer.__dict__.get("_raybench_passes") for layer in scratch.modules()]
        for counter in {id(c): c for c in counters if c is not None}.values():
            stack.enter_context(counter.paused())
        for optimiser in optimisers:
            optimiser.zero_grad()
            scratch(images).sum().backward()
            optimiser.step()
