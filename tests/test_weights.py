"""Pretrained weights from a file: whose keys fit, what is refused, and what identifies a problem that starts so."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from raybench.errors import UserError
from raybench.experiment import make_experiment, with_files
from raybench.files import file_digest
from raybench.problem import build_model
from raybench.seeding import seeded_globals
from raybench.spec import Choice, ProblemSpec
from raybench.weights import load_weights

SHAPE = (3, 32, 32)


def built(name: str, num_classes: int = 4, seed: int = 0, shape=SHAPE, **options) -> nn.Module:
    with seeded_globals(seed):
        return build_model(Choice(name, options), num_classes, shape)


def save(model: nn.Module, path: Path) -> str:
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return str(path)


def same(one: nn.Module, other: nn.Module, but: tuple[str, ...] = ()) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items() if key not in but)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_own_keys(tmp_path, suffix):
    source = built("resnet8", width=2)
    path = save(source, tmp_path / f"w{suffix}")
    assert same(built("resnet8", seed=1, width=2, weights=path), source)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_and_data_parallel(tmp_path, wrapper):
    source = built("resnet8", width=2)
    tensors = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({wrapper: tensors, "epoch": 3}, tmp_path / "w.pt")
    assert same(built("resnet8", seed=1, width=2, weights=str(tmp_path / "w.pt")), source)


def test_a_new_head_where_the_classes_differ(tmp_path):
    source = built("resnet8", width=2, num_classes=9)
    path = save(source, tmp_path / "w.safetensors")
    fresh = built("resnet8", seed=1, width=2)
    model = built("resnet8", seed=1, width=2)
    assert load_weights(model, Path(path), "resnet8")
    assert same(source, model, but=("head.weight", "head.bias"))
    assert torch.equal(model.head.weight, fresh.head.weight)
    assert not load_weights(built("resnet8", width=2, num_classes=9), Path(path), "resnet8")


def test_files_of_torchvision_fit_the_model_of_the_same_name(tmp_path):
    with seeded_globals(3):
        theirs = models.resnet18(num_classes=4)
    tensors = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}  # an old file
    save_file(tensors, tmp_path / "w.safetensors")
    for name, options in (("resnet18", {"stem": "imagenet"}), ("torchvision:resnet18", {})):
        ours = built(name, shape=(3, 64, 64), weights=str(tmp_path / "w.safetensors"), **options).eval()
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(ours(x), theirs.eval()(x))


def test_files_of_timm_fit_timms_model(tmp_path):
    timm = pytest.importorskip("timm", reason="timm:<name> needs the extra timm")
    theirs = timm.create_model("convnext_atto", num_classes=4)
    path = save(theirs, tmp_path / "w.safetensors")
    x = torch.randn(2, *SHAPE)
    ours = built("timm:convnext_atto", weights=path).eval()
    torch.testing.assert_close(ours(x), theirs.eval()(x), atol=1e-5, rtol=1e-4)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_refused(tmp_path):
    resnet = save(built("resnet8", width=2), tmp_path / "resnet8.safetensors")
    with pytest.raises(UserError, match=r"resnet8.safetensors must be of the architecture of model vgg8, got none nam"):
        built("vgg8", width=2, weights=resnet)
    with pytest.raises(UserError, match=r"must be of the architecture of model resnet8, got none named blocks"):
        built("resnet8", width=2, weights=save(built("resnet20", width=2).blocks[0], tmp_path / "part.pt"))
    with pytest.raises(UserError, match=r"must be of the architecture of model resnet8, got also blocks.1.1"):
        built("resnet8", width=2, weights=save(built("resnet20", width=2), tmp_path / "deep.pt"))
    with pytest.raises(
        UserError, match=r"must fit model resnet8, got blocks.0.0.weight of shape \[2, 3, 3, 3\] for \[4"
    ):
        built("resnet8", width=4, weights=resnet)
    with pytest.raises(
        UserError, match=r"of shape \[2, 3, 3, 3\] for \[2, 1, 3, 3\]; they are for RGB images, so load"
    ):
        built("resnet8", width=2, shape=(1, 28, 28), weights=resnet)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(
        UserError, match=r"bad.safetensors must be a safetensors file or a state dict .* got .*; convert"
    ):
        built("resnet8", weights=str(tmp_path / "bad.safetensors"))
    torch.save({"a": 3}, tmp_path / "numbers.pt")
    with pytest.raises(UserError, match=r"numbers.pt must hold named tensors only, got something else; save"):
        built("resnet8", weights=str(tmp_path / "numbers.pt"))
    torch.save({"a": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match=r"bomb.pt must be a safetensors file or a state dict"):
        built("resnet8", weights=str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "exploded").exists()


def problem_of(path: str, root: str | None = None) -> ProblemSpec:
    spec = {
        "name": "w",
        "problems": [{"dataset": "digits", "models": [{"name": "mlp", "weights": path}], "scenarios": ["class"]}],
        "methods": ["finetune"],
    }
    experiment, digests = with_files(make_experiment(spec), root)
    (cell,) = experiment.cells
    versions = {"weights": digests[cell.model.label]}
    return ProblemSpec(cell.dataset, "c", cell.model, cell.scenario, {}, 0, versions=versions)


def test_the_content_identifies_a_problem_and_not_the_path(tmp_path):
    shape = (1, 28, 28)
    one = save(built("mlp", 10, 0, shape), tmp_path / "one.safetensors")
    (tmp_path / "sub").mkdir()
    copy = str(shutil.copy(one, tmp_path / "sub" / "copy.safetensors"))
    other = save(built("mlp", 10, 1, shape), tmp_path / "other.safetensors")
    assert problem_of(one).id == problem_of(copy).id != problem_of(other).id
    assert problem_of("sub/copy.safetensors", str(tmp_path)).model.options["weights"] == copy
    assert problem_of(one).model.label == "mlp(weights=one.safetensors)"
    plain = dataclasses.replace(problem_of(one), model=Choice("mlp"), versions={})
    assert plain.id != problem_of(one).id


def test_bad_paths(tmp_path):
    with pytest.raises(UserError, match=r"weights of mlp must be a file, got nothing at no.pt; give an absolute"):
        problem_of("no.pt")
    with pytest.raises(UserError, match=r"weights of mlp must be the path of a file, got 3; write it as text"):
        problem_of(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"gone.pt must be on every node, got No such file or directory; copy it there"):
        file_digest(tmp_path / "gone.pt")


def test_a_run_starts_from_the_weights_and_says_that_the_head_is_new(cli, make_spec, tmp_path):
    save(built("mlp", 7, 5, (1, 28, 28), hidden=[8]), tmp_path / "w.safetensors")
    spec = make_spec(methods=["gradient_ascent"], recipe={"epochs": 0})
    spec["problems"][0]["models"] = [{"name": "mlp", "hidden": [8], "weights": "w.safetensors"}]
    spec["search"] = {"trials": 1}
    said = cli("run", "{spec}", "--serial", "--data", str(tmp_path), spec=spec)
    assert said.code in (0, 1), said.err
    assert "mlp(hidden=8, weights=w.safetensors): the weights are for other classes, so the head starts" in (
        said.out + said.err
    )
    save(built("vgg8", 7, 5, (1, 28, 28), width=2), tmp_path / "w.safetensors")
    refused = cli("run", "{spec}", "--serial", "--data", str(tmp_path), spec=spec)
    assert refused.code == 2
    assert "must be of the architecture of model mlp" in refused.err
