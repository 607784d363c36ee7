"""All members of the MNIST family: every way their files can lie about."""

from __future__ import annotations

import functools
import gzip
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

from raybench.errors import UserError
from raybench.idx import parse_idx
from raybench.registry import DATASETS

FAMILY = [("mnist", "MNIST", MNIST), ("fashion_mnist", "FashionMNIST", FashionMNIST), ("kmnist", "KMNIST", KMNIST)]
TRAIN, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def unpack(folder: Path) -> None:
    for packed in folder.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()


@pytest.mark.parametrize(("name", "folder", "family"), FAMILY)
def test_gz_alone_plain_alone_and_torchvision_give_the_same_arrays(name, folder, family, tmp_path, tiny_family):
    arrays = tiny_family(tmp_path / folder / "raw")
    packed = DATASETS[name].fn(tmp_path, False)
    assert sorted(file.suffix for file in (tmp_path / folder / "raw").iterdir()) == [".gz"] * 4  # nothing written
    unpack(tmp_path / folder / "raw")
    plain = DATASETS[name].fn(tmp_path, False)
    assert packed.checksum() == plain.checksum()
    np.testing.assert_array_equal(packed.x_train[:, 0], arrays[TRAIN])
    for x, y, train in ((plain.x_train, plain.y_train, True), (plain.x_test, plain.y_test, False)):
        oracle = family(str(tmp_path), train=train)
        np.testing.assert_array_equal(x[:, 0], oracle.data.numpy())
        np.testing.assert_array_equal(y, oracle.targets.numpy())
    assert (plain.name, plain.x_train.dtype, plain.y_train.dtype) == (name, np.uint8, np.int64)
    assert (plain.input_shape, plain.num_classes, plain.augment) == ((1, 28, 28), 10, "none")
    assert len(plain.class_names) == 10


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def mirror(tmp_path) -> Iterator[str]:
    """Address of a server on this machine that hands out ``tmp_path / "mirror"``."""
    handler = functools.partial(Quiet, directory=str(tmp_path / "mirror"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_download_fetches_what_is_missing_once(tmp_path, tiny_family, mirror, monkeypatch):
    arrays = tiny_family(tmp_path / "mirror")
    monkeypatch.setattr(MNIST, "mirrors", [mirror])
    raw = DATASETS["mnist"].fn(tmp_path / "new", True)
    np.testing.assert_array_equal(raw.y_train, arrays[TRAIN_LABELS])
    shutil.rmtree(tmp_path / "mirror")
    assert DATASETS["mnist"].fn(tmp_path / "new", True).checksum() == raw.checksum()


def test_download_that_fails_says_so(tmp_path, tiny_family):
    tiny_family(tmp_path / "mirror")
    shutil.rmtree(tmp_path / "mirror")
    with pytest.raises(UserError, match=r"must be downloadable into .*MNIST/raw, got .*put the files there by hand"):
        DATASETS["mnist"].fn(tmp_path / "new", True)


def test_no_folder():
    with pytest.raises(UserError, match=r"mnist must have a data folder, got none; pass --data DIR \(and --download\)"):
        DATASETS["mnist"].fn(None, False)


def test_absent_files_are_named(tmp_path, tiny_family):
    tiny_family(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / TRAIN).unlink()
    with pytest.raises(
        UserError, match=r"mnist must have .* got none named train-images\S+; pass .*--data DIR, or --do"
    ):
        DATASETS["mnist"].fn(tmp_path, False)


def test_wrong_md5(tmp_path, tiny_family):
    tiny_family(tmp_path / "MNIST" / "raw")
    file = tmp_path / "MNIST" / "raw" / TRAIN
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"train-images\S+ must have the md5 [0-9a-f]{32}, got [0-9a-f]{32}; remove it"):
        DATASETS["mnist"].fn(tmp_path, False)


def test_truncated_plain_file(tmp_path, tiny_family):
    folder = tmp_path / "MNIST" / "raw"
    tiny_family(folder)
    unpack(folder)
    file = folder / TRAIN.removesuffix(".gz")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="must hold 15680 bytes of data, as its header says, got 15679; remove it"):
        DATASETS["mnist"].fn(tmp_path, False)


def test_images_and_labels_that_disagree(tmp_path, tiny_family):
    folder = tmp_path / "MNIST" / "raw"
    tiny_family(folder)
    unpack(folder)
    shutil.copy(folder / "t10k-labels-idx1-ubyte", folder / "train-labels-idx1-ubyte")
    with pytest.raises(
        UserError, match=r"train-\* must be N images and N labels, got shapes \(20, 28, 28\) and \(10,\)"
    ):
        DATASETS["mnist"].fn(tmp_path, False)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\x01\0", b"\0\0\x08\x02\0\0\0\x01", b"<html>oops"]
)
def test_other_bytes_are_no_idx_file(content):
    with pytest.raises(UserError, match="f must be an idx file of unsigned bytes, got other bytes; get it again"):
        parse_idx(content, "f")


def test_real_mnist(data_root):
    raw = DATASETS["mnist"].fn(data_root, False)
    assert (raw.x_train.shape, raw.x_test.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    # Class counts as Yann LeCun's page and many papers state them.
    assert np.bincount(raw.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(raw.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (raw.x_train / 255.0).mean() == pytest.approx(raw.mean[0], abs=5e-5)
    assert (raw.x_train / 255.0).std() == pytest.approx(raw.std[0], abs=5e-5)
