"""Registries: names, metadata, and plug-ins of other packages that are really installed on a path."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from raybench import load_leaderboard
from raybench.errors import UserError
from raybench.registry import KINDS, METHODS, Entry, MethodEntry, Registry, load_plugins
from raybench.testing import make_task, run_method


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; modules imported from it and methods registered by them are gone afterwards."""
    METHODS.names()
    entries, modules = dict(METHODS._entries), set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    METHODS._entries.clear()
    METHODS._entries.update(entries)
    METHODS._loaded = True
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


HALVES = '''
from raybench.registry import METHODS, NoParameters
from raybench.task import UnlearningTask


@METHODS.register("{name}", needs=set(), label="Halves")
def {name}(task, hp):
    """Half of every weight."""
    for p in task.model.parameters():
        p.data.mul_(0.5)
    return task.model
'''


def install(site: Path, module: str, source: str, group: str = "raybench.methods") -> None:
    """What pip leaves behind: the module, and a dist-info folder that names the entry point."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{module} = {module}\n")


def reload_methods() -> None:
    METHODS._loaded = False
    METHODS.names()


def toy_registry() -> Registry[Entry]:
    registry: Registry[Entry] = Registry("toy", Entry, "raybench.scenarios")
    registry._loaded = True
    return registry


def test_register_returns_the_function_and_keeps_metadata() -> None:
    registry = toy_registry()

    def plain() -> int:
        """First line.

        Second.
        """
        return 3

    assert registry.register("plain", version=4, paper="p")(plain) is plain
    entry = registry["plain"]
    assert (entry.fn, entry.label, entry.version, entry.paper) == (plain, "plain", 4, "p")
    assert entry.summary == "First line."
    assert "plain" in registry
    assert registry.names() == ["plain"]


def test_a_second_function_of_the_same_name_raises() -> None:
    registry = toy_registry()

    def one() -> None: ...
    def two() -> None: ...

    registry.register("x")(one)
    registry.register("x")(one)  # the same function again: a module that was reloaded
    with pytest.raises(ValueError, match=r"'x' is registered twice: .*one and .*two"):
        registry.register("x")(two)
    assert registry["x"].fn is one


def test_unknown_metadata_and_unknown_words_raise() -> None:
    registry = Registry("method", MethodEntry, "raybench.methods")

    def fn() -> None: ...

    with pytest.raises(TypeError, match="colour"):
        registry.register("x", colour="red")(fn)
    with pytest.raises(ValueError, match=r"needs of method 'x' must be a set of \['forget', 'retain', 'validation'\]"):
        registry.register("x", needs="forget")(fn)  # braces forgotten: letters
    with pytest.raises(ValueError, match="scope"):
        registry.register("x", scope={"klass"})(fn)
    with pytest.raises(ValueError, match="needs"):
        registry.register("x", needs={"test"})(fn)


def test_unknown_names_name_the_nearest() -> None:
    with pytest.raises(UserError, match=r"method must be a registered name, got 'fintune'; did you mean finetune"):
        METHODS["fintune"]
    with pytest.raises(UserError, match=r"got 'qqqqqqqq'; known: .*finetune"):
        METHODS["qqqqqqqq"]
    assert "fintune" not in METHODS


def test_only_families_take_a_name_behind_a_colon() -> None:
    registry = toy_registry()

    def timm(num_classes: int, *, family: str) -> str:
        return family

    def plain(num_classes: int) -> None: ...

    registry.register("timm")(timm)
    registry.register("plain")(plain)
    assert registry["timm:resnet18"].name == "timm"
    assert "timm:resnet18" in registry
    assert "plain:x" not in registry
    with pytest.raises(UserError, match="plain:x"):
        registry["plain:x"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_found_and_loading_twice_is_harmless(kind: str) -> None:
    registry = KINDS[kind]
    names = registry.names()
    assert names
    entries = dict(registry._entries)
    registry._loaded = False
    assert registry.names() == names
    assert all(registry._entries[name] is entries[name] for name in names)


def test_an_installed_entry_point_is_loaded_and_its_method_runs(site: Path) -> None:
    install(site, "rb_third", HALVES.format(name="halves"))
    assert "halves" not in METHODS
    reload_methods()
    assert METHODS["halves"].label == "Halves"
    task = make_task("halves", model="mlp", samples=120, model_options=(("hidden", (4,)),))
    before = nn.utils.parameters_to_vector(task.model.parameters()).clone()
    after = nn.utils.parameters_to_vector(run_method("halves", task).parameters())
    assert torch.equal(after, before / 2)
    reload_methods()
    assert METHODS["halves"].label == "Halves"


def test_a_method_of_another_package_is_run_and_ranked(site: Path) -> None:
    """As its author would: installed, named in a spec, started from the command line in a process of its own."""
    install(site, "rb_guest", HALVES.format(name="guest"))
    methods = ["original", "retrain", "guest", {"name": "finetune", "hparams": {"epochs": 1}}]
    problem = {"dataset": "digits", "models": ["mlp"], "scenarios": [{"label_noise": {"fraction": 0.2}}]}
    spec = {"name": "guests", "problems": [{**problem, "recipe": {"epochs": 4}}], "methods": methods}
    (site / "guests.yaml").write_text(yaml.safe_dump({**spec, "seeds": {"train": [0, 1, 2]}, "gold_seeds": 1}))
    command = [
        sys.executable,
        "-m",
        "raybench",
        "run",
        "guests.yaml",
        "--serial",
        "--results",
        "out",
        "--store",
        "store",
    ]
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=site, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = load_leaderboard(str(site / "out")).set_index("method")
    assert lines.loc["guest", "n"] == 3
    assert {int(lines.loc[name, "rank_group"]) for name in ("guest", "finetune")} <= {1, 2}


def test_an_entry_point_that_does_not_import_is_named_and_hides_nothing(site: Path) -> None:
    install(site, "rb_broken", "import raybench_no_such_module\n")
    METHODS._loaded = False
    for _ in range(2):  # the second look-up must not pretend that all was loaded
        with pytest.raises(UserError, match=r"entry point 'rb_broken' .*rb.broken.dist must import.*no_such_module"):
            METHODS.names()


def test_plugins_are_importable_names(site: Path) -> None:
    (site / "rb_plugin.py").write_text(HALVES.format(name="thirds"))
    load_plugins(("rb_plugin",))
    load_plugins(("rb_plugin",))
    assert "thirds" in METHODS
    with pytest.raises(UserError, match=r"plugins must be importable module names, got 'rb_absent'"):
        load_plugins(("rb_absent",))


def test_a_plugin_may_not_take_a_name_that_is_taken(site: Path) -> None:
    (site / "rb_thief.py").write_text(HALVES.format(name="finetune"))
    with pytest.raises(UserError, match=r"finetune.*registered twice"):
        load_plugins(("rb_thief",))
    assert METHODS["finetune"].fn.__module__ == "raybench.methods.finetune"
