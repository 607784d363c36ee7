"""What ``raybench list`` tells of registered things."""

from __future__ import annotations

import json

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from raybench.catalogue import catalogue, describe_range, records
from raybench.registry import KINDS

KEYS = {"name", "label", "version", "paper", "summary"}
# What the field and the source documents use, by the names that specs are written with.
PROMISED = {
    "datasets": "digits mnist fashion_mnist kmnist cifar10 cifar100 cifar20 svhn stl10 tinyimagenet cub stanford_cars "
    "imagenet imagefolder npz",
    "models": "mlp lenet5 allcnn vgg8 resnet8 resnet20 resnet9 resnet18 resnet50 resnext50 vgg16 vit_tiny vit_b16 "
    "swin_t convnext_t pvt_v2_b0 timm torchvision",
    "scenarios": "class random subclass index label_noise overfit backdoor memorization repeated partial",
    "methods": "original retrain deepclean mnemonic mnemonic_data gkt gkt_plus emmn deep_inversion rewind afim",
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_registered_name_is_listed_with_its_metadata(kind: str) -> None:
    found = json.loads(catalogue(kind, "json"))
    assert [record["name"] for record in found] == KINDS[kind].names()
    for record in found:
        assert record.keys() >= KEYS
        assert record["summary"], record["name"]


@pytest.mark.parametrize("kind", PROMISED)
def test_promised_names_are_listed(kind: str) -> None:
    assert set(PROMISED[kind].split()) <= {record["name"] for record in json.loads(catalogue(kind, "json"))}


def test_methods_tell_their_fields_with_ranges_and_words() -> None:
    methods = {record["name"]: record for record in records("methods")}
    assert methods["retrain"]["reference"]
    assert methods["retrain"]["hparams"] == []
    assert methods["mnemonic"]["training"] == "mnemonic"
    assert "t_mix" in {field["name"] for field in methods["mnemonic"]["training_hparams"]}
    gamma = next(field for field in methods["deepclean"]["hparams"] if field["name"] == "gamma")
    assert gamma["role"] == "scientific"
    assert gamma["searched"].endswith("log")
    for method in methods.values():
        assert all(field["doc"] for field in method["hparams"]), method["name"]


def test_attacks_tell_what_their_number_is() -> None:
    metrics = {record["name"]: record for record in json.loads(catalogue("metrics", "json"))}
    assert metrics["test_accuracy"]["attack"] is None
    opposite = [metrics[name]["attack"]["reported_quantity"] for name in ("confidence_attack", "entropy_regression")]
    assert opposite == ["share of D_f judged non-member", "share of D_f judged member"]
    attack = metrics["loss_attack_auc"]["attack"]
    assert list(attack) == ["attack", "score", "fit_on", "apply_to", "reported_quantity"]
    assert all(attack.values())


def test_table_has_a_row_per_name() -> None:
    lines = catalogue("methods", "table").splitlines()
    assert lines[0].split()[:3] == ["name", "needs", "scope"]
    assert any(line.startswith("deepclean") and "gamma" in line for line in lines)


def test_specs_have_descriptions() -> None:
    for record in records("specs"):
        assert record["description"], record["name"]


@pytest.mark.parametrize(
    ("distribution", "text"),
    [
        (FloatDistribution(0.5, 50.0, log=True), "0.5..50 log"),
        (IntDistribution(1, 10), "1..10"),
        (CategoricalDistribution([None, 0.05, 1]), "{None, 0.05, 1}"),
    ],
)
def test_ranges_in_a_few_characters(distribution: object, text: str) -> None:
    assert describe_range(distribution) == text
