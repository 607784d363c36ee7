"""The command line: bad input is one line and exit code 2, and nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import assert_refused, python

Change = Callable[[dict[str, Any]], Any]


def problem(**changes: Any) -> Change:
    return lambda spec: spec["problems"][0].update(changes)


def method(**item: Any) -> Change:
    return lambda spec: spec.update(methods=[{"name": "finetune", **item}])


def top(**changes: Any) -> Change:
    return lambda spec: spec.update(changes)


def search(**changes: Any) -> Change:
    return lambda spec: spec["search"].update(changes)


def without(key: str) -> Change:
    return lambda spec: spec.pop(key)


def scenario(name: str, **options: Any) -> Change:
    return problem(scenarios=[{"name": name, **options}])


# what is wrong -> the change to a good spec, and what the line must say (the place, the value, the way out)
BAD_SPECS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "unknown method": (top(methods=["fintune"]), ("method", "'fintune'", "did you mean finetune?")),
    "unknown method far off": (top(methods=["zzz"]), ("'zzz'", "known:", "deepclean")),
    "unknown model": (problem(models=["mpl"]), ("model", "'mpl'", "did you mean mlp?")),
    "unknown dataset": (problem(dataset="digit"), ("dataset", "'digit'", "did you mean digits?")),
    "unknown scenario": (scenario("clas"), ("scenario", "'clas'", "did you mean class?")),
    "unknown metric": (top(metrics=["retain_acuracy"]), ("metric", "did you mean", "retain_accuracy")),
    "unknown sampler": (search(sampler="tpa"), ("search.sampler", "'tpa'", "tpe")),
    "unknown rule": (search(select="distanse"), ("search.select", "'distanse'", "did you mean distance?")),
    "unknown objective": (search(objective="seconds"), ("search.objective", "'seconds'", "distance")),
    "unknown key": (top(metods=["finetune"]), ("'metods'", "did you mean methods?")),
    "mistyped key in place of the right one": (
        lambda spec: spec.update(problem=spec.pop("problems")),
        ("'problem'", "did you mean problems?"),
    ),
    "unknown key far off": (top(zzz=1), ("'zzz'", "it has", "problems")),
    "unknown key of search": (search(trails=3), ("search", "'trails'", "did you mean trials?")),
    "unknown key of seeds": (top(seeds={"trian": [0]}), ("seeds", "'trian'", "did you mean train?")),
    "unknown key of a problem": (problem(modles=[]), ("problems.0", "'modles'", "did you mean models?")),
    "unknown key of a method": (method(hparms={"lr": 1}), ("methods.0", "'hparms'", "did you mean hparams?")),
    "unknown key of resources": (top(resources={"gpus": 1}), ("resources", "'gpus'", "did you mean gpu?")),
    "unknown recipe key": (top(recipe={"epoch": 3}), ("recipe", "'epoch'", "did you mean epochs?")),
    "unknown recipe key of a problem": (problem(recipe={"epoch": 3}), ("'epoch'", "did you mean epochs?")),
    "unknown hyperparameter": (method(hparams={"learning_rate": 1}), ("finetune", "'learning_rate'", "lr")),
    "unknown searched parameter": (method(space={"lrr": [1]}), ("finetune", "'lrr'", "did you mean lr?")),
    "unknown swept parameter": (method(sweep={"epoch": [1]}), ("finetune", "'epoch'", "did you mean epochs?")),
    "unknown dataset option": (problem(dataset={"name": "digits", "size": 3}), ("digits", "'size'", "train_size")),
    "unknown model option": (problem(models=[{"mlp": {"hiden": 3}}]), ("mlp", "'hiden'", "did you mean hidden?")),
    "unknown scenario option": (scenario("class", clases=[0]), ("class", "'clases'", "did you mean classes?")),
    "family that is none": (top(methods=["finetune:fast"]), ("'finetune:fast'", "did you mean finetune?")),
    "family of a dataset that is none": (problem(dataset="digits:x"), ("'digits:x'", "did you mean digits?")),
    "missing problems": (without("problems"), ("problems must be given",)),
    "missing methods": (without("methods"), ("methods must be given",)),
    "missing name": (without("name"), ("name must be given",)),
    "missing models": (lambda spec: spec["problems"][0].pop("models"), ("problems.0.models must be given",)),
    "no name of a method": (top(methods=[{"hparams": {}}]), ("methods.0.name must be given",)),
    "no problems": (top(problems=[]), ("problems must name at least one", "[]")),
    "no methods": (top(methods=[]), ("methods must name at least one", "[]")),
    "no models": (problem(models=[]), ("problems.0.models must name at least one",)),
    "no scenarios": (problem(scenarios=[]), ("problems.0.scenarios must name at least one",)),
    "no train seeds": (top(seeds={"train": []}), ("seeds.train must name at least one",)),
    "no unlearn seeds": (top(seeds={"unlearn": []}), ("seeds.unlearn must name at least one",)),
    "no search seeds": (search(train_seeds=[]), ("search.train_seeds", "at least one")),
    "no rules": (search(select=[]), ("search.select must name at least one",)),
    "no metrics": (top(metrics=[]), ("metrics must name at least one",)),
    "no choices": (method(space={"lr": []}), ("finetune.lr", "at least one", "[]")),
    "no sweep values": (method(sweep={"lr": []}), ("finetune.lr", "at least one", "[]")),
    "no trainings": (top(methods=[{"name": "mnemonic", "training": []}]), ("training must name at least one",)),
    "no classes": (scenario("class", classes=[]), ("classes", "at least one")),
    "an empty model": (problem(models=[{}]), ("model", "{}", "name")),
    "methods no list": (top(methods="finetune"), ("methods must be a list", "'finetune'")),
    "methods a mapping": (top(methods={"finetune": None}), ("methods must be a list", "finetune")),
    "method a number": (top(methods=[3]), ("methods.0 must be a name, or a mapping", "got 3")),
    "dataset a number": (problem(dataset=3), ("problems.0.dataset must be a name", "got 3")),
    "name of a model a number": (problem(models=[{"name": 3}]), ("model", "must be text", "got 3")),
    "models no list": (problem(models="mlp"), ("problems.0.models must be a list", "'mlp'")),
    "problems no list": (top(problems={"dataset": "digits"}), ("problems must be a list",)),
    "search a number": (top(search=4), ("search must be a mapping", "got 4")),
    "search empty": (top(search=None), ("search must be a mapping", "got None")),
    "options no mapping": (problem(models=[{"mlp": 8}]), ("mlp must be a mapping", "got 8")),
    "name a number": (top(name=3), ("name must be text", "got 3")),
    "name a path": (top(name="../x"), ("name must be letters", "'../x'")),
    "trials a word": (search(trials="many"), ("search.trials must be a whole number", "'many'")),
    "trials a fraction": (search(trials=2.5), ("search.trials must be a whole number", "2.5")),
    "trials yes": (search(trials=True), ("search.trials must be a number", "True")),
    "trials 0": (search(trials=0), ("search.trials must be at least 1", "got 0")),
    "round without end": (search(round_size=2**70), ("search.round_size must be at most 1000",)),
    "trials without end": (search(trials=2**70), ("search.trials must be at most 100000",)),
    "gold models without end": (top(gold_seeds=2**70), ("gold_seeds must be at most 1000",)),
    "round of 0": (search(round_size=0), ("search.round_size must be at least 1",)),
    "search seeds a word": (search(train_seeds="some"), ("search.train_seeds must be first, all or a list", "'some'")),
    "search seed a word": (search(train_seeds=["a"]), ("search.train_seeds.0 must be a whole number", "'a'")),
    "search seed not trained": (search(train_seeds=[7]), ("search.train_seeds", "[0]", "7")),
    "search seed twice": (search(train_seeds=[0, 0]), ("search.train_seeds must not repeat", "[0, 0]")),
    "rule twice": (search(select=["knee", "knee"]), ("search.select must not repeat",)),
    "train seed twice": (top(seeds={"train": [1, 1]}), ("seeds.train must not repeat", "[1, 1]")),
    "unlearn seed twice": (top(seeds={"unlearn": [1, 1]}), ("seeds.unlearn must not repeat",)),
    "negative seed": (top(seeds={"train": [-1]}), ("seeds.train.0 must be at least 0", "got -1")),
    "huge seed": (top(seeds={"train": [2**40]}), ("seeds.train.0 must be below",)),
    "no gold model": (top(gold_seeds=0), ("gold_seeds must be at least 1", "got 0")),
    "validation 0": (top(validation=0), ("validation must be above 0", "got 0")),
    "validation 1": (top(validation=1), ("validation must be below 1", "got 1")),
    "threads 0": (top(threads=0), ("threads must be at least 1",)),
    "time limit 0": (top(time_limit=0), ("time_limit must be above 0",)),
    "negative resources": (top(resources={"cpu": -1}), ("resources.cpu must be at least 0", "got -1")),
    "cuda without a GPU": (top(device="cuda", resources={"gpu": 0}), ("device: cuda", "resources.gpu", "got 0")),
    "unknown device": (top(device="gpu"), ("device must be one of", "'cuda'", "'gpu'")),
    "unknown timing": (top(timing="exact"), ("timing must be one of", "'exclusive'", "'exact'")),
    "unknown keep": (top(keep=["everything"]), ("keep.0 must be one of", "'weights'", "'everything'")),
    "plugin that is not there": (top(plugins=["no_such_module_xyz"]), ("plugins", "no_such_module_xyz", "PYTHONPATH")),
    "plugin without a name": (top(plugins=[""]), ("plugins", "''")),
    "relative plugin": (top(plugins=[".x"]), ("plugins", "'.x'")),
    "range upside down": (method(space={"lr": {"low": 1, "high": 0.1}}), ("finetune.lr", "low <= high", "swap")),
    "range without high": (method(space={"lr": {"low": 1}}), ("finetune.lr", "{low, high[, log][, step]}")),
    "range a number": (method(space={"lr": 3}), ("finetune.lr", "list of choices", "got 3")),
    "range with an unknown key": (
        method(space={"lr": {"low": 1, "high": 2, "logg": True}}),
        ("finetune.lr", "'logg'", "did you mean log"),
    ),
    "log range from 0": (method(space={"lr": {"low": 0, "high": 1, "log": True}}), ("finetune.lr", "low")),
    "step of a log range": (
        method(space={"lr": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}),
        ("finetune.lr", "step"),
    ),
    "step a word": (method(space={"epochs": {"low": 1, "high": 3, "step": "x"}}), ("finetune.epochs", "'x'")),
    "bounds of words": (method(space={"lr": {"low": "a", "high": "b"}}), ("finetune.lr", "'a'")),
    "choice of the wrong type": (method(space={"epochs": [1, "two"]}), ("finetune.epochs", "'two'")),
    "hyperparameter of the wrong type": (method(hparams={"epochs": "many"}), ("finetune.epochs", "int", "'many'")),
    "hyperparameter a fraction": (method(hparams={"epochs": 1.5}), ("finetune.epochs", "int", "1.5")),
    "hyperparameter of another choice": (method(hparams={"schedule": "step"}), ("finetune.schedule", "cosine", "step")),
    "hyperparameters no mapping": (method(hparams=[1]), ("methods.0.hparams must be a mapping",)),
    "fixed and searched": (method(hparams={"lr": 1}, space={"lr": [1]}), ("finetune.lr", "drop one")),
    "fixed and swept": (method(hparams={"lr": 1}, sweep={"lr": [1]}), ("finetune.lr", "hparams", "drop one")),
    "searched and swept": (method(space={"lr": [1]}, sweep={"lr": [1]}), ("finetune.lr", "space", "drop one")),
    "sweep no list": (method(sweep={"lr": 1}), ("methods.0.sweep.lr must be a list", "got 1")),
    "swept value of the wrong type": (method(sweep={"epochs": ["x"]}), ("finetune.epochs", "'x'")),
    "both thresholds": (
        top(methods=[{"name": "deepclean", "hparams": {"gamma": 1, "quantile": 0.1}}]),
        ("deepclean", "gamma", "quantile", "null"),
    ),
    "training where there is none": (method(training={"t_mix": 0.5}), ("finetune", "training", "leave it out")),
    "unknown training parameter": (
        top(methods=[{"name": "mnemonic", "training": {"tmix": 0.5}}]),
        ("training mnemonic", "'tmix'", "did you mean t_mix?"),
    ),
    "reference with settings": (
        top(methods=[{"name": "retrain", "hparams": {"lr": 1}}]),
        ("retrain", "reference", "hparams"),
    ),
    "same method twice": (top(methods=["finetune", "finetune"]), ("variant", "'finetune'", "twice")),
    "same cell twice": (problem(models=["mlp", "mlp"]), ("once", "mlp", "twice")),
    "class that is not there": (scenario("class", classes=[10]), ("got 10", "0, 1, 2")),
    "class -1": (scenario("class", classes=[-1]), ("classes", "-1")),
    "class of a word": (scenario("class", classes=["cat"]), ("classes", "'cat'")),
    "every class": (scenario("class", classes=list(range(10))), ("at least one class to retain",)),
    "fraction 0": (scenario("random", fraction=0), ("fraction", "above 0 and below 1", "got 0")),
    "fraction 1.5": (scenario("random", fraction=1.5), ("fraction", "above 0 and below 1", "got 1.5")),
    "noise 0": (scenario("label_noise", fraction=0), ("fraction", "above 0 and below 1")),
    "noise 1.5": (scenario("label_noise", fraction=1.5), ("fraction", "above 0 and below 1")),
    "count 0": (scenario("random", count=0), ("count", "at least 1", "got 0")),
    "count too large": (scenario("random", count=100_000), ("count 100000", "training samples")),
    "fraction and count": (scenario("random", count=3, fraction=0.1), ("exactly one of fraction and count",)),
    "neither fraction nor count": (problem(scenarios=["random"]), ("exactly one of fraction and count",)),
    "train_size a word": (problem(dataset={"name": "digits", "train_size": "x"}), ("train_size", "'x'")),
    "train_size 0": (problem(dataset={"name": "digits", "train_size": 0}), ("train_size", "got 0")),
    "train_size too large": (problem(dataset={"name": "digits", "train_size": 10**7}), ("train_size", "10000000")),
    "hidden a word": (problem(models=[{"mlp": {"hidden": "wide"}}]), ("mlp", "'wide'")),
    "hidden 0": (problem(models=[{"mlp": {"hidden": [0]}}]), ("mlp", "hidden", "0")),
    "unknown activation": (problem(models=[{"mlp": {"activation": "tanh"}}]), ("activation", "'tanh'", "relu")),
    "epochs of the recipe negative": (top(recipe={"epochs": -1}), ("recipe", "epochs", "-1")),
    "batch size 0": (top(recipe={"batch_size": 0}), ("recipe", "batch_size", "got 0")),
    "optimiser that is none": (top(recipe={"optimiser": "sdg"}), ("recipe.optimiser", "sgd", "'sdg'")),
    "lr of the recipe a word": (top(recipe={"lr": "fast"}), ("recipe.lr", "'fast'")),
    "not a number": (top(recipe={"lr": float("nan")}), ("recipe.lr", "finite", "nan")),
    "infinite": (method(hparams={"lr": float("inf")}), ("methods.0.hparams.lr", "finite", "inf")),
    "no file for npz": (problem(dataset={"name": "npz", "path": "no.npz"}), ("npz", "no.npz")),
    "npz without its path": (problem(dataset="npz"), ("npz", "path")),
    "mnist without a folder": (problem(dataset="mnist"), ("mnist", "--data", "--download")),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_bad_spec_is_one_line_and_nothing_is_trained(cli: Any, make_spec: Any, tmp_path: Path, case: str) -> None:
    change, fragments = BAD_SPECS[case]
    spec = make_spec()
    change(spec)
    said = cli("run", "{spec}", "--serial", "--results", "out", spec=spec)
    assert_refused(said, *fragments)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["unknown method", "range upside down", "class that is not there", "fraction 1.5"])
def test_plan_refuses_what_run_refuses(cli: Any, make_spec: Any, tmp_path: Path, case: str) -> None:
    change, fragments = BAD_SPECS[case]
    spec = make_spec()
    change(spec)
    assert_refused(cli("plan", "{spec}", "--results", "out", spec=spec), *fragments)
    assert not (tmp_path / "store").exists()


BAD_TEXTS = {
    "no mapping": ("- a\n- b\n", ("must be a mapping", "list")),
    "empty": ("", ("must be a mapping", "nothing")),
    "invalid YAML": ("name: [tiny\nmethods: {", ("valid YAML", "line 2")),
    "tab": ("name:\n\t- x\n", ("valid YAML", "line 2")),
    "two documents": ("name: a\n---\nname: b\n", ("valid YAML",)),
    "python tag": ("name: !!python/object/apply:os.system [ls]\n", ("valid YAML", "line 1")),
    "key twice": ("name: a\nmethods: [finetune]\nmethods: [deepclean]\n", ("'methods'", "twice", "line 3")),
    "a date": ("name: tiny\ndescription: 2020-01-01\n", ("description", "date", "quotes")),
    "a day that is none": ("name: 2020-13-41\n", ("valid YAML",)),
    "anchor in a circle": ("name: &a [*a]\n", ("nest", "flatten")),
    "control character": ("name: 'a\x01'\n", ("valid YAML",)),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_yaml_is_one_line(cli: Any, tmp_path: Path, case: str) -> None:
    text, fragments = BAD_TEXTS[case]
    (tmp_path / "bad.yaml").write_text(text)
    assert_refused(cli("run", "bad.yaml", "--serial"), "bad.yaml" if "YAML" in fragments[0] else "", *fragments)


def test_spec_that_is_no_text(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\xfe\n")
    assert_refused(cli("run", "bad.yaml", "--serial"), "UTF-8", "bad.yaml")


BAD_ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "missing file": (("run", "no.yaml", "--serial"), ("no.yaml", "No such file")),
    "folder as a spec": (("run", "folder.yaml", "--serial"), ("folder.yaml", "directory")),
    "unknown shipped spec": (("run", "quikstart", "--serial"), ("'quikstart'", "did you mean quickstart?")),
    "file without its suffix": (("run", "plain", "--serial"), ("'plain'", ".yaml", "rename")),
    "slots 0": (("run", "{spec}", "--slots", "0"), ("--slots must be at least 1", "got 0")),
    "an option of another command": (
        ("run", "{spec}", "--figurez", "x"),
        ("raybench run:", "--figurez", "raybench run --help"),
    ),
    "slots a word": (("run", "{spec}", "--slots", "two"), ("--slots", "'two'", "--help")),
    "set without a value": (("run", "{spec}", "--set", "search.trials"), ("key=value", "'search.trials'")),
    "set without a key": (("run", "{spec}", "--set", "=3"), ("key=value", "'=3'")),
    "set of an unknown key": (("run", "{spec}", "--set", "search.trails=3"), ("'trails'", "did you mean trials?")),
    "set below a value": (("run", "{spec}", "--set", "search.trials.x=3"), ("search.trials must be a mapping", "3")),
    "set below a name": (("run", "{spec}", "--set", "name.x.y=3"), ("name must be a mapping", "'tiny'")),
    "set beyond the end": (("run", "{spec}", "--set", "methods.9.name=x"), ("'9'", "0, 1, finetune")),
    "set of a method that is not there": (
        ("run", "{spec}", "--set", "methods.finetun.name=x"),
        ("'finetun'", "finetune, gradient_ascent"),
    ),
    "set with an empty key": (("run", "{spec}", "--set", "search..trials=3"), ("search", "''")),
    "set of a strange digit": (("run", "{spec}", "--set", "methods.².name=x"), ("'²'", "finetune")),
    "set of broken YAML": (("run", "{spec}", "--set", "search.trials=[1"), ("--set", "YAML", "search.trials=[1")),
    "set of a wrong type": (("run", "{spec}", "--set", "search.trials=x"), ("search.trials", "'x'")),
    "set of a date": (("run", "{spec}", "--set", "description=2020-01-01"), ("description", "date", "quotes")),
    "results below a file": (("run", "{spec}", "--serial", "--results", "plain/out"), ("plain/out", "--results")),
    "results a file": (("run", "{spec}", "--serial", "--results", "plain"), ("plain", "--results")),
    "results another URL": (("run", "{spec}", "--serial", "--results", "sftp://b/p"), ("sftp://b/p", "s3://", "mount")),
    "results of nobody": (("run", "{spec}", "--serial", "--results", "~nobody-here/x"), ("--results", "~nobody-here")),
    "results too long": (("run", "{spec}", "--serial", "--results", "x" * 300), ("results", "too long", "--results")),
    "results a link in a circle": (("run", "{spec}", "--serial", "--results", "circle/x"), ("--results", "circle")),
    "store below a file": (("run", "{spec}", "--serial", "--store", "plain/s"), ("store", "plain/s", "--store DIR")),
    "store with a key": (("run", "{spec}", "--serial", "--store", "s3://k:v@b/p"), ("s3://***@b/p", "environment")),
    "data absent": (
        ("run", "{spec}", "--serial", "--data", "nowhere", "--set", "problems.0.dataset=mnist"),
        ("mnist", "nowhere", "--data DIR", "--download"),
    ),
    "plan below a file": (("plan", "{spec}", "--results", "plain/out"), ("plain/out",)),
    "retry of nothing": (("retry", "--failed", "nowhere"), ("spec.yaml", "nowhere", "check the path")),
    "retry of a file": (("retry", "--failed", "plain"), ("spec.yaml", "plain")),
    "retry of a folder without a spec": (("retry", "--failed", "folder.yaml"), ("spec.yaml", "folder.yaml")),
    "retry of a broken spec": (("retry", "--failed", "broken", "--serial"), ("valid YAML", "broken/spec.yaml")),
    "retry without failed": (("retry", "folder.yaml"), ("--failed",)),
    "leaderboard of nothing": (("leaderboard", "nowhere"), ("results folder", "nowhere")),
    "leaderboard of a file": (("leaderboard", "plain"), ("results folder", "plain")),
    "leaderboard of an empty folder": (("leaderboard", "folder.yaml"), ("results folder", "folder.yaml")),
    "unknown command": (("rum", "x"), ("'rum'", "did you mean run?")),
    "unknown option": (("run", "x", "--seral"), ("--seral", "did you mean --serial?")),
    "unknown kind": (("list", "method"), ("'method'", "did you mean methods?")),
    "unknown format": (("leaderboard", "x", "--format", "jsn"), ("'jsn'", "did you mean json?")),
    "no spec": (("run",), ("spec", "--help")),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_one_line(cli: Any, make_spec: Any, tmp_path: Path, case: str) -> None:
    arguments, fragments = BAD_ARGUMENTS[case]
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "plain").write_text("not a folder")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "spec.yaml").write_text("name: [")
    assert_refused(cli(*arguments, spec=make_spec()), *fragments)
    assert not (tmp_path / "store" / "references").exists()


def test_relative_results_inside_a_job_are_refused(
    cli: Any, make_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for given in ((), ("--results", "out")):
        assert_refused(
            cli("run", "{spec}", "--serial", *given, spec=make_spec()), "--results must be an absolute folder", "job"
        )
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("case", ["unknown method", "class that is not there", "unknown key of a method"])
def test_bad_spec_through_the_real_command(make_spec: Any, tmp_path: Path, case: str) -> None:
    change, fragments = BAD_SPECS[case]
    spec = make_spec()
    change(spec)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    done = python(
        "-m", "raybench", "run", "spec.yaml", "--serial", "--results", "plain/out",
        cwd=tmp_path, RAYBENCH_STORE=str(tmp_path / "store"),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(fragment in done.stderr for fragment in fragments)
    assert list(tmp_path.iterdir()) == [tmp_path / "spec.yaml"]
