"""A validated spec: cells, lines, seeds, recipes (what is refused: tests/test_cli.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybench.errors import UserError
from raybench.experiment import load_experiment, make_experiment, scientific_fields
from raybench.registry import METHODS


def test_cells_are_models_by_scenarios_with_their_recipe(make_spec: Any) -> None:
    spec = make_spec(
        problems=[
            {
                "dataset": "digits",
                "models": ["mlp", {"lenet5": None}],
                "scenarios": [{"class": {"classes": 3}}, {"random": {"fraction": 0.1}}],
                "recipe": {"epochs": 7},
            },
            {
                "dataset": {"digits": {"train_size": 300}},
                "models": ["mlp"],
                "scenarios": [{"name": "random", "count": 5}],
            },
        ],
        recipe={"epochs": 3, "lr": 0.01},
    )
    cells = make_experiment(spec).cells
    labels = [(c.dataset.label, c.model.label, c.scenario.label) for c in cells]
    assert labels == [
        ("digits", "mlp", "class(3)"),
        ("digits", "mlp", "random(0.1)"),
        ("digits", "lenet5", "class(3)"),
        ("digits", "lenet5", "random(0.1)"),
        ("digits(train_size=300)", "mlp", "random(count=5)"),
    ]
    assert [(c.recipe.epochs, c.recipe.lr) for c in cells] == [(7, 0.01)] * 4 + [(3, 0.01)]


def test_a_dataset_brings_a_recipe_that_the_spec_goes_over(make_spec: Any) -> None:
    problems = [{"dataset": "svhn", "models": ["mlp"], "scenarios": ["class"], "recipe": {"lr": 0.3}}]
    (cell,) = make_experiment(make_spec(problems=problems, recipe={"epochs": 4})).cells
    assert (cell.recipe.epochs, cell.recipe.lr, cell.recipe.batch_size) == (4, 0.3, 128)


def test_distance_is_always_measured_and_metrics_come_once(make_spec: Any) -> None:
    metrics = make_experiment(make_spec(metrics=["retain_accuracy", "retain_accuracy", "distance"])).metrics
    assert metrics == ("retain_accuracy", "distance", "distance_validation")
    assert {"test_accuracy", "distance"} <= set(make_experiment(make_spec()).metrics)


@pytest.mark.parametrize(("given", "seeds"), [("first", (4,)), ("all", (4, 2)), ([2], (2,)), ([2, 4], (2, 4))])
def test_search_seeds(make_spec: Any, given: Any, seeds: tuple[int, ...]) -> None:
    spec = make_spec(seeds={"train": [4, 2]}, search={"train_seeds": given})
    assert make_experiment(spec).search.seeds == seeds


def test_variants_name_the_difference(make_spec: Any) -> None:
    spec = make_spec(
        methods=[
            "finetune",
            {"name": "finetune", "variant": "slow", "hparams": {"lr": 1e-3}},
            {"name": "deepclean", "sweep": {"gamma": [1, 2.5], "reset": ["zero", "none"]}},
            {"name": "mnemonic", "training": [{}, {"t_mix": 0.5}]},
        ]
    )
    found = [(c.method, c.variant) for c in make_experiment(spec).candidates]
    assert found == [
        ("finetune", ""),
        ("finetune", "slow"),
        ("deepclean", "gamma=1, reset=zero"),
        ("deepclean", "gamma=1, reset=none"),
        ("deepclean", "gamma=2.5, reset=zero"),
        ("deepclean", "gamma=2.5, reset=none"),
        ("mnemonic", "default training"),
        ("mnemonic", "t_mix=0.5"),
    ]


def test_one_training_option_needs_no_variant(make_spec: Any) -> None:
    (candidate,) = make_experiment(make_spec(methods=[{"name": "mnemonic", "training": {"t_mix": 0.5}}])).candidates
    assert candidate.variant == ""
    assert candidate.training.hparams["t_mix"] == 0.5


def test_the_raw_spec_makes_the_same_experiment_again(make_spec: Any) -> None:
    first = make_experiment(make_spec(methods=["finetune", {"name": "deepclean", "sweep": {"gamma": [1, 2]}}]))
    again = make_experiment(yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(first.raw)))))
    assert again == first


def test_load_reads_and_overrides(tmp_path: Path, make_spec: Any) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(make_spec()))
    assert load_experiment(str(path), ["search.trials=11"]).search.trials == 11


def test_resources_have_defaults(make_spec: Any) -> None:
    assert make_experiment(make_spec()).resources == {"cpu": 1.0, "gpu": 0.0}
    assert make_experiment(make_spec(resources={"gpu": 0.25})).resources == {"cpu": 1.0, "gpu": 0.25}


def test_resources_of_a_kind_of_node(make_spec: Any) -> None:
    asked = {"gpu": 0.5, "accelerator_type": "H100", "custom": {"big_disk": 1}}
    wanted = {"cpu": 1.0, "gpu": 0.5, "accelerator_type:H100": 0.001, "big_disk": 1.0}
    assert make_experiment(make_spec(resources=asked)).resources == wanted
    for bad, said in (
        ({"accelerator_type": "H100"}, r"accelerator_type needs resources\.gpu above 0, got H100"),
        ({"custom": {"GPU": 1}}, r"resources\.custom must name resources of your own nodes, got GPU"),
        ({"custom": {"big_disk": 0}}, r"custom\.big_disk must be above 0, got 0"),
    ):
        with pytest.raises(UserError, match=said):
            make_experiment(make_spec(resources=bad))


def test_scientific_fields_are_what_a_sweep_grids() -> None:
    assert scientific_fields(METHODS["deepclean"].hparams) == ["gamma"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no licence')", "import without an error, got RuntimeError from 'plug_bad_{n}'"),
        ("def f(:", "import without an error, got SyntaxError"),
        ("import no_such_thing_xyz", "no_such_thing_xyz"),
        (
            "from raybench.registry import METHODS\n@METHODS.register('finetune')\ndef f(task, hp): ...",
            "got ValueError .* is registered twice",
        ),
    ],
)
def test_a_plugin_that_does_not_import(
    tmp_path: Path, make_spec: Any, monkeypatch: pytest.MonkeyPatch, code: str, message: str, request: Any
) -> None:
    METHODS.names()  # what is built in comes first, as it does in a run
    name = f"plug_bad_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(UserError, match=message.replace("{n}", "[0-9]+")):
        make_experiment(make_spec(plugins=[name]))


@pytest.mark.parametrize("given", [{}, {"oracles": 3}, {"oracles": 3, "shadows": 2, "gold_seeds": 8}])
def test_the_oracle_pool_is_apart_from_the_models_that_give_the_floor(make_spec: Any, given: dict[str, int]) -> None:
    experiment = make_experiment(make_spec(**given))
    expected = [given.get(key, default) for key, default in (("oracles", 0), ("shadows", 0), ("gold_seeds", 2))]
    assert [experiment.oracles, experiment.shadows, experiment.gold_seeds] == expected


@pytest.mark.parametrize(
    ("device", "resources", "gpu", "measured"),
    [
        ("auto", {}, 0.0, False),
        ("auto", {"gpu": 0.5}, 0.5, False),
        ("auto", {"gpu": "measured"}, 1.0, True),
        ("cuda", {}, 1.0, True),
        ("cuda", {"gpu": 0.5}, 0.5, False),
    ],
)
def test_the_share_of_a_gpu_is_given_or_measured(
    make_spec: Any, device: str, resources: Any, gpu: float, measured: bool
) -> None:
    experiment = make_experiment(make_spec(device=device, resources=resources))
    assert (experiment.resources["gpu"], experiment.measured) == (gpu, measured)


def test_cuda_with_a_share_of_nothing_is_refused(make_spec: Any) -> None:
    with pytest.raises(UserError, match=r"needs resources\.gpu above 0, got 0; ask for a share such as 0\.25, or for"):
        make_experiment(make_spec(device="cuda", resources={"gpu": 0}))
