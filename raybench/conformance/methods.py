"""What every method keeps to. Runs use its ``tiny=`` overrides on a real but small problem (``raybench.testing``).

A setting is a tuple of (field, value) pairs on top of ``tiny``, so that results can be cached.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raybench.conformance.rules import Broken, Case, NotHere, digest, function_and_key_are_one_word, hold
from raybench.registry import CLASS, METHODS, SAMPLE
from raybench.space import default_point, field_docs, resolve, searched
from raybench.task import UndeclaredAccess, UnlearningTask
from raybench.testing import Bench, make_bench, make_task, run_method

Setting = tuple[tuple[str, Any], ...]

MODEL, SAMPLES = "lenet5", 300
SMALL: dict[str, Any] = {"model": MODEL, "samples": SAMPLES}
NETWORKS = ("lenet5", "mlp", "allcnn")  # convolutions, dense layers only, and batch norm
NARROW = (("width", 4),)
BUFFERS = ("read", "move", "fresh")  # what batch_norm= may begin with
FLOPS_TOLERANCE = 0.05
PLACES = ("forward", "loss", "checkpoint")


class Boom(Exception):
    """Not an error that any method could expect."""


def cases(name: str) -> Iterator[Case]:
    """The checks of one method: what is declared, what a run gives, what a run may not do."""
    entry = METHODS[name]
    yield Case(function_and_key_are_one_word, (entry,))
    for check in (
        docstring_names_paper_and_equation,
        every_hyperparameter_is_documented,
        defaults_lie_inside_their_ranges,
        cost_and_batch_norm_are_declared,
        ends_of_the_ranges_run,
        weights_change_unless_declared,
    ):
        yield Case(check, (name,))
    yield from (Case(searched_hyperparameter_matters_somewhere, (name, field)) for field in searched(entry.hparams))
    yield Case(same_seed_gives_the_same_weights_whatever_the_global_seed, (name,))
    yield Case(inputs_and_global_state_are_untouched, (name,))
    yield from (Case(result_is_finite_and_keeps_the_keys, (name, model)) for model in NETWORKS)
    yield Case(batch_norm_buffers_do_as_declared, (name,))
    yield from (Case(request_in_scope_runs, (name, kind)) for kind in sorted(entry.scope))
    yield from (Case(exceptions_propagate, (name, place)) for place in PLACES)
    yield from (Case(data_that_are_not_declared_are_refused, (name, item)) for item in sorted(entry.needs))
    yield Case(shared_values_depend_on_nothing_else_and_change_nothing, (name,))
    yield Case(sample_passes_agree_with_the_flop_counter, (name,))
    yield Case(runs_on_cuda, (name,))


def task_of(name: str, **options: Any) -> UnlearningTask:
    """A fresh task; ``NotHere`` where the method says that it cannot run on it."""
    entry = METHODS[name]
    task = make_task(name, **{**SMALL, **options})
    reason = entry.skip(task.facts, resolve(entry.hparams, entry.tiny, name)) if entry.skip else None
    if reason:
        raise NotHere(reason)
    return task


def bench_of(name: str) -> Bench:
    """The (cached) problem that ``task_of`` hands out copies of."""
    entry = METHODS[name]
    return make_bench(MODEL, CLASS if CLASS in entry.scope else SAMPLE, entry.training, samples=SAMPLES)


def probe(name: str, device: str = "cpu") -> Tensor:
    """Images that no method was given: noise [16, C, H, W]."""
    shape = (16, *bench_of(name).facts.input_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(device)


def weights(name: str, result: Any) -> Any:
    """What a result is compared by: its tensors, or, of a predictor, what it answers."""
    if METHODS[name].predictor:
        with torch.no_grad():
            return {"outputs": result(probe(name))}
    return result.state_dict()


@functools.cache
def outcome(name: str, setting: Setting = ()) -> str:
    """Digest of the result of one setting."""
    return digest(weights(name, run_method(name, task_of(name), **dict(setting))))


def values_of(name: str, field: str) -> list[Any]:
    """Values of a searched field in its range; of a field that ``tiny`` sets, small ones."""
    entry = METHODS[name]
    if field in entry.tiny:
        small = entry.tiny[field]
        return [small, small * 2] if isinstance(small, int | float) and small and small is not True else [small]
    distribution = searched(entry.hparams)[field].distribution
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def corners(name: str) -> list[Setting]:
    """Settings at the ends of the ranges that ``tiny`` leaves: all corners of up to 3 fields; of more, all low,
    all high, and one field at a time."""
    fields = [f for f in searched(METHODS[name].hparams) if f not in METHODS[name].tiny]
    ends = {f: (values_of(name, f)[0], values_of(name, f)[-1]) for f in fields}
    if not fields:
        return []
    if len(fields) <= 3:
        return [tuple(zip(fields, corner, strict=True)) for corner in itertools.product(*ends.values())]
    together: list[Setting] = [tuple((f, ends[f][side]) for f in fields) for side in (0, 1)]
    return together + [((f, end),) for f in fields for end in ends[f]]


def settings(name: str) -> list[Setting]:
    """The default and the corners."""
    return [(), *corners(name)]


# --- what is declared ------------------------------------------------------------------------------------------


def docstring_names_paper_and_equation(name: str) -> None:
    """A method without a paper says so: ``paper="none"``."""
    entry = METHODS[name]
    doc = entry.fn.__doc__ or ""
    hold(len(entry.summary) > 10, "the first line of the docstring says what the method does")
    if not entry.identity:
        known = entry.paper == "none" or re.search(r"arXiv:|doi:|\b(19|20)\d\d\b", doc)
        hold(bool(known), 'the docstring names no paper (year, arXiv: or doi:); paper="none" where there is none')
        where = r"(?i)equation|\beq\.|section|algorithm|appendix|theorem|<-| = "
        hold(bool(re.search(where, doc)), "the docstring names no equation, section or algorithm, and writes none")


def every_hyperparameter_is_documented(name: str) -> None:
    """A docstring under each field."""
    cls = METHODS[name].hparams
    bare = set(cls.__dataclass_fields__) - set(field_docs(cls))  # type: ignore[attr-defined]
    hold(not bare, f"no docstring under {', '.join(sorted(bare))}")


def defaults_lie_inside_their_ranges(name: str) -> None:
    """The default is the first setting of a search, so it must be in the search space."""
    entry = METHODS[name]
    point = default_point(entry.hparams, {f: s.distribution for f, s in searched(entry.hparams).items()})
    hold(point is not None, "a searched field has no default, or one outside its range")
    resolve(entry.hparams, entry.tiny, name)  # and the tiny overrides are fields of the right types


def cost_and_batch_norm_are_declared(name: str) -> None:
    """What lists show of a method beside its summary."""
    entry = METHODS[name]
    hold(bool(entry.complexity), 'complexity= must say what the method costs in sample passes, such as "E N_r"')
    hold(entry.batch_norm.split(" ")[0] in BUFFERS, f"batch_norm= must begin with one of {', '.join(BUFFERS)}")


# --- what a run gives ------------------------------------------------------------------------------------------


def weights_change_unless_declared(name: str) -> None:
    """At some setting in range the result is another model than the original."""
    entry, original = METHODS[name], bench_of(name).original.model
    before = digest(weights(name, original.eval()))
    if entry.identity:
        hold(outcome(name) == before, "declared identity=True, but the weights change")
        return
    if entry.no_op_default:
        default = run_method(name, task_of(name), tiny=False)
        hold(digest(weights(name, default)) == before, "declared no_op_default, but the default does something")
    changed = any(outcome(name, setting) != before for setting in settings(name))
    hold(changed, "no setting in range changes the model")


def searched_hyperparameter_matters_somewhere(name: str, field: str) -> None:
    """Two values of a searched field give two results at some setting in range."""
    values = values_of(name, field)
    for setting in settings(name):
        base = dict(setting)
        base.pop(field, None)
        if len({outcome(name, tuple(sorted({**base, field: value}.items()))) for value in values}) > 1:
            return
    raise Broken(f"no two of {values} differ in any of {len(settings(name))} settings")


def same_seed_gives_the_same_weights_whatever_the_global_seed(name: str) -> None:
    """To the bit, on one machine."""
    seen = set()
    with torch.random.fork_rng(devices=[]):
        for global_seed in (1, 2):
            torch.manual_seed(global_seed)
            seen.add(digest(weights(name, run_method(name, task_of(name, seed=3)))))
    hold(len(seen) == 1, "two runs of one seed differ; draw random numbers from task.generator only")


def inputs_and_global_state_are_untouched(name: str) -> None:
    """Data, original model, artefacts, random states and settings of torch are as they were."""
    bench, task = bench_of(name), task_of(name)

    def state() -> dict[str, Any]:
        model = bench.original.model
        own = {k: [s.images, s.labels, s.index] for k, s in task._splits.items()}
        splits = {k: [s.images, s.labels, s.index, s.pixels.mean, s.pixels.std] for k, s in bench.splits.items()}
        flags = [[p.requires_grad, p.grad is None] for p in model.parameters()]
        modes = [m.training for m in model.modules()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return {
            "data": digest(splits),
            "the task's data": digest(own),
            "original": digest(model.state_dict()),
            "artefacts": digest(dict(bench.original.artefacts)),
            "flags": digest([flags, modes, hooks]),
            "torch": digest(torch.get_rng_state()),
            "numpy": digest(list(np.random.get_state(legacy=True))[1:]),
            "python": random.getstate(),
            "torch settings": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
        }

    before = state()
    run_method(name, task)
    after = state()
    changed = [key for key in before if before[key] != after[key]]
    hold(not changed, f"changed: {', '.join(changed)}; a method may change task.model and nothing else")


def ends_of_the_ranges_run(name: str) -> None:
    """No exception at the corners of the search space."""
    for setting in corners(name):
        outcome(name, tuple(sorted(setting)))  # non-finite weights are a result (status diverged), exceptions are not


def result_is_finite_and_keeps_the_keys(name: str, model: str) -> None:
    """A model with the keys and shapes of the original, finite weights, logits [n, K] and reports."""
    options: dict[str, Any] = {"model_options": NARROW} if model == "allcnn" else {}
    task = task_of(name, model=model, **options)
    before = {key: value.shape for key, value in task.model.state_dict().items()}
    result = run_method(name, task)
    if not METHODS[name].predictor:
        hold(isinstance(result, nn.Module), f"must return a module (or declare predictor=True), got {type(result)}")
        kept = {key: value.shape for key, value in result.state_dict().items()} == before
        hold(kept, "the result has other keys or shapes than the original model")
        finite = all(bool(torch.isfinite(value).all()) for value in result.state_dict().values())
        hold(finite, "the weights are not finite")
        result.eval()
    with torch.no_grad():
        logits = result(probe(name))
    hold(logits.shape == (16, task.num_classes), f"logits must be [16, {task.num_classes}], are {list(logits.shape)}")
    hold(bool(torch.isfinite(logits).all()), "the logits are not finite")
    hold(all(np.isfinite(value) for value in task.reported.scalars.values()), "a reported number is not finite")


def batch_norm_buffers_do_as_declared(name: str) -> None:
    """``batch_norm=`` is what happens to the buffers of a network that has some."""
    entry = METHODS[name]
    task = task_of(name, model="allcnn", model_options=NARROW)
    before = {key: value.clone() for key, value in task.model.named_buffers()}
    result = run_method(name, task)
    if entry.predictor:
        raise NotHere("a predictor is looked at by its outputs")
    moved = any(not torch.equal(before[key], value) for key, value in result.named_buffers() if key in before)
    did = "move" if moved else "stay"
    hold(moved != entry.batch_norm.startswith("read"), f"batch_norm={entry.batch_norm!r}, but the buffers {did}")


def request_in_scope_runs(name: str, kind: str) -> None:
    """Requests of whole classes, of samples, or both: what ``scope`` says."""
    run_method(name, task_of(name, kind=kind))


# --- what a run may not do -------------------------------------------------------------------------------------


def plant(task: UnlearningTask, place: str, calls: list[str]) -> None:
    """Make ``place`` of a task raise, noting each call."""

    def boom(*_: Any, **__: Any) -> Any:
        calls.append(place)
        raise Boom

    if place == "loss":
        task.loss = boom  # type: ignore[method-assign]
    elif place == "checkpoint":
        task._on_checkpoint = boom
    else:
        build = task.new_model
        task.model.register_forward_pre_hook(boom)

        def broken_model() -> nn.Module:
            model = build()
            model.register_forward_pre_hook(boom)
            return model

        task.new_model = broken_model  # type: ignore[method-assign]


def exceptions_propagate(name: str, place: str) -> None:
    """What a pass, the loss or a checkpoint raises (a time limit, a stopping rule) ends the method."""
    task, calls = task_of(name), []  # type: ignore[var-annotated]
    plant(task, place, calls)
    try:
        run_method(name, task)
    except Boom:
        hold(len(calls) == 1, f"went on after {place} had raised")
    else:
        hold(not calls, f"swallowed what came out of {place}")


def data_that_are_not_declared_are_refused(name: str, item: str) -> None:
    """And so every declared item is used: the other checks run on tasks that hold back all the rest."""
    needs = METHODS[name].needs - {item}
    for setting in settings(name):
        try:
            run_method(name, task_of(name, needs=needs), **dict(setting))
        except UndeclaredAccess:
            return
    raise Broken(f"declares {item}, but no setting touches it")


def shared_values_depend_on_nothing_else_and_change_nothing(name: str) -> None:
    """``once``: a value is the same in all settings that give it one key, and a hit runs on as a miss does."""
    stored: dict[tuple[str, str], dict[str, Tensor]] = {}

    def once(key: str, compute: Any, inputs: Any) -> dict[str, Tensor]:
        value = compute(torch.Generator().manual_seed(11))
        value = {"value": value} if isinstance(value, Tensor) else dict(value)
        first = stored.setdefault((key, repr(sorted(inputs.items()))), {k: v.clone() for k, v in value.items()})
        hold(digest(first) == digest(value), f"{key} depends on something that its inputs do not name")
        return value

    def hit(key: str, compute: Any, inputs: Any) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in stored[(key, repr(sorted(inputs.items())))].items()}

    miss = digest(weights(name, run_method(name, task_of(name, once=once))))
    if not stored:
        return
    again = digest(weights(name, run_method(name, task_of(name, once=hit))))
    hold(again == miss, "a value from task.once gives another result than the value computed anew")
    for setting in corners(name)[:4]:
        run_method(name, task_of(name, once=once), **dict(setting))


def sample_passes_agree_with_the_flop_counter(name: str) -> None:
    """The counted passes, in FLOP, are those of torch's own counter within 5 %."""
    task = task_of(name)
    with FlopCounterMode(display=False) as flops:
        run_method(name, task)
    counted, total = task._passes.forward_flops + task._passes.backward_flops, flops.get_total_flops()
    agree = abs(counted - total) <= FLOPS_TOLERANCE * total
    hold(agree, f"counted {counted:.3g} FLOP of {total:.3g}; task.track(module) counts a network of your own")


def runs_on_cuda(name: str) -> None:
    """Finite logits on the device, where there is one."""
    if not torch.cuda.is_available():
        raise NotHere("no CUDA device here")
    result = run_method(name, task_of(name, device="cuda"))
    with torch.no_grad():
        logits = result(probe(name, "cuda"))
    hold(logits.device.type == "cuda" and bool(torch.isfinite(logits).all()), "the logits are not finite on CUDA")
