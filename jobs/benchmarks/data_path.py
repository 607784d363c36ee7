"""The data path: what training and augmentation cost beside the plain ways, one core each, in turns in one process.

    python jobs/benchmarks/data_path.py --data DIR [--repeats 9] [--device cpu]

``training``: an epoch of ``fit`` on a split (uint8 on the device, augmentation there) against the same forward and
backward passes and optimiser steps on float tensors that lie there already, and against the passes alone.
``augmented batches``: an epoch of augmented CIFAR-10 batches against torch's DataLoader with torchvision's transforms
on PIL images (crop after padding, flip, to tensor, normalise), no workers, and against the same DataLoader without
augmentation. Adds rows to ``results/performance/data_path.parquet``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rows import PERFORMANCE
from side_by_side import circumstances, compare, keep, take_turns
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from raybench.data import Pixels, RawData, Split
from raybench.errors import UserError
from raybench.places import data_root
from raybench.problem import build_model, load_data
from raybench.seeding import seeded_globals
from raybench.spec import Choice
from raybench.training import Recipe, fit, make_optimiser

BATCH = 128
CIFAR = Choice("npz", {"path": "CIFAR10/cifar10_subset.npz", "augment": "crop_flip"})  # a part of CIFAR-10
TRAINED = ((Choice("mnist"), "lenet5", 8192), (CIFAR, "resnet8", 2048))  # dataset, model, images of an epoch
AUGMENTED = 8192


class Pictures(Dataset):
    """Images as papers' code has them: one PIL image at a time."""

    def __init__(self, raw: RawData, count: int, transform: Callable[[Any], Tensor]) -> None:
        self.images = np.ascontiguousarray(raw.x_train[:count].transpose(0, 2, 3, 1))
        self.labels, self.transform = raw.y_train[:count], transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def loader(raw: RawData, count: int, augment: bool) -> DataLoader:
    """The plain way: a DataLoader over PIL images."""
    _, height, _ = raw.input_shape
    steps: list[Any] = [transforms.RandomCrop(height, padding=4), transforms.RandomHorizontalFlip()] if augment else []
    steps += [transforms.ToTensor(), transforms.Normalize(raw.mean, raw.std)]
    return DataLoader(Pictures(raw, count, transforms.Compose(steps)), batch_size=BATCH, shuffle=True)


def resident(raw: RawData, count: int, device: torch.device, seed: int) -> Split:
    """Our way."""
    pixels = Pixels(*(torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (raw.mean, raw.std)))
    images = torch.tensor(np.asarray(raw.x_train[:count])).to(device)
    labels = torch.tensor(raw.y_train[:count].astype(np.int64)).to(device)
    index = torch.arange(count, device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    return Split(images, labels, index, pixels, raw.augment, generator)


def training_rows(name: Choice, model: str, count: int, given: Any) -> list[dict[str, Any]]:
    """An epoch of ``fit`` beside bare steps."""
    raw, device = load_data(name, data_root(given.data), False)[0], torch.device(given.device)
    split = resident(raw, count, device, given.seed)
    recipe = Recipe(epochs=1, batch_size=BATCH, lr=1e-3)
    there = list(split.batches(BATCH))

    def network() -> nn.Module:
        with seeded_globals(given.seed):
            return build_model(Choice(model), raw.num_classes, raw.input_shape).to(device).train()

    ours, bare, alone = network(), network(), network()
    optimiser = make_optimiser(bare.parameters(), recipe)

    def steps(net: nn.Module, step: bool) -> None:
        for images, labels in there:
            net.zero_grad(set_to_none=True)
            F.cross_entropy(net(images), labels).backward()
            if step:
                optimiser.step()

    runs = {
        "fit": lambda: fit(ours, split, recipe),
        "passes and steps": lambda: steps(bare, True),
        "passes alone": lambda: steps(alone, False),
    }
    taken = take_turns(runs, given.repeats, given.device)
    kind = "wall" if device.type == "cuda" else "cpu"
    rows = []
    for base, least in (("passes and steps", 0.9), ("passes alone", 0.9)):
        found = compare(taken, base, "fit", kind)
        rows.append(_row("training", f"{name.name}, {model}", f"fit against {base}", count, found, least, given))
    return rows


def augmented_rows(given: Any) -> list[dict[str, Any]]:
    """Augmented batches of CIFAR-10 beside a DataLoader's."""
    raw, device = load_data(CIFAR, data_root(given.data), False)[0], torch.device(given.device)
    split, plain = resident(raw, AUGMENTED, device, given.seed), loader(raw, AUGMENTED, True)
    unchanged = loader(raw, AUGMENTED, False)

    def drawn(batches: Any) -> None:
        for images, labels in batches:
            images.to(device), labels.to(device)

    runs = {
        "resident": lambda: drawn(split.batches(BATCH, augment=True, shuffle=True)),
        "DataLoader, PIL": lambda: drawn(plain),
        "DataLoader, PIL, no augmentation": lambda: drawn(unchanged),
    }
    with seeded_globals(given.seed):
        taken = take_turns(runs, given.repeats, given.device)
    kind, rows = "wall" if device.type == "cuda" else "cpu", []
    for base, least in (("DataLoader, PIL", 10.0), ("DataLoader, PIL, no augmentation", None)):
        found = compare(taken, base, "resident", kind)
        rows.append(_row("augmented batches", "cifar10", f"resident against {base}", AUGMENTED, found, least, given))
    return rows


def _row(what: str, on: str, way: str, count: int, found: dict, least: float | None, given: Any) -> dict[str, Any]:
    return {
        "what": what,
        "on": on,
        "way": way,
        **found,
        "at_least": least,
        "images": count,
        "images_per_s": count / found["base_seconds"],  # of ours, which the other's seconds are divided by
        "batch_size": BATCH,
        "seed": given.seed,
        **circumstances(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="where datasets are (or RAYBENCH_DATA)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=PERFORMANCE / "data_path.parquet")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        rows = augmented_rows(given)
        for name, model, count in TRAINED:
            rows += training_rows(name, model, count, given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    shown = ["what", "on", "way", "ratio", "ratio_low", "ratio_high", "at_least", "images_per_s"]
    keep(given.out, rows, shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
