"""Footprints: the arithmetic of shares, what decides a footprint, and what the store remembers."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch

from raybench import device_memory
from raybench.device_memory import CONTEXT_BYTES, allocator_fraction
from raybench.footprint import GRID, HEADROOM, Footprint, Footprints, batch_sizes, footprint_key, share_of
from raybench.spec import FINAL, SEARCH, Choice, ProblemSpec, Training, TrialSpec

GIB = 2**30


@pytest.fixture
def trial():
    """A trial of ``finetune`` with changes: of the problem first, of the trial by keyword."""

    def make(problem=None, **changes):
        base = {
            "dataset": Choice("mnist"),
            "checksum": "c0",
            "model": Choice("resnet8"),
            "scenario": Choice("random", {"fraction": 0.1}),
            "recipe": {"batch_size": 64, "precision": "fp32", "epochs": 3},
            "train_seed": 0,
            "device_type": "cuda",
        }
        spec = TrialSpec(
            ProblemSpec(**{**base, **(problem or {})}), "finetune", 1, {"lr": 0.1, "batch_size": 64}, 0, SEARCH
        )
        return dataclasses.replace(spec, **changes)

    return make


@pytest.mark.parametrize(
    ("reserved", "context", "device", "share"),
    [
        (1 * GIB, 0, 80 * GIB, 1 / 16),
        (4 * GIB, 0, 80 * GIB, 1 / 16),  # 5 GiB with head-room is a sixteenth of 80 exactly
        (4 * GIB + 1, 0, 80 * GIB, 2 / 16),
        (4 * GIB, GIB // 2, 80 * GIB, 2 / 16),  # CUDA's own share gets no head-room but counts
        (16 * GIB, 0, 24 * GIB, 14 / 16),
        (20 * GIB, 0, 24 * GIB, 1.0),
        (100 * GIB, 0, 24 * GIB, 1.0),  # never more than the GPU
        (0, 0, 24 * GIB, 1 / 16),
    ],
)
def test_a_share_is_the_footprint_with_head_room_rounded_up(reserved, context, device, share):
    assert share_of(Footprint(reserved, context), device) == share


def test_equal_shares_of_a_device_hold_the_footprints_that_they_are_of():
    draw = random.Random(0)
    for _ in range(2000):
        device = draw.randint(4 * GIB, 192 * GIB)
        footprint = Footprint(draw.randint(1, device), draw.randint(0, GIB))
        share = share_of(footprint, device)
        assert share * GRID == int(share * GRID)
        assert 0 < share <= 1
        at_once = math.floor(1 / share)
        assert at_once * share <= 1
        if share < 1:
            assert at_once * footprint.total <= device
            allowed = allocator_fraction(share, footprint.context, device) * device
            assert allowed >= footprint.reserved * HEADROOM - 1
            assert at_once * (allowed + footprint.context) <= device + 1


def test_a_limit_leaves_cuda_its_own_part_and_a_whole_device_none():
    assert allocator_fraction(1.0, GIB, 24 * GIB) == 1.0
    assert allocator_fraction(0.25, GIB, 16 * GIB) == pytest.approx(0.25 - 1 / 16)
    assert allocator_fraction(1 / 16, GIB, 8 * GIB) == pytest.approx(1 / 32)  # not below zero


@pytest.mark.parametrize(
    ("problem", "changes", "same"),
    [
        ({"train_seed": 3, "split_seed": 1}, {}, True),
        ({"scenario": Choice("class", {"classes": [0]})}, {}, True),
        ({}, {"unlearn_seed": 2, "phase": FINAL}, True),
        ({}, {"hparams": {"lr": 0.2, "batch_size": 64, "pseudo_batches": 9}}, True),
        ({"checksum": "c1"}, {}, False),
        ({"model": Choice("lenet5")}, {}, False),
        ({"recipe": {"batch_size": 64, "precision": "bf16"}}, {}, False),
        ({"recipe": {"batch_size": 512, "precision": "fp32"}}, {}, False),
        ({}, {"method": "scrub"}, False),
        ({}, {"hparams": {"lr": 0.1, "batch_size": 128}}, False),
        ({}, {"hparams": {"lr": 0.1, "batch_size": 64, "noise_batch": 8}}, False),
        ({}, {"training": Training("mnemonic")}, False),
    ],
)
def test_what_decides_a_footprint(trial, problem, changes, same):
    assert (footprint_key(trial(problem, **changes)) == footprint_key(trial())) is same


def test_every_method_says_the_sizes_of_its_batches_in_a_way_that_counts():
    from raybench.registry import METHODS

    for name in METHODS.names():
        fields = dataclasses.asdict(METHODS[name].hparams())
        counted = batch_sizes(fields)
        for field, value in fields.items():
            if "batch" in field and field not in ("pseudo_batches", "batch_norm", "batch_statistics"):
                assert counted[field] == value, name


def test_the_store_remembers_the_largest_and_what_was_too_little(trial, tmp_path):
    spec, known = trial(), Footprints(tmp_path)
    assert known.get(spec) is None
    known.note(spec, 3 * GIB)
    assert known.get(spec) == Footprint(3 * GIB, CONTEXT_BYTES)
    known.note(spec, 2 * GIB, GIB // 4)  # measured alone: now what CUDA takes is known too
    assert known.get(spec) == Footprint(3 * GIB, GIB // 4)
    assert Footprints(tmp_path).get(trial({"train_seed": 7})) == known.get(spec)
    known.enlarge(spec, 0.25, 16 * GIB)
    assert known.get(spec) == Footprint(int(1.5 * (4 * GIB - GIB // 4)), GIB // 4)
    assert share_of(known.get(spec), 16 * GIB) > 0.25
    known.enlarge(trial(method="scrub"), 1 / 16, 16 * GIB)  # never measured: its first run did not end
    assert share_of(known.get(trial(method="scrub")), 16 * GIB) > 1 / 16
    assert len(list(tmp_path.rglob("record.json"))) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"reserved": 1}', '{"reserved": "much", "context": 2}'])
def test_a_damaged_record_is_measured_again(trial, tmp_path, text):
    spec, known = trial(), Footprints(tmp_path)
    known.note(spec, GIB)
    next(tmp_path.rglob("record.json")).write_text(text)
    assert known.get(spec) is None
    known.note(spec, 2 * GIB)
    assert known.get(spec).reserved == 2 * GIB


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_peak_outlives_the_clocks_and_a_limit_holds():
    device_memory.begin()
    block = torch.zeros(GIB // 4, dtype=torch.uint8, device="cuda")
    del block
    torch.cuda.empty_cache()
    device_memory.reset_peak()
    assert device_memory.most_reserved() >= GIB // 4
    assert device_memory.context_bytes() > 0
    total = torch.cuda.get_device_properties(0).total_memory
    device_memory.limit_memory(0.0625)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(total // 16, dtype=torch.uint8, device="cuda")
    finally:
        device_memory.limit_memory(1.0)
        torch.cuda.empty_cache()
    device_memory.begin()
    assert device_memory.most_reserved() < GIB // 4
