"""Small trees of image files in the on-disk formats of the real datasets, and the pixels that are in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

RNG = np.random.default_rng(0)


def image(file: Path, width: int, height: int, mode: str = "RGB") -> np.ndarray:
    """A random image without loss (PNG inside, whatever the name), as uint8 [H, W(, 3)]."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return pixels


def tinyimagenet(root: Path) -> dict[str, np.ndarray]:
    folder = root / "tiny-imagenet-200"
    pixels = {}
    wnids = ["n02", "n01", "n03"]
    for wnid in wnids:
        for i in range(2):
            name = f"{wnid}_{i}.JPEG"
            mode = "L" if (wnid, i) == ("n03", 1) else "RGB"
            pixels[name] = image(folder / "train" / wnid / "images" / name, 64, 64, mode)
    lines = []
    for i, wnid in enumerate(["n03", "n01", "n02"]):
        pixels[f"val_{i}.JPEG"] = image(folder / "val" / "images" / f"val_{i}.JPEG", 64, 64)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, carassius\nn02\tbullfrog\nn09\tnot used\n")
    return pixels


def cub(root: Path) -> dict[str, np.ndarray]:
    folder = root / "CUB_200_2011"
    pixels, paths = {}, ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "002.Wren/c.jpg", "002.Wren/d.jpg"]
    for i, path in enumerate(paths):
        pixels[path] = image(folder / "images" / path, 20 + i, 30)
    (folder / "images.txt").write_text("".join(f"{i} {p}\n" for i, p in enumerate(paths, 1)))
    (folder / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 2\n")
    (folder / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n4 1\n")
    (folder / "classes.txt").write_text("1 001.Albatross\n2 002.Wren\n")
    return pixels


def stanford_cars(root: Path) -> dict[str, np.ndarray]:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer", "Acura RL"], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    pixels = {}

    def annotations(part: str, classes: list[int]) -> dict:
        kind = [(f"bbox_{c}", "u1") for c in ("x1", "y1", "x2", "y2")] + [("class", "u1"), ("fname", object)]
        rows = np.zeros(len(classes), dtype=kind)
        for i, label in enumerate(classes):
            name = f"{i + 1:05d}.jpg"
            pixels[f"{part}/{name}"] = image(folder / f"cars_{part}" / name, 24, 16 + i)
            rows[i]["class"], rows[i]["fname"] = label, name
        return {"annotations": rows}

    savemat(folder / "devkit" / "cars_train_annos.mat", annotations("train", [2, 1, 2]))
    savemat(folder / "cars_test_annos_withlabels.mat", annotations("test", [1, 2]))
    return pixels


def class_tree(folder: Path, parts: dict[str, int], classes: tuple[str, ...], suffix: str = ".JPEG") -> dict:
    """``folder/<part>/<class>/<i><suffix>``, images of different sizes."""
    pixels = {}
    for part, count in parts.items():
        for c, name in enumerate(classes):
            for i in range(count):
                path = f"{part}/{name}/{i}{suffix}"
                pixels[path] = image(folder / path, 18 + i, 22 + c)
    return pixels
