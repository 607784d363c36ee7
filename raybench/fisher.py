"""Diagonal empirical Fisher information: the mean of squared per-sample loss gradients.

    I_D(w_i) = 1/|D| sum over (x, y) in D of (d loss(x, y; w) / d w_i)^2,   y the given label

One backward pass gives the gradients g of a batch at the *outputs* of the layers; with the layers' inputs a they
are all that the per-sample gradients of the usual layers need (``raybench.sample_gradients``), so no gradient is
computed twice. So do bare parameters that are added to, multiplied with or repeated for all samples (positions, class
tokens, layer scales), from the gradient of that operation.

Every other parameter (layers that are used twice in one pass, layers of other types) goes through ``torch.func``:
``vmap(grad)`` in slices, which costs one more forward and backward pass per sample.
Labels drawn from the model instead of the data give the true Fisher; the caller does that. Its exact expectation
over labels is the diagonal of ``over_labels(loss)``: a loss may give several losses per sample [m, n], whose squared
gradients are summed, at the cost of one forward and m backward passes.
``power=1`` sums the gradients' magnitudes instead of their squares; nothing else changes.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from raybench.data import Batch, Split
from raybench.open_attention import opened_attention
from raybench.passes import count_functional
from raybench.sample_gradients import BATCH_NORMS, Power, bare_gradients, factor, layer_gradients, plain, raised, spread

Mode = Literal["per_sample", "per_batch"]
LossFunction = Callable[[nn.Module, Batch], Tensor]  # per-sample losses [n] or [m, n]; UnlearningTask.loss is one
SLICE_ELEMENTS = 2**24  # per-sample gradients and patches held at once: 64 MiB each in fp32


def data_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Per-sample cross-entropy [n]."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, reduction="none")


def over_labels(loss: LossFunction) -> LossFunction:
    """The losses [K, n] whose squared gradients sum to  sum_y p(y|x) (d loss(x, y) / d w)^2,  y every class.

    With cross-entropy that is the diagonal of the true Fisher (labels of the data are not looked at). ``loss`` must
    treat labels as classes of the logits [n, K], which are computed once.
    """

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        logits = model(images)
        weights = logits.detach().softmax(1).sqrt()
        answer = cast(nn.Module, lambda _: logits)
        classes = range(logits.shape[1])
        return torch.stack([weights[:, k] * loss(answer, (images, torch.full_like(labels, k))) for k in classes])

    return losses


def fisher_diag(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mode: Mode = "per_sample",
    batch_size: int = 64,
    loss: LossFunction = data_loss,
    power: Power = 2,
    slice_elements: int = SLICE_ELEMENTS,
) -> dict[str, Tensor]:
    """Fisher diagonal of ``model`` on normalised ``images`` [n, C, H, W] with ``labels`` [n].

    Returns parameter name -> tensor of the parameter's shape and dtype, for every parameter, frozen ones too;
    sums are kept in float64. The model is in evaluation mode meanwhile (batch norm is then a fixed affine map);
    modes, ``requires_grad`` flags, gradients and buffers are left as they were.

    ``mode``: ``per_sample`` is the definition above, whatever ``batch_size`` (memory only). ``per_batch`` is what
    many papers' code computes: the mean over batches of the squared batch-*mean* gradient, each batch with equal
    weight. For independent zero-mean gradients it is smaller by the factor ``batch_size``.

    Samples must lie along the first dimension of every layer. Raises ``ValueError`` without samples, for an
    unknown mode, and for batch norm without running statistics (a sample then has no gradient of its own).
    """
    pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return fisher_of_batches(model, pairs, mode=mode, loss=loss, power=power, slice_elements=slice_elements)


def fisher_of_split(
    model: nn.Module,
    split: Split,
    *,
    mode: Mode = "per_sample",
    batch_size: int = 64,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    loss: LossFunction = data_loss,
    power: Power = 2,
    slice_elements: int = SLICE_ELEMENTS,
) -> dict[str, Tensor]:
    """``fisher_diag`` on a split, its batches streamed, without augmentation.

    ``samples``: use that many, drawn uniformly without replacement from ``generator`` (an unbiased estimate).
    """
    if samples is not None and samples < len(split):
        if generator is None:
            raise ValueError("a Fisher diagonal on a subsample needs a generator to draw it; pass generator=")
        split = split.subset(torch.randperm(len(split), generator=generator, device=generator.device)[:samples])
    batches = split.batches(batch_size)
    return fisher_of_batches(model, batches, mode=mode, loss=loss, power=power, slice_elements=slice_elements)


def fisher_of_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    mode: Mode = "per_sample",
    loss: LossFunction = data_loss,
    power: Power = 2,
    slice_elements: int = SLICE_ELEMENTS,
) -> dict[str, Tensor]:
    """``fisher_diag`` on an iterable of batches."""
    if power not in (1, 2):
        raise ValueError(f"power of a Fisher diagonal must be 1 or 2, got {power!r}")
    if mode not in ("per_sample", "per_batch"):
        raise ValueError(f"mode of a Fisher diagonal must be per_sample or per_batch, got {mode!r}")
    for name, layer in model.named_modules():
        if isinstance(layer, BATCH_NORMS) and not layer.track_running_stats:
            raise ValueError(f"batch norm {name!r} must track running statistics for per-sample gradients")
    sums = {n: torch.zeros_like(p, dtype=torch.float64, requires_grad=False) for n, p in model.named_parameters()}
    count = 0
    with _differentiable(model), torch.enable_grad(), opened_attention(model) as opened:
        plan = _Plan(model, power, opened)
        for batch in batches:
            if mode == "per_batch":
                count += 1
                parameters = dict(model.named_parameters())
                value_of_batch = loss(model, batch)
                if value_of_batch.ndim > 1:
                    raise ValueError("several losses per sample need mode per_sample, got per_batch")
                grads = torch.autograd.grad(value_of_batch.mean(), list(parameters.values()), allow_unused=True)
                for name, value in zip(parameters, grads, strict=True):
                    if value is not None:
                        sums[name] += raised(value, power)
                continue
            count += len(batch[1])
            for name, squares in plan.squared_gradients(batch, loss, slice_elements):
                sums[name] += squares
    if count == 0:
        raise ValueError("a Fisher diagonal needs at least one sample, got none")
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    return {name: (total / count).to(dtypes[name]) for name, total in sums.items()}


@contextlib.contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and all parameters trainable inside; modes and flags as before outside."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(True)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for p, flag in flags:
            p.requires_grad_(flag)


@dataclass
class _Call:
    """One call of a layer. ``version`` is the input's: an input that is written to later cannot be used. ``edge`` is
    where the gradient of the output arrives; taken at once, an in-place activation after the layer cannot move it."""

    inputs: Tensor
    rows: int
    version: int
    edge: GradientEdge


class _Plan:
    """Which layers take the fast path, settled on the first batch, and the squared gradients of a batch. ``opened``:
    modules of the model that are not among its own (``opened_attention``)."""

    def __init__(self, model: nn.Module, power: Power, opened: Sequence[nn.Module]) -> None:
        self.model, self.power = model, power
        self.parameters = dict(model.named_parameters())
        self.names = {id(p): name for name, p in self.parameters.items()}
        self.candidates = [layer for layer in (*model.modules(), *opened) if plain(layer)]
        self.fast: list[nn.Module] | None = None
        self.bare: list[str] = []
        self.slow: list[str] = []

    def squared_gradients(self, batch: Batch, loss: LossFunction, slice_elements: int) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, sum over the batch of squared per-sample gradients), a parameter once per loss."""
        calls: dict[nn.Module, list[_Call]] = {layer: [] for layer in self.candidates}
        with _recorded(calls):
            losses = loss(self.model, batch)
        samples = len(batch[1])
        if self.fast is None:
            self._settle(calls, losses, samples)
        assert self.fast is not None
        if any(len(calls[layer]) != 1 for layer in self.fast):
            raise ValueError("the model calls its layers differently from batch to batch; pass batches one by one")
        used = [(layer, calls[layer][0]) for layer in self.fast]
        into = _edges_into_parameters(losses) if self.bare else {}
        bare = [(name, p, into[id(p)][0]) for name, p in self.parameters.items() if name in self.bare]
        if any(not spread(node, p, samples) for _, p, node in bare):
            raise ValueError("the model uses a parameter differently from batch to batch; pass batches one by one")
        factors = [factor(node, p) for _, p, node in bare]
        edges = [call.edge for _, call in used] + [GradientEdge(node, 0) for _, _, node in bare]
        rows = losses.reshape(-1, losses.shape[-1]) if edges else losses[:0]
        for k, row in enumerate(rows):
            grads = torch.autograd.grad(row.sum(), edges, retain_graph=k + 1 < len(rows))
            with torch.no_grad():
                for (layer, call), g in zip(used, grads, strict=False):
                    for p, squares in layer_gradients(layer, call.inputs.detach(), g, slice_elements, self.power):
                        yield self.names[id(p)], squares
                for (name, p, _), times, g in zip(bare, factors, grads[len(used) :], strict=True):
                    yield name, raised(bare_gradients(p, g * times), self.power).sum(0).view_as(p)
        if self.slow:
            for which in range(len(losses)) if losses.ndim > 1 else [None]:
                yield from self._functional(batch, loss, slice_elements, which)

    def _settle(self, calls: dict[nn.Module, list[_Call]], losses: Tensor, samples: int) -> None:
        """A layer is fast if its forward ran once, on inputs nobody wrote to, with one row per sample, and the
        graph of the loss reaches each of its parameters by one edge only (so nobody else uses them). Of the others,
        a parameter that is reached by one edge from an operation that spreads it over the samples is bare."""
        edges = _edges_into_parameters(losses)
        self.fast = []
        for layer, made in calls.items():
            once = all(len(edges[id(p)]) == 1 for p in layer.parameters())
            if once and len(made) == 1 and _rowwise(layer, made[0], samples):
                self.fast.append(layer)
        covered = {id(p) for layer in self.fast for p in layer.parameters()}
        # A parameter that the loss does not reach at all has gradient zero and needs no pass.
        for name, p in self.parameters.items():
            nodes = edges[id(p)]
            if id(p) not in covered and nodes:
                one = len(nodes) == 1 and spread(nodes[0], p, samples)
                (self.bare if one else self.slow).append(name)

    def _functional(
        self, batch: Batch, loss: LossFunction, slice_elements: int, which: int | None
    ) -> Iterator[tuple[str, Tensor]]:
        chosen = {name: self.parameters[name].detach() for name in self.slow}

        def sample_loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            def forward(*inputs: Tensor) -> Any:
                return functional_call(self.model, values, inputs)

            losses = loss(cast(nn.Module, forward), (image[None], label[None]))
            return losses[0] if which is None else losses[which, 0]

        # A loss may draw (a denoiser's does): for each sample anew.
        per_sample = vmap(grad(sample_loss), in_dims=(None, 0, 0), randomness="different")
        step = max(1, slice_elements // sum(p.numel() for p in chosen.values()))
        images, labels = batch
        # torch.func differentiates all the same; no_grad keeps the other parameters out of an outer graph.
        with torch.no_grad():
            for some, their in zip(images.split(step), labels.split(step), strict=True):
                for name, value in per_sample(chosen, some, their).items():
                    yield name, raised(value, self.power).sum(0)
        count_functional(self.model, len(labels))


def _rowwise(layer: nn.Module, call: _Call, samples: int) -> bool:
    dims = call.inputs.ndim
    enough = dims == 4 if isinstance(layer, nn.Conv2d) else dims >= (1 if isinstance(layer, nn.Embedding) else 2)
    return enough and len(call.inputs) == call.rows == samples and call.inputs._version == call.version


@contextlib.contextmanager
def _recorded(calls: dict[nn.Module, list[_Call]]) -> Iterator[None]:
    def record(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if args and output.ndim:
            calls[layer].append(_Call(args[0], len(output), args[0]._version, get_gradient_edge(output)))

    handles = [layer.register_forward_hook(record) for layer in calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _edges_into_parameters(losses: Tensor) -> defaultdict[int, list[Node]]:
    """id of parameter -> the operations of the autograd graph whose edges lead into it, one for each edge."""
    edges: defaultdict[int, list[Node]] = defaultdict(list)
    seen, waiting = set(), [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for child, _ in node.next_functions:
            if child is not None and hasattr(child, "variable"):
                edges[id(child.variable)].append(node)
            waiting.append(child)
    return edges
