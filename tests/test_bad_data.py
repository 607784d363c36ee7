"""Data and models that do not fit, through the command line: one line, exit code 2, nothing trained."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import raybench as rb
from raybench.problem import build_model
from raybench.spec import Choice

RNG = np.random.default_rng(0)


def npz(folder, **changes):
    arrays = {"x_train": RNG.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8), "y_train": np.arange(40) % 4}
    arrays |= {"x_test": RNG.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), "y_test": np.arange(8) % 4}
    np.savez(folder / "mine.npz", **{k: v for k, v in (arrays | changes).items() if v is not None})
    return "npz:mine.npz"


def tree(folder, parts=("train", "test")):
    for part in parts:
        for name in ("cat", "dog"):
            (folder / "photos" / part / name).mkdir(parents=True)
            for i in range(12):
                pixels = RNG.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / part / name / f"{i}.png")
    return "imagefolder:photos"


def sizes(folder):
    odd = np.empty(40, dtype=object)
    odd[:] = [np.zeros((20 + i % 3, 20, 3), dtype=np.uint8) for i in range(40)]
    return npz(folder, x_train=odd)


def weights(folder):
    save_file(dict(build_model(Choice("vgg8", {"width": 2}), 10, (1, 28, 28)).state_dict()), folder / "w.safetensors")
    return "digits"


BAD = {
    "images of different sizes": (sizes, "mlp", {}, "must hold plain, intact arrays"),
    "labels out of range": (lambda f: npz(f, y_test=np.arange(8)), "mlp", {}, "must only use the labels 0 to 3 of y_"),
    "a missing split": (lambda f: npz(f, x_test=None, y_test=None), "mlp", {}, "got no x_test and no y_test"),
    "a missing folder": (lambda f: tree(f, ("train",)), "mlp", {}, "got no test; sort the images so"),
    "no such file": (lambda f: "npz:other.npz", "mlp", {}, "path of npz must be there, got nothing at"),
    "no such folder": (lambda f: "imagefolder:other", "mlp", {}, "path of imagefolder must be there, got nothing at"),
    "grey images for an RGB model": (
        lambda f: "digits",
        "torchvision:resnet18",
        {},
        "must get RGB images (3 channels)",
    ),
    "weights of another architecture": (
        weights,
        "mlp",
        {"weights": "w.safetensors"},
        "must be of the architecture of model mlp",
    ),
    "an unknown network of torchvision": (lambda f: "digits", "torchvision:resnet19", {}, "did you mean resnet1"),
    "images too small": (lambda f: "digits", "resnet18", {"stem": "imagenet"}, "at least 32 pixels, got 28"),
    "no subclasses": (lambda f: "digits", "mlp", {}, "must have a dataset with subclasses (cifar20), got digits"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_line(case, cli, make_spec, tmp_path):
    make, model, options, message = BAD[case]
    scenario = "subclass" if case == "no subclasses" else {"random": {"fraction": 0.2}}
    problems = [{"dataset": make(tmp_path), "models": [{"name": model, **options}], "scenarios": [scenario]}]
    said = cli("run", "{spec}", "--serial", "--data", str(tmp_path), spec=make_spec(problems=problems))
    assert said.code == 2, said.err
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def test_photographs_of_any_size_from_the_folder_to_the_leaderboard(cli, make_spec, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = make_spec(methods=["finetune"], search={"trials": 1}, recipe={"epochs": 1})
    spec["problems"] = [
        {
            "dataset": {"name": tree(tmp_path), "side": 32},
            "models": [{"name": "vit_tiny", "width": 8, "depth": 1, "heads": 2}],
            "scenarios": [{"random": {"fraction": 0.2}}],
        }
    ]
    said = cli("run", "{spec}", "--serial", "--data", str(tmp_path), "--results", "out", spec=spec)
    assert said.code == 0, said.err
    finals = rb.load_trials(tmp_path / "out").query("method == 'finetune' and phase == 'final'")
    assert list(finals.status) == ["ok"]
    assert list(finals.dataset) == ["imagefolder:photos(side=32)"]
