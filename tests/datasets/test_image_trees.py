"""Datasets of image files, each on a small tree in its real on-disk format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from raybench.errors import UserError
from raybench.image_files import IMAGENET_MEAN
from raybench.registry import DATASETS
from tests.datasets import trees


def load(name: str, root: Path, *family: str, **options):
    return DATASETS[name].fn(root, False, *family, **options)


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    """The central square [3, side, side] of [H, W, 3] pixels whose shorter side is ``side``, by Pillow."""
    height, width = pixels.shape[:2]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pixels[top : top + side, left : left + side].transpose(2, 0, 1)


def test_tinyimagenet(tmp_path):
    pixels = trees.tinyimagenet(tmp_path)
    raw = load("tinyimagenet", tmp_path)
    assert (raw.x_train.shape, raw.x_test.shape, raw.num_classes) == ((6, 3, 64, 64), (3, 3, 64, 64), 3)
    assert raw.class_names == ("bullfrog", "goldfish, carassius", "n03")  # the order of wnids.txt
    assert raw.y_train.tolist() == [0, 0, 1, 1, 2, 2]
    assert raw.y_test.tolist() == [2, 1, 0]
    np.testing.assert_array_equal(raw.x_train[2], pixels["n01_0.JPEG"].transpose(2, 0, 1))
    np.testing.assert_array_equal(raw.x_train[5], np.stack([pixels["n03_1.JPEG"]] * 3))  # grey: three equal channels
    np.testing.assert_array_equal(raw.x_test[1], pixels["val_1.JPEG"].transpose(2, 0, 1))
    assert raw.augment == "crop_flip"
    assert load("tinyimagenet", tmp_path, side=32).input_shape == (3, 32, 32)


def test_tinyimagenet_incomplete(tmp_path):
    trees.tinyimagenet(tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn77\t0\t0\t62\t62\n")
    with pytest.raises(UserError, match=r"val_annotations.txt must be those of wnids.txt, got n77; unpack"):
        load("tinyimagenet", tmp_path)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG n01\n")
    with pytest.raises(UserError, match=r"val_annotations.txt must have 6 columns, got 2 in line 1; unpack"):
        load("tinyimagenet", tmp_path)
    for file in (folder / "train" / "n01" / "images").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"n01/images must hold the JPEG files of its class, got none; unpack"):
        load("tinyimagenet", tmp_path)
    (folder / "words.txt").unlink()
    with pytest.raises(UserError, match=r"tinyimagenet must lie in \S+ with wnids.txt, .*, got no words.txt; unpack"):
        load("tinyimagenet", tmp_path)


def test_cub(tmp_path):
    pixels = trees.cub(tmp_path)
    raw = load("cub", tmp_path, side=16, crop=0.8)
    assert (raw.y_train.tolist(), raw.y_test.tolist()) == ([0, 1], [0, 1])
    assert raw.class_names == ("001.Albatross", "002.Wren")
    assert (raw.input_shape, raw.mean, raw.augment) == ((3, 16, 16), IMAGENET_MEAN, "resized_crop_flip")
    # 20 x 30 pixels: the shorter side is 16 / 0.8 already, so the centre is cut without resizing.
    np.testing.assert_array_equal(raw.x_train[0], middle(pixels["001.Albatross/a.jpg"], 16))


def test_cub_broken_tables(tmp_path):
    trees.cub(tmp_path)
    folder = tmp_path / "CUB_200_2011"
    (folder / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n")
    with pytest.raises(UserError, match=r"train_test_split.txt must have a whole number for each of the 4 images"):
        load("cub", tmp_path, side=16)
    (folder / "train_test_split.txt").write_text("1 1\n2 1\n3 1\n4 1\n")
    with pytest.raises(UserError, match="the test part of dataset cub must have images, got none; unpack"):
        load("cub", tmp_path, side=16)
    (folder / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n4 1\n")
    (folder / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n4 3\n")
    with pytest.raises(UserError, match="labels of the train part of dataset cub must be 0 to 1, got 0 to 2; unpack"):
        load("cub", tmp_path, side=16)


def test_stanford_cars(tmp_path):
    pixels = trees.stanford_cars(tmp_path)
    raw = load("stanford_cars", tmp_path, side=16, crop=1.0)
    assert (raw.y_train.tolist(), raw.y_test.tolist()) == ([1, 0, 1], [0, 1])
    assert raw.class_names == ("AM General Hummer", "Acura RL")
    np.testing.assert_array_equal(raw.x_train[0], middle(pixels["train/00001.jpg"], 16))
    np.testing.assert_array_equal(raw.x_test[0], middle(pixels["test/00001.jpg"], 16))


def test_stanford_cars_broken_annotations(tmp_path):
    trees.stanford_cars(tmp_path)
    file = tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat"
    rows = np.zeros(2, dtype=[("fname", object)])
    rows["fname"] = "00001.jpg"
    savemat(file, {"annotations": rows})
    with pytest.raises(UserError, match=r"withlabels.mat must have fname and class, got fname; use the file with la"):
        load("stanford_cars", tmp_path)
    file.write_bytes(b"short")
    with pytest.raises(UserError, match=r"withlabels.mat must be a MATLAB file with annotations, got \w+: "):
        load("stanford_cars", tmp_path)


def test_the_first_classes_of_a_dataset(tmp_path):
    trees.class_tree(tmp_path / "imagenet", {"train": 3, "val": 2}, ("n0001", "n0002", "n0003"))
    whole = load("imagenet", tmp_path, side=16)
    (tmp_path / "imagenet" / "train" / "n0003" / "odd.JPEG").write_text("no image, and never decoded")
    raw = load("imagenet", tmp_path, side=16, classes=2)
    assert (raw.num_classes, raw.class_names) == (2, ("n0001", "n0002"))
    for part in ("train", "test"):
        labels = getattr(whole, f"y_{part}")
        np.testing.assert_array_equal(getattr(raw, f"y_{part}"), labels[labels < 2])
        np.testing.assert_array_equal(getattr(raw, f"x_{part}"), getattr(whole, f"x_{part}")[labels < 2])
    assert sorted(load("imagenet", tmp_path, side=16, classes=2, train_size=4).y_train) == [0, 0, 1, 1]
    for bad in (1, 4, 2.0, True):
        with pytest.raises(UserError, match=r"classes of imagenet must be an integer from 2 to 3, got \S+; change it"):
            load("imagenet", tmp_path, side=16, classes=bad)


def test_imagenet(tmp_path):
    classes = ("n0001", "n0002")
    pixels = trees.class_tree(tmp_path / "imagenet", {"train": 3, "val": 2}, classes)
    raw = load("imagenet", tmp_path, side=18, crop=1.0)
    assert raw.class_names == classes
    assert (raw.y_train.tolist(), raw.y_test.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])
    np.testing.assert_array_equal(raw.x_train[3], middle(pixels["train/n0002/0.JPEG"], 18))
    assert load("imagenet", tmp_path, side=18, train_size=2).y_train.tolist() == [0, 1]


def test_imagenet_bad_trees(tmp_path):
    root = tmp_path / "imagenet"
    trees.class_tree(root, {"train": 1}, ("n1", "n2"))
    with pytest.raises(UserError, match=r"imagenet must lie in \S+ with train, val, got no val; unpack"):
        load("imagenet", tmp_path)
    trees.class_tree(root, {"val": 1}, ("n1", "n3"))
    with pytest.raises(UserError, match=r"val must have the class folders of the training part, got .* n2, n3; give"):
        load("imagenet", tmp_path)


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_imagefolder(tmp_path, test):
    pixels = trees.class_tree(tmp_path / "mine", {"train": 2, test: 1}, ("cat", "dog"), ".png")
    raw = load("imagefolder", tmp_path, "mine", side=18)
    assert (raw.name, raw.num_classes, raw.input_shape) == ("imagefolder:mine", 2, (3, 18, 18))
    np.testing.assert_array_equal(raw.x_train[0], middle(pixels["train/cat/0.png"], 18))
    wanted = raw.x_train / 255.0
    np.testing.assert_allclose(raw.mean, wanted.mean(axis=(0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(raw.std, wanted.std(axis=(0, 2, 3)), atol=1e-12)
    assert load("imagefolder", None, path=str(tmp_path / "mine"), side=18).checksum() == raw.checksum()
    assert load("imagefolder", tmp_path, "mine", side=18, mode="L").input_shape == (1, 18, 18)


def test_imagefolder_bad_trees(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    with pytest.raises(UserError, match=r"mine must have the folders train and test .*, got no train and no test; so"):
        load("imagefolder", tmp_path, "mine")
    trees.class_tree(root, {"train": 1}, ("cat",))
    with pytest.raises(UserError, match="got no test; sort the images so"):
        load("imagefolder", tmp_path, "mine")
    trees.class_tree(root, {"test": 1}, ("cat",))
    with pytest.raises(UserError, match=r"train must hold a folder per class, at least 2, got 1; sort"):
        load("imagefolder", tmp_path, "mine")
    (root / "train" / "dog").mkdir()
    with pytest.raises(UserError, match=r"train/dog must hold images \(.bmp, .*\), got none; add some"):
        load("imagefolder", tmp_path, "mine")
    with pytest.raises(UserError, match=r"path of imagefolder must be there, got nothing at \S+/no or no; give an abs"):
        load("imagefolder", tmp_path, "no")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 4}, "side of imagefolder:mine must be an integer from 8 to 4096 pixels, got 4"),
        ({"side": 16.0}, r"side of imagefolder:mine must be an integer .* got 16.0"),
        ({"crop": 0}, "crop of imagefolder:mine must be the share of the side that is kept, 0.1 to 1, got 0"),
        ({"mode": "CMYK"}, r"mode of imagefolder:mine must be RGB or L \(grey\), got 'CMYK'"),
        ({"augment": "flip"}, "augment of imagefolder must be one of none, crop_flip, .* got 'flip'"),
        ({"train_size": 5}, r"train_size of imagefolder:mine must be an integer from 2 .* to 4 .* got 5"),
    ],
)
def test_bad_options(tmp_path, options, message):
    trees.class_tree(tmp_path / "mine", {"train": 2, "test": 1}, ("cat", "dog"), ".png")
    with pytest.raises(UserError, match=message):
        load("imagefolder", tmp_path, "mine", **options)


def test_damaged_image(tmp_path, cache):
    trees.class_tree(tmp_path / "mine", {"train": 2, "test": 1}, ("cat", "dog"), ".png")
    file = tmp_path / "mine" / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=r"train/dog/1.png must be an intact image, got .*; replace it"):
        load("imagefolder", tmp_path, "mine", side=18)
    assert list(cache.iterdir()) == []  # nothing half done is left


@pytest.mark.parametrize("kind", ["palette", "cmyk", "rgba", "grey"])
def test_files_of_every_kind_become_rgb(tmp_path, kind):
    root = tmp_path / "mine"
    trees.class_tree(root, {"train": 1, "test": 1}, ("cat", "dog"), ".png")
    picture = Image.fromarray(trees.RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    if kind == "palette":
        palette = picture.quantize(16)
        palette.save(root / "train" / "cat" / "1.png", transparency=bytes([0, 255]))
    elif kind == "cmyk":
        picture.convert("CMYK").save(root / "train" / "cat" / "1.jpg")
    else:
        picture.convert("RGBA" if kind == "rgba" else "L").save(root / "train" / "cat" / "1.png")
    raw = load("imagefolder", tmp_path, "mine", side=20)
    assert raw.x_train.shape == (3, 3, 20, 20)
    if kind == "rgba":
        np.testing.assert_array_equal(raw.x_train[1], np.asarray(picture).transpose(2, 0, 1))
