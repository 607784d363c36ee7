"""The YAML of a spec: where it is found, ``--set``, and the shape pydantic holds it to.

pydantic stands at this edge only; everything further in is a frozen dataclass (``raybench.experiment``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from raybench.errors import UserError, nearest
from raybench.seeding import canonical

SPEC = "spec.yaml"  # in a results folder: the spec as it ran
DEEPEST = 20  # a spec nests a handful of levels; YAML anchors can nest without end
MOST_SHOWN = 80  # characters of a value in a message
LARGEST = 100_000  # values in a spec; the largest shipped one has a few hundred


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would read yes as 1
        raise ValueError("must be a number")
    return value


def _named(value: Any) -> Any:
    if isinstance(value, str | Mapping):
        return value
    raise ValueError("must be a name, or a mapping {name: ..., options}")


def _seed_choice(value: Any) -> Any:
    if isinstance(value, list) or value in ("first", "all"):
        return value
    raise ValueError("must be first, all or a list of train seeds")


def _text_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _mapping_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Seed = Annotated[Whole, Field(ge=0, lt=2**31)]
Named = Annotated[str | dict[str, Any], BeforeValidator(_named)]


class Strict(BaseModel):
    """A part of a spec: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=False)


class SeedsItem(Strict):
    """``seeds:`` of training, unlearning, evaluation, validation split and scenario."""

    train: list[Seed] = Field(default=[0, 1, 2], min_length=1)
    unlearn: list[Seed] = Field(default=[0], min_length=1)
    evaluate: Seed = 0
    split: Seed = 0
    draw: Seed = 0


class SearchItem(Strict):
    """``search:`` how settings are looked for, and what chooses among them."""

    trials: Whole = Field(default=8, ge=1, le=100_000)
    round_size: Whole = Field(default=4, ge=1, le=1_000)
    sampler: str = "tpe"
    train_seeds: Annotated[Literal["first", "all"] | list[Seed], BeforeValidator(_seed_choice)] = "first"
    objective: Literal["distance", "retrained_free"] = "distance"
    samples: Whole | None = Field(default=None, ge=100)
    select: Annotated[list[str], BeforeValidator(_text_list)] = Field(default=["distance"], min_length=1)


class ResourcesItem(Strict):
    """What one trial takes, and on which kind of node."""

    cpu: Annotated[Real, Field(ge=0)] | None = None
    gpu: Annotated[Real, Field(ge=0)] | Literal["measured"] | None = None
    accelerator_type: str | None = Field(default=None, min_length=1)
    custom: dict[str, Annotated[Real, Field(gt=0)]] = Field(default_factory=dict)


class ProblemItem(Strict):
    """One entry of ``problems:``; its models and scenarios are crossed."""

    dataset: Named
    models: list[Named] = Field(min_length=1)
    scenarios: list[Named] = Field(min_length=1)
    recipe: dict[str, Any] = Field(default_factory=dict)
    train_workers: Whole = Field(default=1, ge=1, le=1024)


class MethodItem(Strict):
    """One entry of ``methods:``, a name alone or with what is fixed, searched and swept."""

    name: str
    variant: str | None = Field(default=None, pattern=r"^[^\x00-\x1f\x7f]*$", max_length=200)
    hparams: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)
    sweep: dict[str, list[Any]] = Field(default_factory=dict)
    stop: dict[str, Any] | None = None
    training: Annotated[list[dict[str, Any]], BeforeValidator(_mapping_list)] = Field(default=[{}], min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping):
            return value
        raise ValueError("must be a name, or a mapping {name: ..., hparams: ...}")


class SpecFile(Strict):
    """A whole spec, as it stands in YAML."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)
    description: str = ""
    plugins: list[str] = Field(default_factory=list)
    problems: list[ProblemItem] = Field(min_length=1)
    methods: list[MethodItem] = Field(min_length=1)
    seeds: SeedsItem = SeedsItem()
    gold_seeds: Whole = Field(default=2, ge=1, le=1_000)
    oracles: Whole = Field(default=0, ge=0, le=999)
    shadows: Whole = Field(default=0, ge=0, le=999)
    search: SearchItem = SearchItem()
    recipe: dict[str, Any] = Field(default_factory=dict)
    validation: Real = Field(default=0.1, gt=0, lt=1)
    metrics: list[str] | None = Field(default=None, min_length=1)
    resources: ResourcesItem = ResourcesItem()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Literal["one", "each"] = "one"
    threads: Whole = Field(default=1, ge=1, le=1024)
    time_limit: Real | None = Field(default=None, gt=0)
    timing: Literal["shared", "exclusive"] = "shared"
    keep: list[Literal["outputs", "weights"]] = ["outputs"]
    curves: bool = True


_PARTS: dict[str, type[Strict]] = {
    "seeds": SeedsItem,
    "search": SearchItem,
    "resources": ResourcesItem,
    "problems": ProblemItem,
    "methods": MethodItem,
}


class _Loader(yaml.SafeLoader):
    """YAML as it is, except that a key given twice is an error: the first one would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice in one mapping", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def shipped_specs() -> list[str]:
    """Names of the specs that come with the package."""
    folder = resources.files("raybench") / "specs"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def read_spec(name: str) -> dict[str, Any]:
    """The YAML of a shipped spec (by name) or of a file (by path)."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"a spec must be a readable YAML file, got {name} ({error.strerror}); check the path"
            ) from error
    elif name in shipped_specs():
        data = (resources.files("raybench") / "specs" / f"{name}.yaml").read_bytes()
    else:
        close = nearest(name, shipped_specs(), 1)
        hint = f"did you mean {close[0]}?" if close else f"shipped: {', '.join(shipped_specs()) or 'none'}"
        if path.is_file():
            hint = "rename the file so that it ends in .yaml"
        raise UserError(f"a spec must be a shipped name or a path that ends in .yaml, got {name!r}; {hint}")
    return decode_spec(data, name)


def decode_spec(data: bytes, name: str) -> dict[str, Any]:
    """The YAML of a spec from its bytes; ``name`` is for messages."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"a spec must be text in UTF-8, got {name} ({error}); save it as such") from error
    raw = _load_yaml(text, f"a spec must be valid YAML, got {name}")
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise UserError(f"a spec must be a mapping with name, problems and methods, got {found} in {name}; write one")
    return raw


def _load_yaml(text: str, rule: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise UserError(f"{rule}: it nests too deep; flatten it") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that does not exist
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise UserError(f"{rule}: {problem}{where}; mend it there") from error


def apply_settings(raw: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """``--set a.b.c=value`` (YAML values; list items by position, methods also by name)."""
    _check_plain(raw)
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
                above = ".".join(keys[: keys.index(key)])
                raise UserError(f"--set {setting}: {above} must be a mapping or a list, got {node!r}; check the key")
            if last:
                node[where] = _load_yaml(value, f"--set must have a YAML value, got {setting!r}")
            else:
                node = node.setdefault(where, {}) if isinstance(node, dict) else node[where]
    return tree


def _position(items: list[Any], key: str, setting: str) -> int:
    names = [item.get("name", item.get("dataset")) if isinstance(item, dict) else item for item in items]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    known = [str(position) for position in range(len(items))] + [name for name in names if isinstance(name, str)]
    raise UserError(f"--set {setting}: {key!r} must be one of {', '.join(known) or 'nothing, the list is empty'}")


def parse_spec(raw: Mapping[str, Any]) -> SpecFile:
    """The spec as typed items; the first thing wrong with it is a one-line ``UserError``."""
    _check_plain(raw)
    try:
        return SpecFile.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def _check_plain(value: Any, path: tuple[str, ...] = (), left: list[int] | None = None) -> None:
    """Specs are hashed and kept as JSON: text, finite numbers, true, false, null, lists and mappings of these. ``left``
    counts down, because YAML aliases can make a short file a spec without end."""
    left = [LARGEST] if left is None else left
    left[0] -= 1
    where = ".".join(path) or "a spec"
    if left[0] < 0:
        raise UserError(f"a spec must hold at most {LARGEST} values with its aliases written out, got more; shorten it")
    if len(path) > DEEPEST:
        raise UserError(f"a spec must not nest deeper than {DEEPEST} levels, got {'.'.join(path[:4])}...; flatten it")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_text(str(key), f"a key of {where}")
            _check_plain(item, (*path, str(key)), left)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, (*path, str(index)), left)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} must be a finite number, got {value}; write another, or leave it out")
    elif isinstance(value, str):
        _check_text(value, where)
    elif value is not None and not isinstance(value, int | float):
        raise UserError(
            f"{where} must be text, a number, true, false or null, got the {type(value).__name__} {value}; "
            "put it in quotes if it is meant as text"
        )


def _check_text(text: str, where: str) -> None:
    """Half of a surrogate pair can be written in YAML and kept in no file."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} must be text that UTF-8 can hold, got {text[:100]!r}; change it") from error


def _explain(error: ValidationError) -> str:
    """The most telling problem of a pydantic error as rule, value, way out.

    A mistyped key comes before the missing one that it was meant to be, and the deepest place first: of a union
    the shallow ones only say that the other branch does not fit.
    """
    found = min(error.errors(), key=lambda e: (e["type"] != "extra_forbidden", e["type"] == "missing", -len(e["loc"])))
    path = [str(part) for part in found["loc"] if not _is_branch(part)]
    where, value = ".".join(path), found["input"]
    if found["type"] == "extra_forbidden":
        owner = _PARTS[path[0]] if len(path) > 1 and path[0] in _PARTS else SpecFile
        place = f"{'.'.join(path[:-1])} " if len(path) > 1 else ""
        close = nearest(path[-1], owner.model_fields, 1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(owner.model_fields)}"
        return f"a key of {place or 'the spec '}must be one that it has, got {path[-1]!r}; {hint}"
    if found["type"] == "missing":
        return f"{where} must be given, got nothing; add it to the spec"
    shown = repr(value)
    if len(shown) > MOST_SHOWN:
        shown = f"a {type(value).__name__}" if isinstance(value, dict | list) else f"{shown[:MOST_SHOWN]}..."
    return f"{where} {_rule(found)}, got {shown}; change it in the spec"


def _is_branch(part: Any) -> bool:
    """Whether a part of pydantic's location is not a key but a branch of a union or a marker."""
    return str(part) in ("str", "[key]") or str(part).startswith(("function-", "list[", "dict[", "literal["))


def _rule(found: Any) -> str:
    limits = found.get("ctx") or {}
    rules = {
        "value_error": str(limits.get("error")),
        "missing": "must be given",
        "greater_than_equal": f"must be at least {limits.get('ge')}",
        "greater_than": f"must be above {limits.get('gt')}",
        "less_than_equal": f"must be at most {limits.get('le')}",
        "less_than": f"must be below {limits.get('lt')}",
        "literal_error": f"must be one of {str(limits.get('expected')).replace(' or ', ', ')}",
        "too_short": "must name at least one",
        "string_type": "must be text (put it in quotes)",
        "list_type": "must be a list, such as [a, b]",
        "dict_type": "must be a mapping of keys to values",
        "model_type": "must be a mapping of keys to values",
        "string_pattern_mismatch": "must be letters, digits, dots, dashes and underscores, a letter or digit first"
        if found["loc"] == ("name",)
        else "must be one line of text",
        "string_too_long": f"must be at most {limits.get('max_length')} characters long",
    }
    if found["type"].startswith("int_"):
        return "must be a whole number"
    if found["type"].startswith("float_"):
        return "must be a number"
    return rules.get(found["type"], f"must be right ({found['msg']})")
