"""What every method keeps to, checked over the registry: a new method is tested before its author writes a test.

Runs use the method's ``tiny=`` overrides on a real but small problem (``raybench.testing``). A setting is a tuple of
(field, value) pairs on top of ``tiny``, so that results can be cached.
"""

import functools
import hashlib
import inspect
import itertools
import random
import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raybench.registry import CLASS, METHODS, SAMPLE
from raybench.space import default_point, field_docs, resolve, searched
from raybench.task import UndeclaredAccess
from raybench.testing import make_bench, make_task, run_method

NAMES = METHODS.names()
SEARCHED = [(name, field) for name in NAMES for field in searched(METHODS[name].hparams)]
MODEL, SAMPLES = "lenet5", 300
SMALL = {"model": MODEL, "samples": SAMPLES}
BUFFERS = ("read", "move", "fresh")  # what batch_norm= may begin with


class Boom(Exception):
    """Not an error that any method could expect."""


# --- running ---------------------------------------------------------------------------------------------------


def task_of(name, **options):
    """A fresh task; skips where the method says that it cannot run on it."""
    entry = METHODS[name]
    task = make_task(name, **{**SMALL, **options})
    reason = entry.skip(task.facts, resolve(entry.hparams, entry.tiny, name)) if entry.skip else None
    if reason:
        pytest.skip(reason)
    return task


def bench_of(name):
    entry = METHODS[name]
    return make_bench(MODEL, CLASS if CLASS in entry.scope else SAMPLE, entry.training, samples=SAMPLES)


def digest(value):
    """Of every bit of a tensor, array, or mapping or sequence of them."""
    hashed = hashlib.sha256()
    if isinstance(value, Mapping):
        for key in sorted(value):
            hashed.update(f"{key}={digest(value[key])}".encode())
    elif isinstance(value, list | tuple):
        hashed.update(" ".join(map(digest, value)).encode())
    else:
        array = value.detach().cpu().contiguous().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        hashed.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return hashed.hexdigest()


def probe(name, device="cpu"):
    """Images that no method was given: noise."""
    shape = (16, *bench_of(name).facts.input_shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(device)


def weights(name, result):
    """What a result is compared by: its tensors, or, of a predictor, what it answers."""
    if METHODS[name].predictor:
        with torch.no_grad():
            return {"outputs": result(probe(name))}
    return result.state_dict()


@functools.cache
def outcome(name, setting=()):
    """Digest of the result of one setting."""
    return digest(weights(name, run_method(name, task_of(name), **dict(setting))))


def original_digest(name):
    original = bench_of(name).original.model
    if METHODS[name].predictor:
        with torch.no_grad():
            return digest({"outputs": original(probe(name))})
    return digest(original.state_dict())


# --- settings --------------------------------------------------------------------------------------------------


def values_of(name, field):
    """Values of a searched field in its range; of a field that ``tiny`` sets, small ones."""
    entry = METHODS[name]
    if field in entry.tiny:
        small = entry.tiny[field]
        return [small, small * 2] if isinstance(small, int | float) and small and small is not True else [small]
    distribution = searched(entry.hparams)[field].distribution
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [distribution.low, distribution.high]


def corners(name):
    """Settings at the ends of the ranges that ``tiny`` leaves: all corners of up to 3 fields; of more, all low,
    all high, and one field at a time."""
    fields = [f for f in searched(METHODS[name].hparams) if f not in METHODS[name].tiny]
    ends = {f: (values_of(name, f)[0], values_of(name, f)[-1]) for f in fields}
    if not fields:
        return []
    if len(fields) <= 3:
        return [tuple(zip(fields, corner, strict=True)) for corner in itertools.product(*ends.values())]
    together = [tuple((f, ends[f][side]) for f in fields) for side in (0, 1)]
    return together + [((f, end),) for f in fields for end in ends[f]]


def settings(name):
    return [(), *corners(name)]


# --- what is declared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_file_function_and_key_are_one_word(name):
    fn = METHODS[name].fn
    assert fn.__name__.rstrip("_") == name
    assert fn.__module__.rpartition(".")[2].rstrip("_") == name


@pytest.mark.parametrize("name", NAMES)
def test_file_is_short(name):
    """What is longer has mathematics or a loop in it that belongs to ``mechanisms``."""
    lines = len(inspect.getsource(inspect.getmodule(METHODS[name].fn)).splitlines())
    assert lines <= 150


@pytest.mark.parametrize("name", NAMES)
def test_docstring_names_paper_and_equation(name):
    entry = METHODS[name]
    doc = entry.fn.__doc__ or ""
    assert len(entry.summary) > 10
    if not entry.identity:
        assert re.search(r"arXiv:|doi:|\b(19|20)\d\d\b", doc), "names no paper"
        where = r"(?i)equation|\beq\.|section|algorithm|appendix|theorem|<-| = "
        assert re.search(where, doc), "names no equation, section or algorithm of its paper"


@pytest.mark.parametrize("name", NAMES)
def test_every_hyperparameter_is_documented(name):
    cls = METHODS[name].hparams
    assert set(field_docs(cls)) == set(cls.__dataclass_fields__)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_lie_inside_their_ranges(name):
    entry = METHODS[name]
    assert default_point(entry.hparams, {f: s.distribution for f, s in searched(entry.hparams).items()}) is not None
    resolve(entry.hparams, entry.tiny, name)  # and the tiny overrides are fields of the right types


@pytest.mark.parametrize("name", NAMES)
def test_cost_and_batch_norm_are_declared(name):
    entry = METHODS[name]
    assert entry.complexity, "complexity= must say what the method costs as published, in sample passes"
    assert entry.batch_norm.split(" ")[0] in BUFFERS, f"batch_norm= must begin with one of {BUFFERS}"


# --- what a run gives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_weights_change_unless_declared(name):
    entry, before = METHODS[name], original_digest(name)
    if entry.identity:
        assert outcome(name) == before
        return
    if entry.no_op_default:
        default = run_method(name, task_of(name), tiny=False)
        assert digest(weights(name, default)) == before, "declared no_op_default, but the default does something"
    assert any(outcome(name, setting) != before for setting in settings(name))


@pytest.mark.parametrize(("name", "field"), SEARCHED)
def test_searched_hyperparameter_matters_somewhere(name, field):
    values = values_of(name, field)
    for setting in settings(name):
        base = dict(setting)
        base.pop(field, None)
        results = {outcome(name, tuple(sorted({**base, field: value}.items()))) for value in values}
        if len(results) > 1:
            return
    pytest.fail(f"no two of {values} differ in any of {len(settings(name))} settings")


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_weights_whatever_the_global_seed(name):
    seen = set()
    with torch.random.fork_rng(devices=[]):
        for global_seed in (1, 2):
            torch.manual_seed(global_seed)
            seen.add(digest(weights(name, run_method(name, task_of(name, seed=3)))))
    assert len(seen) == 1


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_global_state_are_untouched(name):
    bench, task = bench_of(name), task_of(name)

    def state():
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
    assert {k for k in before if before[k] != after[k]} == set()


@pytest.mark.parametrize("name", NAMES)
def test_ends_of_the_ranges_run(name):
    for setting in corners(name):
        outcome(name, tuple(sorted(setting)))  # non-finite weights are a result (status diverged), exceptions are not


@pytest.mark.parametrize("model", ["lenet5", "mlp", "allcnn"])
@pytest.mark.parametrize("name", NAMES)
def test_result_is_finite_and_keeps_the_keys(name, model):
    """Convolutions, dense layers only, and batch norm."""
    options = {"model_options": (("width", 4),)} if model == "allcnn" else {}
    task = task_of(name, model=model, **options)
    before = {key: value.shape for key, value in task.model.state_dict().items()}
    result = run_method(name, task)
    if not METHODS[name].predictor:
        assert isinstance(result, nn.Module)
        assert {key: value.shape for key, value in result.state_dict().items()} == before
        assert all(bool(torch.isfinite(value).all()) for value in result.state_dict().values())
        result.eval()
    with torch.no_grad():
        logits = result(probe(name))
    assert logits.shape == (16, task.num_classes)
    assert bool(torch.isfinite(logits).all())
    assert all(np.isfinite(value) for value in task.reported.scalars.values())


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_buffers_do_as_declared(name):
    entry = METHODS[name]
    task = task_of(name, model="allcnn", model_options=(("width", 4),))
    before = {key: value.clone() for key, value in task.model.named_buffers()}
    result = run_method(name, task)
    if entry.predictor:
        pytest.skip("a predictor is looked at by its outputs")
    assert before
    moved = any(not torch.equal(before[key], value) for key, value in result.named_buffers() if key in before)
    assert moved != entry.batch_norm.startswith("read")


@pytest.mark.parametrize("name", NAMES)
def test_both_kinds_of_request_in_scope_run(name):
    for kind in METHODS[name].scope:
        run_method(name, task_of(name, kind=kind))


# --- what a run may not do -------------------------------------------------------------------------------------


def plant(task, place, calls):
    """Make ``place`` of a task raise, noting each call."""

    def boom(*_, **__):
        calls.append(place)
        raise Boom

    if place == "loss":
        task.loss = boom
    elif place == "checkpoint":
        task._on_checkpoint = boom
    else:
        build = task.new_model
        task.model.register_forward_pre_hook(boom)

        def broken_model():
            model = build()
            model.register_forward_pre_hook(boom)
            return model

        task.new_model = broken_model


@pytest.mark.parametrize("place", ["forward", "loss", "checkpoint"])
@pytest.mark.parametrize("name", NAMES)
def test_exceptions_propagate(name, place):
    task, calls = task_of(name), []
    plant(task, place, calls)
    try:
        run_method(name, task)
    except Boom:
        assert len(calls) == 1
    else:
        assert calls == [], f"the method swallowed what came out of {place}"


@pytest.mark.parametrize(("name", "item"), [(name, item) for name in NAMES for item in sorted(METHODS[name].needs)])
def test_data_that_are_not_declared_are_refused(name, item):
    """And so every declared item is used: the other tests run on tasks that hold back all the rest."""
    needs = METHODS[name].needs - {item}
    for setting in settings(name):
        try:
            run_method(name, task_of(name, needs=needs), **dict(setting))
        except UndeclaredAccess:
            return
    pytest.fail(f"declares {item}, but no setting touches it")


@pytest.mark.parametrize("name", NAMES)
def test_shared_values_depend_on_nothing_else_and_change_nothing(name):
    """``once``: a value is the same in all settings that give it one key, and a hit runs on as a miss does."""
    stored, asked = {}, []

    def once(key, compute, inputs):
        asked.append(key)
        where = (key, repr(sorted(inputs.items())))
        generator = torch.Generator().manual_seed(11)
        value = compute(generator)
        value = {"value": value} if isinstance(value, torch.Tensor) else dict(value)
        first = stored.setdefault(where, {k: v.clone() for k, v in value.items()})
        assert digest(first) == digest(value), f"{key} depends on something that its inputs do not name"
        return value

    def hit(key, compute, inputs):
        value = stored[(key, repr(sorted(inputs.items())))]
        return {k: v.clone() for k, v in value.items()}

    miss = digest(weights(name, run_method(name, task_of(name, once=once))))
    if not asked:
        return
    assert digest(weights(name, run_method(name, task_of(name, once=hit)))) == miss
    for setting in corners(name)[:4]:
        run_method(name, task_of(name, once=once), **dict(setting))


@pytest.mark.parametrize("name", NAMES)
def test_sample_passes_agree_with_the_flop_counter(name):
    task = task_of(name)
    with FlopCounterMode(display=False) as flops:
        run_method(name, task)
    counted = task._passes.forward_flops + task._passes.backward_flops
    assert counted == pytest.approx(flops.get_total_flops(), rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", NAMES)
def test_runs_on_cuda(name):
    result = run_method(name, task_of(name, device="cuda"))
    with torch.no_grad():
        logits = result(probe(name, "cuda"))
    assert logits.device.type == "cuda"
    assert bool(torch.isfinite(logits).all())
