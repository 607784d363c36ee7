"""Images and labels: raw arrays, device-resident splits, batches with augmentation on the device."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raybench.streamed import Streamed

Batch = tuple[Tensor, Tensor]  # normalised float images [n, c, h, w], int64 labels [n]


@dataclass(frozen=True)
class RawData:
    """A dataset as its loader gives it: uint8 images [N, C, H, W], int64 labels [N], pixel statistics.

    ``mean`` and ``std`` are per channel, in units of [0, 1] pixels. ``augment`` names the augmentation that
    the field trains this dataset with (a key of ``AUGMENTATIONS``). ``fine``: int64 [N] subclasses of the training
    images, named ``fine_names``, where the labels are superclasses. Arrays may be memory-mapped; ``digests`` then has
    the digest of each such array by its name, so that nothing reads all of it to know what it is.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"
    class_names: tuple[str, ...] = ()
    fine: np.ndarray | None = None
    fine_names: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    def checksum(self) -> str:
        """Digest of every pixel and label, and of the normalisation."""
        digest = hashlib.sha256(repr((self.num_classes, self.mean, self.std, self.augment)).encode())
        for name in ("x_train", "y_train", "x_test", "y_test", "fine"):
            array = getattr(self, name)
            if array is None:
                continue
            digest.update(repr((array.shape, str(array.dtype))).encode())
            known = self.digests.get(name)
            digest.update(np.ascontiguousarray(array).data if known is None else known.encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """What a scenario asks to forget, over the training split (validation already taken out).

    ``forget``: bool mask [N]. ``labels`` / ``images``: the training labels [N] or images [N, C, H, W] where
    the scenario corrupts them, else None. ``forget_classes``: non-empty only when whole classes go. ``repeats``: how
    often each sample to forget stands in the training set of the original model, and in D_f. ``given``: the parts of
    D_f (bool masks [N]) that a method is told of, one request after the other; empty: all of it at once. ``trigger``:
    what puts a backdoor's pattern on uint8 images [n, C, H, W], and ``target`` the class it asks for; None without a
    backdoor.
    """

    forget: np.ndarray
    labels: np.ndarray | None = None
    images: np.ndarray | None = None
    forget_classes: tuple[int, ...] = ()
    repeats: int = 1
    given: tuple[np.ndarray, ...] = ()
    trigger: Callable[[np.ndarray], np.ndarray] | None = None
    target: int = 0


@dataclass(frozen=True)
class Source:
    """Where the samples of a training split come from, for a scenario that asks: ``rows`` int64 [N] of the ``total``
    training images of dataset ``name``, and their subclasses ``fine`` int64 [N], called ``fine_names`` (None and empty
    where the dataset has none)."""

    name: str
    rows: np.ndarray
    total: int
    fine: np.ndarray | None = None
    fine_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pixels:
    """The normalisation of a dataset: normalised = (pixel - mean) / std with pixels in [0, 1]."""

    mean: Tensor  # [1, C, 1, 1]
    std: Tensor  # [1, C, 1, 1]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 or [0, 1] float images [n, c, h, w] to normalised float32."""
        if images.dtype == torch.uint8:  # in place: fresh memory costs more than the arithmetic
            return images.to(self.mean.dtype).div_(255.0).sub_(self.mean).div_(self.std)
        return (images - self.mean).div_(self.std)

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised images back to [0, 1] pixels (not clamped)."""
        return images * self.std + self.mean


def crop_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random crop after zero padding and random horizontal flip, per image, on the device (uint8 in and out)."""
    n, channels, height, width = images.shape
    device = images.device
    padded = F.pad(images, (padding,) * 4)
    top = torch.randint(0, 2 * padding + 1, (n,), generator=generator, device=device)
    left = torch.randint(0, 2 * padding + 1, (n,), generator=generator, device=device)
    flip = torch.rand(n, generator=generator, device=device) < 0.5
    rows = top[:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + left[:, None]
    # One gather over the pixels of a plane: five times as fast on a CPU as an index per axis.
    place = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(n, 1, -1).expand(n, channels, -1)
    return padded.flatten(2).gather(2, place).view(images.shape)


def resized_crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each image, enlarged to the whole, and a random horizontal flip (uint8 in and out, or float).

    As networks are trained on ImageNet (Szegedy et al. 2015, section 6): the part has 8 to 100 % of the area and an
    aspect ratio of 3/4 to 4/3, uniform in its logarithm. A part that would stick out is cut to the image; the pixels
    are interpolated bilinearly.
    """
    n, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, device=device)

    area = uniform(*AREA)
    ratio = uniform(math.log(ASPECT[0]), math.log(ASPECT[1])).exp()
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    flip = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    # grid_sample looks at [-1, 1]: a share s of the side may be centred anywhere in [s - 1, 1 - s].
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2] = width * flip, (1.0 - width) * uniform(-1.0, 1.0)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1.0 - height) * uniform(-1.0, 1.0)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    resized = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else resized


AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "none": None,
    "crop_flip": crop_flip,
    "crop_flip_12": functools.partial(crop_flip, padding=12),  # an eighth of 96 pixels, as 4 are of 32
    "resized_crop_flip": resized_crop_flip,
}


class Batches(Protocol):
    """What the training loop draws from: passes in batches. A ``Split``, or what is put together from several."""

    def steps(self, batch_size: int) -> int:
        """Batches of one pass."""
        ...

    def batches(self, batch_size: int, *, augment: bool = False, shuffle: bool = False) -> Iterator[Batch]:
        """One pass, see ``Split.batches``."""
        ...


@dataclass
class Split:
    """A part of a dataset, resident on the device as uint8; batches are made there, no Python per sample.

    Images above ``streamed.RESIDENT_BYTES`` stay on the host (``Streamed``) and go to the device batch by batch.

    ``tick`` (set by the harness) is called once per batch: the place where a time limit may stop a method.
    """

    images: Tensor | Streamed  # uint8 (or [0, 1] float) [N, C, H, W], shared with other splits, never written
    labels: Tensor  # int64 [N]
    index: Tensor  # int64 [n]: which rows of images and labels
    pixels: Pixels
    augment: str = "none"
    generator: torch.Generator | None = None
    tick: Callable[[], None] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return int(self.index.numel())

    @property
    def targets(self) -> Tensor:
        """int64 labels [n]."""
        return self.labels.index_select(0, self.index)

    def tensors(self) -> Batch:
        """All normalised images float32 [n, c, h, w] and labels int64 [n], as new tensors."""
        return self.pixels.normalise(self._picked(self.index)), self.targets

    def steps(self, batch_size: int) -> int:
        """Batches of one pass, a short last one included."""
        return -(-len(self) // batch_size)

    def batches(
        self, batch_size: int, *, augment: bool = False, shuffle: bool = False, drop_last: bool = False
    ) -> Iterator[Batch]:
        """One pass. ``augment`` applies the dataset's augmentation, ``shuffle`` draws an order; both use the
        generator of the owner (the task's in a method), never global state. The last batch may be short."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        order = self.index
        if shuffle:
            order = order[torch.randperm(len(self), generator=self.generator, device=self._device()).to(order.device)]
        transform = AUGMENTATIONS[self.augment] if augment else None
        for start in range(0, len(self), batch_size):
            if drop_last and start + batch_size > len(self):
                return
            if self.tick is not None:
                self.tick()
            rows = order[start : start + batch_size]
            images = self._picked(rows)
            if transform is not None:
                images = transform(images, self._generator())
            yield self.pixels.normalise(images), self.labels.index_select(0, rows)

    def subset(self, positions: Tensor) -> Split:
        """The samples at ``positions`` (int64, into this split)."""
        return self._with(self.index[positions.to(self.index.device)])

    def relabelled(self, labels: Tensor) -> Split:
        """The same samples with other labels (int64 [n], in the order of ``targets``); this split keeps its own."""
        changed = self.labels.clone()
        changed[self.index] = labels.to(changed)
        return dataclasses.replace(self, labels=changed)

    def joined(self, other: Split) -> Split:
        """These samples, then those of ``other``, as one split that draws from this one's generator.

        Images may be [0, 1] floats in one of the two (made images); the uint8 ones of the other are then converted.
        """
        parts = [split.images[split.index] for split in (self, other)]
        if parts[0].dtype != parts[1].dtype:
            parts = [part.float() / 255.0 if part.dtype == torch.uint8 else part for part in parts]
        images, labels = torch.cat(parts), torch.cat([self.targets, other.targets])
        index = torch.arange(len(labels), device=self.index.device)
        return dataclasses.replace(self, images=images, labels=labels, index=index)

    def positions_in(self, whole: Split) -> Tensor:
        """Where these samples stand in ``whole``, of which they are a part: int64 [n]. ``whole.index`` is sorted; of a
        sample that stands there several times, the first occurrence here is the first there, and so on."""
        ordered, order = torch.sort(self.index, stable=True)
        nth = torch.empty_like(order)
        nth[order] = torch.arange(len(ordered), device=order.device) - torch.searchsorted(ordered, ordered)
        return torch.searchsorted(whole.index, self.index) + nth

    def private(self, generator: torch.Generator, tick: Callable[[], None] | None = None) -> Split:
        """The same samples as tensors of their own: what is handed to a method holds no other sample, and nothing
        that is written there reaches other trials."""
        index = torch.arange(len(self), device=self.index.device)
        images = self.images.part(self.index) if isinstance(self.images, Streamed) else self._picked(self.index)
        return Split(images, self.labels[self.index], index, self.pixels, self.augment, generator, tick)

    def bound(self, generator: torch.Generator, tick: Callable[[], None] | None = None) -> Split:
        """The same samples drawing from another generator."""
        split = self._with(self.index)
        split.generator, split.tick = generator, tick
        return split

    def _picked(self, rows: Tensor) -> Tensor:
        """A copy of some images; index_select copies them whole, where an index in brackets goes pixel by pixel."""
        return self.images[rows] if isinstance(self.images, Streamed) else self.images.index_select(0, rows)

    def _with(self, index: Tensor) -> Split:
        return Split(self.images, self.labels, index, self.pixels, self.augment, self.generator, self.tick)

    def _generator(self) -> torch.Generator:
        if self.generator is None:
            raise ValueError("this split has no generator; bind one before shuffling or augmenting")
        return self.generator

    def _device(self) -> torch.device:
        return self._generator().device
