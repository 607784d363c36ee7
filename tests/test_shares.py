"""Which share of a GPU a trial takes: from the spec, or from what was measured."""

from __future__ import annotations

import pytest

from raybench.footprint import Footprint, Footprints
from raybench.shares import Shares

GIB = 2**30
SPEC = {
    "name": "shares",
    "problems": [{"dataset": "digits", "models": ["mlp"], "scenarios": [{"name": "class", "classes": [0]}]}],
    "methods": ["finetune", "scrub"],
    "seeds": {"train": [0, 1]},
    "search": {"trials": 2},
}


@pytest.fixture
def trials(plan_of):
    """The first search trial of each method."""
    plan = plan_of(SPEC, device_types=["cuda"])
    return [plan.search_requests(search, {})[0].spec for search in plan.searches()]


def test_a_share_of_the_spec_wins(trials, tmp_path):
    finetune, scrub = trials
    shares = Shares(0.25)
    assert not shares.vary
    assert (shares.of(finetune), shares.of(scrub), shares.to_measure(scrub)) == (0.25, 0.25, "")
    shares.too_little(finetune, 0.25)
    assert shares.of(finetune) == 0.25


def test_an_unknown_footprint_takes_a_whole_gpu_and_a_known_one_what_it_needs(trials, tmp_path):
    finetune, scrub = trials
    footprints = Footprints(tmp_path)
    shares = Shares(1.0, footprints, 16 * GIB)
    assert (shares.of(finetune), shares.of(scrub)) == (1.0, 1.0)
    key = shares.to_measure(finetune)
    assert key
    assert key != shares.to_measure(scrub)
    footprints.note(finetune, 2 * GIB, GIB // 4)
    assert shares.to_measure(finetune) == key  # nobody has said yet that a trial ended
    shares.learned(finetune)
    assert (shares.of(finetune), shares.to_measure(finetune)) == (3 / 16, "")
    footprints.note(finetune, 4 * GIB)
    shares.learned(finetune)
    assert shares.of(finetune) == 3 / 16  # grows in the next run, or when it was too little
    shares.too_little(finetune, 3 / 16)
    assert shares.of(finetune) == 8 / 16
    assert footprints.get(finetune) == Footprint(6 * GIB, GIB // 4)
    assert shares.of(scrub) == 1.0
    assert Shares(1.0, footprints, 64 * GIB).of(finetune) == 2 / 16  # the next run, larger devices


@pytest.mark.parametrize("measured", [False, True])
def test_what_is_pinned_to_the_cpu_takes_no_share_where_others_are_on_cuda(plan_of, tmp_path, measured):
    plan = plan_of({**SPEC, "devices": "each"}, device_types=["cuda", "cpu"])
    cuda, _, cpu, _ = (plan.search_requests(search, {})[0].spec for search in plan.searches())
    footprints = Footprints(tmp_path)
    shares = Shares(1.0, footprints, 16 * GIB, both=True) if measured else Shares(0.25, both=True)
    assert shares.vary
    assert (shares.of(cuda), shares.of(cpu)) == (1.0 if measured else 0.25, 0.0)
    assert (bool(shares.to_measure(cuda)), shares.to_measure(cpu)) == (measured, "")
    assert (shares.measured(cuda), shares.measured(cpu)) == (measured, False)
    shares.too_little(cpu, 0.0)
    shares.learned(cpu)
    assert footprints.get(cpu) is None
