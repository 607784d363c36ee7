from __future__ import annotations

import numpy as np
import pytest

from raybench.datasets.npz import npz, pixel_statistics
from raybench.errors import UserError
from raybench.problem import load_data
from raybench.spec import Choice

N, M, K = 12, 6, 3


def arrays(shape: tuple[int, ...] = (3, 8, 8)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (N, *shape), dtype=np.uint8),
        "y_train": np.arange(N, dtype=np.int32) % K,
        "x_test": rng.integers(0, 256, (M, *shape), dtype=np.uint8),
        "y_test": np.arange(M, dtype=np.uint8) % K,
    }


@pytest.fixture
def saved(tmp_path):
    def save(content: dict[str, np.ndarray], name: str = "mine.npz") -> str:
        np.savez(tmp_path / name, **content)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize(
    ("shape", "expected", "axes"),
    [
        ((9, 8), (1, 9, 8), None),
        ((1, 9, 8), (1, 9, 8), None),
        ((3, 9, 8), (3, 9, 8), None),
        ((9, 8, 3), (3, 9, 8), (0, 3, 1, 2)),
        ((9, 8, 1), (1, 9, 8), (0, 3, 1, 2)),
    ],
)
def test_layouts(saved, shape, expected, axes):
    content = arrays(shape)
    raw = npz(None, False, path=saved(content))
    assert raw.input_shape == expected
    wanted = content["x_train"].reshape(N, *expected) if axes is None else content["x_train"].transpose(axes)
    np.testing.assert_array_equal(raw.x_train, wanted)
    np.testing.assert_array_equal(raw.y_test, content["y_test"])
    assert (raw.y_train.dtype, raw.num_classes, raw.name, raw.augment) == (np.int64, K, "npz:mine", "none")
    assert raw.mean == pytest.approx(tuple((wanted / 255.0).mean(axis=(0, 2, 3))), abs=1e-12)
    assert raw.std == pytest.approx(tuple((wanted / 255.0).std(axis=(0, 2, 3))), abs=1e-12)


def test_statistics_of_two_pixels():
    mean, std = pixel_statistics(np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1))
    assert mean == pytest.approx((0.5,))
    assert std == pytest.approx((0.5,))


def test_statistics_do_not_move_with_the_size(saved):
    path = saved(arrays())
    assert npz(None, False, path=path, train_size=3).mean == npz(None, False, path=path).mean


def test_relative_path_is_looked_for_in_root_then_here(saved, tmp_path, monkeypatch):
    saved(arrays())
    assert npz(tmp_path, False, path="mine.npz").num_classes == K
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    assert npz(tmp_path / "elsewhere", False, path="mine.npz").num_classes == K
    assert npz(None, False, path="mine.npz").num_classes == K


def test_augment(saved):
    path = saved(arrays())
    assert npz(None, False, path=path, augment="crop_flip").augment == "crop_flip"
    with pytest.raises(UserError, match=r"augment of npz must be one of none, crop_flip, .*, got 'flip'"):
        npz(None, False, path=path, augment="flip")


def change(**replaced: np.ndarray) -> dict[str, np.ndarray]:
    return {**arrays(), **replaced}


X, Y = arrays()["x_train"], arrays()["y_train"]
BAD = {
    "missing array": ({k: v for k, v in arrays().items() if k != "y_test"}, r"got no y_test \(it holds x_train, y_tr"),
    "float images": (change(x_train=X / 255.0), r"x_train in \S+ must be uint8, got float64; undo the normalisation"),
    "int images": (change(x_test=X.astype(np.int64)), r"x_test in \S+ must be uint8, got int64; save pixels 0 to 255"),
    "flat images": (change(x_train=X.reshape(N, -1)), r"x_train in \S+ must be \[N, H, W\], .* got shape \[12, 192\]"),
    "many channels": (
        change(x_train=np.zeros((N, 8, 8, 8), np.uint8)),
        r"1 to 4 channels .* got shape \[12, 8, 8, 8\]",
    ),
    "tiny images": (change(x_train=X[:, :, :4, :4]), r"sides above 4, got shape \[12, 3, 4, 4\]"),
    "no images": (change(x_train=X[:0], y_train=Y[:0]), r"N >= 1, .* got shape \[0, 3, 8, 8\]"),
    "float labels": (
        change(y_train=Y.astype(float)),
        r"y_train in \S+ must be integers \[N\], got float64 of shape \[12",
    ),
    "one-hot labels": (
        change(y_train=np.eye(K, dtype=int)[Y]),
        r"must be integers \[N\], got int64 of shape \[12, 3\]",
    ),
    "object labels": (change(y_train=Y.astype(object)), r"must hold plain, intact arrays, got .*allow_pickle=False"),
    "negative labels": (
        change(y_train=Y - 1),
        r"y_train in \S+ must not be negative, got -1; number the classes from 0",
    ),
    "gap in labels": (
        change(y_train=Y * 2),
        r"y_train in \S+ must use every label from 0 to K-1, K >= 2, got 0, 2, 4;",
    ),
    "one class": (change(y_train=Y * 0), r"K >= 2, got 0; renumber"),
    "new test label": (
        change(y_test=np.full(M, K)),
        r"y_test in \S+ must only use the labels 0 to 2 of y_train, got 3;",
    ),
    "lengths": (change(y_train=Y[:-1]), r"x_train and y_train in \S+ must be equally long, got 12 and 11"),
    "test lengths": (change(y_test=Y), r"x_test and y_test in \S+ must be equally long, got 6 and 12"),
    "test shape": (
        change(x_test=arrays((3, 9, 8))["x_test"]),
        r"image shape of x_train \(3, 8, 8\) .* got \(3, 9, 8\)",
    ),
    "constant channel": (
        change(x_train=X * np.array([1, 0, 1], np.uint8)[:, None, None]),
        "must vary, got channel 1 con",
    ),
}


@pytest.mark.parametrize(("content", "message"), list(BAD.values()), ids=list(BAD))
def test_bad_files(saved, content, message):
    with pytest.raises(UserError, match=message) as caught:
        npz(None, False, path=saved(content))
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"path of npz must be there, got nothing at \S+/no.npz or no.npz; give an abs"):
        npz(tmp_path, False, path="no.npz")


def test_prefix_family_is_the_same_data(saved, tmp_path):
    path = saved(arrays())
    one, other = load_data(Choice("npz", {"path": path}), None, False), load_data(Choice(f"npz:{path}"), None, False)
    assert one[1] == other[1]
    assert load_data(Choice("npz:mine.npz"), str(tmp_path), False)[1] == one[1]
    with pytest.raises(UserError, match=r"npz must be given one path, got 'a' and 'b'; write npz:PATH, or add"):
        npz(None, False, "a", path="b")


def test_a_folder_is_no_npz_file(tmp_path):
    with pytest.raises(UserError, match=r"path of npz must be a file, got the folder \S+; for folders of images use"):
        npz(None, False, path=str(tmp_path))


def test_not_an_npz_file(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"text.npz must be a .npz file, got .*; write it with numpy.savez"):
        npz(tmp_path, False, path="text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"one.npy must be a .npz file, got a single array; write it with numpy.savez"):
        npz(tmp_path, False, path="one.npy")


def test_damaged_member(saved):
    path = saved(arrays())
    with open(path, "r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 200)
    with pytest.raises(UserError, match=r"must hold plain, intact arrays, got .*; write it again"):
        npz(None, False, path=path)


def test_real_subset(data_root):
    raw = npz(data_root, False, path="CIFAR10/cifar10_subset.npz", train_size=1000, test_size=100)
    assert (raw.x_train.shape, raw.x_test.shape) == ((1000, 3, 32, 32), (100, 3, 32, 32))
    assert np.bincount(raw.y_train).tolist() == [100] * 10
    assert raw.name == "npz:cifar10_subset"
