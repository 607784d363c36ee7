"""Splits and batches against loops over single images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from raybench.data import AUGMENTATIONS, Pixels, RawData, Split, crop_flip, resized_crop_flip


@pytest.fixture(autouse=True)
def global_state_untouched() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def make_split(n: int = 23, augment: str = "crop_flip", seed: int | None = 0) -> Split:
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (40, 2, 6, 5), generator=draw, dtype=torch.uint8)
    labels = torch.arange(40)  # a label names its row
    index = torch.randperm(40, generator=draw)[:n]
    pixels = Pixels(torch.tensor([0.2, 0.4]).view(1, 2, 1, 1), torch.tensor([0.5, 0.25]).view(1, 2, 1, 1))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return Split(images, labels, index, pixels, augment, generator)


@pytest.mark.parametrize("padding", [4, 1])
def test_crop_flip_against_one_image_at_a_time(padding: int) -> None:
    images = torch.randint(0, 256, (50, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    found = crop_flip(images, torch.Generator().manual_seed(3), padding)
    draw = torch.Generator().manual_seed(3)  # the same draws in the same order: top, left, flip
    top = torch.randint(0, 2 * padding + 1, (50,), generator=draw)
    left = torch.randint(0, 2 * padding + 1, (50,), generator=draw)
    flip = torch.rand(50, generator=draw) < 0.5
    assert 0 < flip.sum() < 50
    for n in range(50):
        canvas = np.zeros((3, 7 + 2 * padding, 9 + 2 * padding), dtype=np.uint8)
        canvas[:, padding : padding + 7, padding : padding + 9] = images[n].numpy()
        crop = canvas[:, top[n] : top[n] + 7, left[n] : left[n] + 9]
        expected = crop[:, :, ::-1] if flip[n] else crop
        np.testing.assert_array_equal(found[n].numpy(), expected)
    assert found.dtype == torch.uint8


def test_normalise_and_back() -> None:
    split = make_split()
    images, labels = split.tensors()
    assert images.dtype == torch.float32
    mean, std = np.array([0.2, 0.4]).reshape(1, 2, 1, 1), np.array([0.5, 0.25]).reshape(1, 2, 1, 1)
    pixels = split.images[split.index].numpy() / 255.0
    np.testing.assert_allclose(images.numpy(), (pixels - mean) / std, atol=1e-6)
    np.testing.assert_allclose(split.pixels.denormalise(images).numpy(), pixels, atol=1e-6)
    given = torch.rand(2, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    kept = given.clone()
    back = split.pixels.denormalise(split.pixels.normalise(given))
    torch.testing.assert_close(back, given)
    assert torch.equal(given, kept)
    assert torch.equal(labels, split.targets)
    assert torch.equal(labels, split.index)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_a_pass_covers_each_sample_once_with_its_label(shuffle: bool, batch_size: int) -> None:
    split = make_split()
    images, labels = map(torch.cat, zip(*split.batches(batch_size, shuffle=shuffle), strict=True))
    assert sorted(labels.tolist()) == sorted(split.index.tolist())
    assert (labels.tolist() == split.index.tolist()) != shuffle
    expected = split.pixels.normalise(split.images[labels])  # the label is the row
    assert torch.equal(images, expected)
    sizes = [len(y) for _, y in split.batches(batch_size)]
    assert sizes == [batch_size] * (23 // batch_size) + ([23 % batch_size] if 23 % batch_size else [])
    assert [len(y) for _, y in split.batches(batch_size, drop_last=True)] == [batch_size] * (23 // batch_size)


@pytest.mark.parametrize("batch_size", [0, -4])  # a negative one would be an empty pass
def test_a_batch_holds_something(batch_size: int) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got"):
        next(make_split(23).batches(batch_size))


def test_shuffle_and_augmentation_are_functions_of_the_generator() -> None:
    def passes(seed: int) -> list[torch.Tensor]:
        split = make_split(seed=seed)
        return [x for _ in range(2) for x, _ in split.batches(8, shuffle=True, augment=True)]

    one, again, other = passes(0), passes(0), passes(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[3])  # the second pass goes on drawing


def test_augmentation_is_the_datasets() -> None:
    plain = torch.cat([x for x, _ in make_split(augment="none").batches(8, augment=True)])
    assert torch.equal(plain, make_split().tensors()[0])
    split = make_split()
    found = next(iter(split.batches(8, augment=True)))[0]
    expected = crop_flip(split.images[split.index[:8]], torch.Generator().manual_seed(0))
    assert torch.equal(found, split.pixels.normalise(expected))
    assert set(AUGMENTATIONS) >= {"none", "crop_flip"}


def test_without_a_generator_nothing_random() -> None:
    split = make_split(seed=None)
    assert len(list(split.batches(8))) == 3
    for options in ({"shuffle": True}, {"augment": True}):
        with pytest.raises(ValueError, match="no generator"):
            list(split.batches(8, **options))


def test_subset_and_bound_share_storage_and_leave_the_split_alone() -> None:
    split = make_split()
    part = split.subset(torch.tensor([3, 0]))
    assert part.targets.tolist() == [split.index[3], split.index[0]]
    generator = torch.Generator().manual_seed(9)
    ticks: list[int] = []
    bound = split.bound(generator, lambda: ticks.append(1))
    for other in (part, bound):
        assert other.images.data_ptr() == split.images.data_ptr()
        assert other.labels.data_ptr() == split.labels.data_ptr()
    assert (bound.generator, split.tick) == (generator, None)
    assert split.generator is not generator
    list(bound.batches(10))
    assert len(ticks) == 3
    assert bound.subset(torch.arange(5)).tick is bound.tick


def test_batches_can_be_written_to_without_touching_the_data() -> None:
    split = make_split(augment="none")
    kept = split.images.clone(), split.labels.clone()
    for images, labels in split.batches(7, augment=True):
        images.zero_()
        labels.zero_()
    images, labels = split.tensors()
    images.zero_()
    labels.zero_()
    split.targets.zero_()
    assert torch.equal(split.images, kept[0])
    assert torch.equal(split.labels, kept[1])


def test_checksum_sees_every_part() -> None:
    x, y = np.arange(48, dtype=np.uint8).reshape(2, 1, 4, 6), np.array([0, 1])

    def make(**changes: object) -> str:
        values: dict[str, object] = {
            "name": "t",
            "x_train": x.copy(),
            "y_train": y.copy(),
            "x_test": x.copy(),
            "y_test": y.copy(),
            "num_classes": 2,
            "mean": (0.5,),
            "std": (0.5,),
        }
        return RawData(**{**values, **changes}).checksum()  # type: ignore[arg-type]

    assert make() == make() == make(name="other name, same data")
    changed = x.copy()
    changed[1, 0, 3, 5] ^= 1
    sums = {
        make(),
        make(x_train=changed),
        make(x_test=changed),
        make(y_train=y[::-1]),
        make(y_test=y[::-1]),
        make(mean=(0.4,)),
        make(std=(0.4,)),
        make(augment="crop_flip"),
        make(num_classes=3),
        make(x_train=x.reshape(2, 1, 6, 4)),
        make(fine=y),
        make(fine=y[::-1]),
        make(digests={"x_train": "known without reading"}),
    }
    assert len(sums) == 13
    known = {"digests": {"x_train": "a"}}
    assert make(**known) == make(**known, x_train=changed)  # what is known is not read
    assert RawData("t", x, y, x, y, 2, (0.5,), (0.5,)).input_shape == (1, 4, 6)


def test_relabelled_changes_the_labels_of_its_samples_only() -> None:
    split = make_split()
    part = split.subset(torch.tensor([4, 0, 2]))
    before = split.labels.clone()
    other = part.relabelled(torch.tensor([7, 8, 9]))
    assert other.targets.tolist() == [7, 8, 9]
    assert torch.equal(other.tensors()[0], part.tensors()[0])
    assert torch.equal(split.labels, before)
    assert part.targets.tolist() == before[part.index].tolist()


@pytest.mark.parametrize("floats", ["neither", "first", "second"])
def test_joined_is_one_after_the_other(floats: str) -> None:
    split = make_split()
    parts = [split.subset(torch.tensor([3, 1])), split.subset(torch.tensor([0, 5, 2]))]
    expected = torch.cat([part.tensors()[0] for part in parts])
    for number, name in enumerate(("first", "second")):
        if floats == name:
            parts[number] = dataclasses.replace(parts[number], images=split.images.float() / 255.0)
    both = parts[0].joined(parts[1])
    assert len(both) == 5
    torch.testing.assert_close(both.tensors()[0], expected, rtol=0.0, atol=1e-6)
    assert torch.equal(both.targets, split.targets[torch.tensor([3, 1, 0, 5, 2])])


def test_positions_in_the_whole() -> None:
    split = make_split()
    whole = split.subset(split.index.argsort())
    part = whole.subset(torch.tensor([3, 0, 1]))
    assert part.positions_in(whole).tolist() == [3, 0, 1]


def test_resized_crop_flip_shows_a_part_of_the_area_and_ratio_that_it_should() -> None:
    """On ramps the share of each side that is shown is the slope, its sign the flip; float images have no rounding."""
    side, n = 64, 400
    ramp = (torch.arange(side) + 0.5) / side
    images = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)]).repeat(n, 1, 1, 1)
    found = resized_crop_flip(images, torch.Generator().manual_seed(4))
    inner = found[:, :, 8:-8, 8:-8]  # outside, interpolation meets the border
    along_x, along_y = inner[:, 0].diff(dim=2) * side, inner[:, 1].diff(dim=1) * side
    width, height = along_x.mean(dim=(1, 2)), along_y.mean(dim=(1, 2))
    torch.testing.assert_close(along_x, width.view(n, 1, 1).expand_as(along_x), atol=1e-3, rtol=0)
    torch.testing.assert_close(along_y, height.view(n, 1, 1).expand_as(along_y), atol=1e-3, rtol=0)
    assert 0.4 < (width < 0).float().mean() < 0.6
    area, ratio = width.abs() * height, width.abs() / height
    whole = (width.abs() > 0.999) | (height > 0.999)  # cut to the image
    assert 0.08 - 1e-3 < area.min() < 0.12
    assert area.max() > 0.9
    assert ratio[~whole].min() > 0.749
    assert ratio[~whole].max() < 1.334
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    # The part lies anywhere: its centre is uniform over where it fits, whose standard deviation is 1 / sqrt(3).
    centre = inner[:, 0].mean(dim=(1, 2)) - 0.5
    place = (centre / ((1 - width.abs()) / 2))[width.abs() < 0.95]
    assert place.std().item() == pytest.approx(3**-0.5, rel=0.1)
    assert place.abs().max() <= 1.01


def test_resized_crop_flip_gives_bytes_for_bytes() -> None:
    images = torch.full((5, 3, 8, 8), 77, dtype=torch.uint8)
    found = resized_crop_flip(images, torch.Generator().manual_seed(0))
    assert found.dtype == torch.uint8
    assert torch.equal(found, images)
