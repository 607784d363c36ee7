"""Images on the host give what images on the device give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raybench import streamed
from raybench.data import Pixels, RawData, Request, Split
from raybench.errors import UserError
from raybench.problem import draw_request, make_problem
from raybench.registry import SCENARIOS
from raybench.seeding import torch_generator
from raybench.spec import Choice, ProblemSpec
from raybench.streamed import Rows, Streamed

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(20) % 4
CPU = torch.device("cpu")


def split(images) -> Split:
    pixels = Pixels(torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25))
    index = torch.arange(2, 18)
    return Split(images, torch.from_numpy(LABELS), index, pixels, "crop_flip", torch_generator("s"))


def test_batches_are_those_of_resident_images():
    passes = []
    for images in (torch.from_numpy(IMAGES.copy()), Streamed(IMAGES, CPU)):
        one = split(images).private(torch_generator("p"))
        part = one.subset(torch.tensor([3, 1, 5])).relabelled(torch.tensor([0, 1, 2]))
        batches = [*one.batches(5, augment=True, shuffle=True), one.tensors(), *part.batches(2)]
        batches += [one.joined(part).tensors()]
        passes.append(batches)
    for (x, y), (their_x, their_y) in zip(*passes, strict=True):
        assert torch.equal(x, their_x)
        assert torch.equal(y, their_y)


def test_a_private_split_sees_no_other_sample_and_writes_nowhere():
    before = IMAGES.copy()
    one = split(Streamed(IMAGES, CPU)).private(torch_generator("p"))
    assert len(one.images) == len(one) == 16
    with pytest.raises(IndexError):
        one.images[torch.tensor([16])]
    one.images[torch.arange(16)].zero_()
    np.testing.assert_array_equal(IMAGES, before)


@pytest.mark.parametrize("index", [3, slice(2, 5), np.array([4, 0]), (slice(1, 4), 2), (3, 1), (slice(None), 0, 3)])
def test_rows_are_indexed_as_their_copy(index):
    rows = np.array([5, 9, 2, 14, 7])
    lazy = Rows(IMAGES, rows)
    np.testing.assert_array_equal(lazy[index], IMAGES[rows][index])
    np.testing.assert_array_equal(np.asarray(lazy), IMAGES[rows])
    assert (len(lazy), lazy.shape, lazy.ndim, lazy.dtype) == (5, (5, 3, 8, 8), 4, np.uint8)


@pytest.fixture
def raw() -> RawData:
    return RawData("made", IMAGES, LABELS, IMAGES[:8], LABELS[:8], 4, (0.5,) * 3, (0.25,) * 3)


def spec(scenario: Choice) -> ProblemSpec:
    return ProblemSpec(Choice("digits"), "streamed", Choice("mlp"), scenario, {}, train_seed=0, validation=0.2)


def test_a_problem_above_the_limit_is_streamed_and_the_same(raw, monkeypatch):
    resident = make_problem(spec(Choice("random", {"fraction": 0.25})), raw, CPU)
    monkeypatch.setattr(streamed, "RESIDENT_BYTES", 1000)
    host = make_problem(spec(Choice("random", {"fraction": 0.25})), raw, CPU)
    assert isinstance(host.splits["train"].images, Streamed)
    assert isinstance(resident.splits["train"].images, torch.Tensor)
    assert host.retain_digest == resident.retain_digest
    for name, part in resident.splits.items():
        assert all(torch.equal(a, b) for a, b in zip(part.tensors(), host.splits[name].tensors(), strict=True))


def test_a_scenario_that_changes_images_needs_them_in_memory(raw, monkeypatch):
    seen = []

    def darken(images, labels, num_classes, params, rng):
        seen.append(type(images))
        forget = np.arange(len(labels)) < 3
        return Request(forget, images=np.asarray(images) // 2)

    SCENARIOS.register("darken")(darken)
    try:
        draw_request(spec(Choice("darken")), raw, np.arange(12))
        monkeypatch.setattr(streamed, "RESIDENT_BYTES", 1000)
        with pytest.raises(UserError, match=r"scenario darken changes images, so dataset made must fit .*train_size"):
            draw_request(spec(Choice("darken")), raw, np.arange(12))
    finally:
        SCENARIOS._entries.pop("darken")
    assert seen == [np.ndarray, Rows]
