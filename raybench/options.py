"""Options of a dataset or a model: the keyword-only parameters of its function, and nothing else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from raybench.errors import UserError, nearest

P = ParamSpec("P")
R = TypeVar("R")


def option_names(fn: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the options of ``fn``, in the order of its signature."""
    return tuple(p.name for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY)


def check_options(fn: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for an option that ``fn`` does not have, or for one that it needs and did not get.

    Only names are checked, so this is cheap enough for the moment an experiment is read; values are checked
    by the function itself. A function with ``**kwargs`` takes any name.
    """
    parameters = inspect.signature(fn).parameters.values()
    known = option_names(fn)
    owner = fn.__name__.rstrip("_")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in options:
            if name not in known:
                close = nearest(name, known)
                hint = f"did you mean {' or '.join(close)}?" if close else f"its options: {', '.join(known) or 'none'}"
                raise UserError(f"an option of {owner} must be one that it has, got {name!r}; {hint}")
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in options:
            raise UserError(f"{owner} must be given the option {p.name}, got none; add it as `{p.name}: ...`")


def checked_options(fn: Callable[P, R]) -> Callable[P, R]:
    """Decorator for plug-ins with options: a wrong name is a ``UserError``, not a ``TypeError``."""
    positional = [p.name for p in inspect.signature(fn).parameters.values() if p.kind is not p.KEYWORD_ONLY]

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_options(fn, {name: value for name, value in kwargs.items() if name not in positional})
        return fn(*args, **kwargs)

    return call
