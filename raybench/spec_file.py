"""The YAML of a spec: where it is found, ``--set``, and the shape pydantic holds it to.

pydantic stands at this edge only; everything further in is a frozen dataclass (``raybench.experiment``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raybench.errors import UserError, nearest, unknown
from raybench.seeding import canonical


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class SeedsItem(Strict):
    train: list[int] = Field(default=[0, 1, 2], min_length=1)
    unlearn: list[int] = Field(default=[0], min_length=1)
    evaluate: int = 0
    split: int = 0
    draw: int = 0


class SearchItem(Strict):
    trials: int = Field(default=8, ge=1)
    round_size: int = Field(default=4, ge=1)
    sampler: str = "tpe"
    train_seeds: Literal["first", "all"] | list[int] = "first"
    objective: Literal["distance"] = "distance"
    select: str | list[str] = "distance"


class ProblemItem(Strict):
    dataset: str | dict[str, Any]
    models: list[str | dict[str, Any]] = Field(min_length=1)
    scenarios: list[str | dict[str, Any]] = Field(min_length=1)
    recipe: dict[str, Any] = Field(default_factory=dict)


class MethodItem(Strict):
    name: str
    variant: str | None = None
    hparams: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)
    sweep: dict[str, list[Any]] = Field(default_factory=dict)
    training: dict[str, Any] | list[dict[str, Any]] = Field(default_factory=dict)


class SpecFile(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    plugins: list[str] = Field(default_factory=list)
    problems: list[ProblemItem] = Field(min_length=1)
    methods: list[str | MethodItem] = Field(min_length=1)
    seeds: SeedsItem = SeedsItem()
    gold_seeds: int = Field(default=2, ge=1)
    search: SearchItem = SearchItem()
    recipe: dict[str, Any] = Field(default_factory=dict)
    validation: float = Field(default=0.1, gt=0, lt=1)
    metrics: list[str] | None = None
    resources: dict[Literal["cpu", "gpu"], float] = Field(default_factory=dict)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1)
    time_limit: float | None = Field(default=None, gt=0)
    timing: Literal["shared", "exclusive"] = "shared"
    keep: list[Literal["outputs", "weights"]] = ["outputs"]


def shipped_specs() -> list[str]:
    """Names of the specs that come with the package."""
    folder = resources.files("raybench") / "specs"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def read_spec(name: str) -> dict[str, Any]:
    """The YAML of a shipped spec (by name) or of a file (by path)."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text()
        except OSError as error:
            raise UserError(
                f"a spec must be a readable YAML file, got {name} ({error.strerror}); check the path"
            ) from error
    elif name in shipped_specs():
        text = (resources.files("raybench") / "specs" / f"{name}.yaml").read_text()
    else:
        raise unknown("spec (a shipped name or a path ending in .yaml)", name, shipped_specs())
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"a spec must be valid YAML, got {name}: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"a spec must be a mapping with name, problems and methods, got {name}: {type(raw).__name__}")
    return raw


def apply_settings(raw: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """``--set a.b.c=value`` (YAML values; list items by position, methods also by name)."""
    tree: dict[str, Any] = canonical(raw)
    for setting in settings:
        path, sign, value = setting.partition("=")
        if not sign or not path:
            raise UserError(f"--set must be key=value such as search.trials=4, got {setting!r}")
        keys = path.split(".")
        node: Any = tree
        for key, following in zip(keys, [*keys[1:], None], strict=True):
            last = following is None
            where: Any = key
            if isinstance(node, list):
                where = _position(node, key, setting)
                if isinstance(node[where], str) and not last:
                    node[where] = {"name": node[where]}
            elif not isinstance(node, dict):
                raise UserError(f"--set {setting}: {key!r} has nothing below it; check the key")
            if last:
                node[where] = yaml.safe_load(value)
            else:
                node = node.setdefault(where, {}) if isinstance(node, dict) else node[where]
    return tree


def _position(items: list[Any], key: str, setting: str) -> int:
    names = [item.get("name", item.get("dataset")) if isinstance(item, dict) else item for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise UserError(f"--set {setting}: {key!r} must be a position or one of {', '.join(map(str, names))}")


def parse_spec(raw: Mapping[str, Any]) -> SpecFile:
    """The spec as typed items; the first thing wrong with it is a one-line ``UserError``."""
    try:
        return SpecFile.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    """The first problem of a pydantic error as rule, value, way out."""
    first = error.errors()[0]
    where = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith(("_", "function-", "list[", "dict["))
    )
    value = first["input"]
    shown = repr(value) if not isinstance(value, dict | list) or len(repr(value)) < 80 else f"a {type(value).__name__}"
    if first["type"] == "extra_forbidden":
        return f"{where} is not a key of a spec{_close(str(first['loc'][-1]))}; remove or rename it"
    if first["type"] == "missing":
        return f"{where} is required and missing in the spec; add it"
    return f"{where}: {first['msg']}, got {shown}; change it in the spec"


def _close(key: str) -> str:
    known = {
        name for model in (SpecFile, ProblemItem, MethodItem, SeedsItem, SearchItem) for name in model.model_fields
    }
    close = nearest(key, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""
