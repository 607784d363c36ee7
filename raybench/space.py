"""Hyperparameters: frozen dataclasses annotated with Optuna distributions, the one search-space language.

A field of a hyperparameter class is searched when its annotation carries a distribution::

    @dataclass(frozen=True)
    class DeepCleanHparams:
        gamma: Annotated[float, scientific(FloatDistribution(0.5, 50.0, log=True))] = 2.0
        '''Threshold of the Fisher ratio.'''

*Scientific* fields are what a method is about (gamma, lambda1, the entropy cutoff); *nuisance* fields only
have to be right (learning rate, epochs). A sweep grids the scientific ones and tunes the nuisance ones.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import textwrap
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import qmc

from raybench.errors import UserError, unknown
from raybench.seeding import derive_seed, numpy_generator

SCIENTIFIC = "scientific"
NUISANCE = "nuisance"
# Fields that mean the same in every class that has them: below this, no run makes sense.
LEAST = {"lr": 0.0, "epochs": 0, "batch_size": 1, "momentum": 0.0, "weight_decay": 0.0}
T = TypeVar("T")
Space = dict[str, BaseDistribution]


@dataclass(frozen=True)
class Searched:
    """The mark on a searched field: its range and its role."""

    distribution: BaseDistribution
    role: str


def scientific(distribution: BaseDistribution) -> Searched:
    """Mark a field as what the method is about."""
    return Searched(distribution, SCIENTIFIC)


def nuisance(distribution: BaseDistribution) -> Searched:
    """Mark a field as one that only has to be right."""
    return Searched(distribution, NUISANCE)


def at_least(hp: object, low: float, *names: str) -> None:
    """``ValueError`` in one line for the first of the fields ``names`` that is below ``low`` or NaN; None passes."""
    for name in names:
        value = getattr(hp, name)
        if value is not None and not value >= low:
            raise ValueError(f"{name} must be at least {low:g}, got {value}")


def above(hp: object, low: float, *names: str) -> None:
    """The same for fields that must not be ``low`` itself."""
    for name in names:
        value = getattr(hp, name)
        if value is not None and not value > low:
            raise ValueError(f"{name} must be above {low:g}, got {value}")


@functools.cache
def searched(cls: type) -> Mapping[str, Searched]:
    """Field name -> mark, for the searched fields of a hyperparameter class, in field order."""
    marks: dict[str, Searched] = {}
    for name, hint in _hints(cls).items():
        if get_origin(hint) is Annotated:
            found = [extra for extra in get_args(hint)[1:] if isinstance(extra, Searched)]
            if found:
                marks[name] = found[0]
    return marks


@functools.cache
def field_docs(cls: type) -> Mapping[str, str]:
    """Field name -> the docstring under the field, in the class itself or in the one that it extends."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            docs.update(_own_field_docs(owner))
    return docs


def _own_field_docs(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    docs: dict[str, str] = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for statement, after in itertools.pairwise(statements):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[statement.target.id] = inspect.cleandoc(after.value.value)
    return docs


def resolve(cls: type[T], values: Mapping[str, Any], owner: str) -> T:
    """``cls(**values)`` with names and types checked; ``owner`` names the method (or scenario) in messages.

    Raises:
        UserError: unknown field (with the nearest), a value of the wrong type, or one the class refuses.
    """
    hints = _hints(cls)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown(f"parameter of {owner}", name, hints)
        checked[name] = _convert(value, hints[name], f"{owner}.{name}")
    try:
        made = cls(**checked)
        for name, low in LEAST.items():
            if isinstance(getattr(made, name, None), int | float):
                at_least(made, low, name)
        return made
    except (ValueError, TypeError) as error:
        said = str(error)
        raise UserError(said if said.startswith(owner) else f"{owner}: {said}") from error


def search_space(cls: type, fixed: Mapping[str, Any], ranges: Mapping[str, Any], owner: str) -> Space:
    """The distributions to search: the class's own, less the ``fixed`` fields, with ``ranges`` from a spec.

    A range is ``{low, high[, log][, step]}`` or a list of choices.
    """
    marks = searched(cls)
    hints = _hints(cls)
    for name in ranges:
        if name not in hints:
            raise unknown(f"parameter of {owner}", name, hints)
        if name in fixed:
            raise UserError(f"a parameter is either fixed or searched, got both for {owner}.{name}; drop one")
    space: Space = {}
    for name, hint in hints.items():
        if name in fixed:
            continue
        if name in ranges:
            space[name] = _from_spec(ranges[name], hint, f"{owner}.{name}")
        elif name in marks:
            space[name] = marks[name].distribution
    return space


def default_point(cls: type, space: Space) -> dict[str, Any] | None:
    """The defaults of the searched fields, or None where a spec's range leaves one outside."""
    if not space:
        return {}
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.name in space}
    if dataclasses.MISSING in defaults.values():
        return None
    inside = all(_contains(space[name], value) for name, value in defaults.items())
    return defaults if inside else None


def sampled_point(sampler: str, space: Space, index: int, total: int, seed_parts: Any) -> dict[str, Any]:
    """Setting ``index`` of ``random | grid | qmc``: a pure function of the index, so a resumed search agrees.

    ``grid`` counts in mixed radix with ceil(total ** (1/d)) points per numeric axis, ends included.
    ``qmc`` is a scrambled Sobol sequence.
    """
    names = list(space)
    if sampler == "random":
        rng = numpy_generator("random", seed_parts, index)
        return {name: _at(space[name], float(rng.random()), bins=True) for name in names}
    if sampler == "qmc":
        engine = qmc.Sobol(len(names), scramble=True, rng=derive_seed("qmc", seed_parts) % 2**32)
        if index:
            engine.fast_forward(index)
        draw = engine.random(1)[0]
        return {name: _at(space[name], float(u), bins=True) for name, u in zip(names, draw, strict=True)}
    if sampler == "grid":
        points = max(1, math.ceil(total ** (1 / len(names)) - 1e-9))
        setting = {}
        for name in names:
            size = _grid_size(space[name], points)
            index, digit = divmod(index, size)
            setting[name] = _at(space[name], digit / (size - 1) if size > 1 else 0.5)
        return setting
    raise unknown("sampler", sampler, SAMPLERS)


SAMPLERS = ("tpe", "random", "grid", "qmc")
DEFAULT_FIRST = ("tpe", "random")  # samplers whose first setting is the default point


def _hints(cls: type) -> dict[str, Any]:
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"parameters are described by a dataclass, got {cls!r}")
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _convert(value: Any, hint: Any, where: str) -> Any:
    """``value`` (from YAML) as the annotated type, or a UserError."""
    hint = _bare(hint)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is type(None):
                continue
            try:
                return _convert(value, option, where)
            except UserError:
                continue  # the next member of the union may fit; if none does we raise below
    elif origin is Literal:
        if value in get_args(hint):
            return value
        raise UserError(f"{where} must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}; change it")
    elif origin in (tuple, list):
        if isinstance(value, int | float | str):
            value = (value,)
        if isinstance(value, list | tuple):
            return tuple(_convert(item, get_args(hint)[0], where) for item in value)
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                return float(value)
            except ValueError:
                pass  # not a number: the error below says so
    elif hint is Any or (isinstance(hint, type) and isinstance(value, hint)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise UserError(f"{where} must be of type {name}, got {value!r}; change it in the spec")


def _from_spec(given: Any, hint: Any, where: str) -> BaseDistribution:
    if isinstance(given, list):
        if not given:
            raise UserError(f"choices of {where} must name at least one value, got []; list the values to try")
        return CategoricalDistribution([_convert(value, hint, where) for value in given])
    if not isinstance(given, Mapping) or not {"low", "high"} <= set(given):
        raise UserError(f"range of {where} must be {{low, high[, log][, step]}} or a list of choices, got {given!r}")
    extra = set(given) - {"low", "high", "log", "step"}
    if extra:
        raise unknown(f"key of the range of {where}", min(extra), ("low", "high", "log", "step"))
    low, high = _convert(given["low"], hint, where), _convert(given["high"], hint, where)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        raise UserError(f"range of {where} must have numbers as low and high, got {given!r}; list the choices instead")
    if low > high:
        raise UserError(f"range of {where} must have low <= high, got low={low} high={high}; swap them")
    kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
    try:
        step = {"step": _convert(given["step"], hint, where)} if "step" in given else {}
        return kind(low, high, log=bool(given.get("log", False)), **step)
    except ValueError as error:
        raise UserError(f"range of {where}: {error}; change it in the spec") from error


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if value is None or not distribution.low <= value <= distribution.high:
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0.0
    return bool(abs(steps - round(steps)) < 1e-8)  # Optuna refuses a value between two steps


def _grid_size(distribution: BaseDistribution, points: int) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return min(points, int(distribution.high - distribution.low) // int(distribution.step) + 1)
    return points


def _at(distribution: BaseDistribution, u: float, bins: bool = False) -> Any:
    """The value at ``u`` in [0, 1] of a distribution. On a stepped one ``bins`` gives every step the same share of
    [0, 1], for draws; without it 0 and 1 are the ends and the steps between are spread evenly, for grids."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(u * len(distribution.choices)), len(distribution.choices) - 1)]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    margin = step / 2 if bins and step is not None else 0.0
    start, end = low - margin, high + margin
    value = start * (end / start) ** u if distribution.log else start + (end - start) * u
    if step is None:
        return min(max(value, low), high)
    stepped = min(max(low + round((value - low) / step) * step, low), high)
    return int(stepped) if isinstance(distribution, IntDistribution) else stepped
