"""``raybench check-plugin``: do the plug-ins of a folder or module keep to the rules of their kind?"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from raybench.conformance import Finding, check
from raybench.errors import UserError, unknown
from raybench.registry import KINDS, Entry, load_plugins


@dataclass(frozen=True)
class Plugin:
    """A registered plug-in: its kind (``methods``, ...) and name."""

    kind: str
    name: str


def find_plugins(target: str) -> list[Plugin]:
    """Import ``target`` and say what it registers.

    Args:
        target: a folder (its entry points, where a pyproject.toml names them, else every module in it), a Python file,
            or the name of an importable module.

    Raises:
        raybench.errors.UserError: what is not there, does not import, or registers nothing.
    """
    path = Path(target).expanduser()
    if path.is_dir():
        modules = _modules_of(path.resolve())
    elif path.suffix == ".py" and path.is_file():
        _put_on_path(path.resolve().parent)
        modules = [path.stem]
    else:
        _put_on_path(Path.cwd())
        modules = [target]
    load_plugins(tuple(modules))
    names = tuple(f"{module.split(':')[0]}." for module in modules)
    found = [
        Plugin(kind, entry.name)
        for kind, registry in KINDS.items()
        for entry in registry
        if f"{_module(entry)}.".startswith(names)
    ]
    if not found:
        raise UserError(
            f"a plug-in must register something, got nothing from {', '.join(modules)}; decorate a function, for "
            'example with @raybench.registry.METHODS.register("my_method")'
        )
    return found


def _module(entry: Entry) -> str:
    return str(inspect.unwrap(entry.fn).__module__)


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()


def _modules_of(folder: Path) -> list[str]:
    """What the folder's entry points name; without any, its modules and packages that are no tests."""
    roots = [root for root in (folder / "src", folder) if root.is_dir()]
    for root in roots:
        _put_on_path(root)
    named = _entry_points(folder / "pyproject.toml")
    if named:
        return named
    found = [
        path.stem
        for root in roots
        for path in sorted(root.iterdir())
        if (path.suffix == ".py" or (path / "__init__.py").is_file())
        and path.stem.isidentifier()
        and not path.stem.startswith(("test_", "_"))
        and path.stem not in ("conftest", "setup", "tests")
    ]
    if not found:
        raise UserError(
            f"a plug-in folder must have a Python module, got none in {folder}; raybench new method NAME writes one"
        )
    return found


def _entry_points(file: Path) -> list[str]:
    if not file.is_file():
        return []
    try:
        project = tomllib.loads(file.read_text()).get("project", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} must be TOML, got: {error}; mend it") from error
    groups = {
        group: points for group, points in project.get("entry-points", {}).items() if group.startswith("raybench")
    }
    for group in groups:
        if group.removeprefix("raybench.") not in KINDS:
            raise unknown("entry-point group of a plug-in", group, [f"raybench.{kind}" for kind in KINDS])
    return sorted({str(value).split(":")[0].strip() for named in groups.values() for value in named.values()})


def examine(target: str) -> Iterator[tuple[Plugin, Finding]]:
    """Every check of every plug-in of ``target``, as each ends."""
    torch.set_num_threads(1)  # what the checks run is too small for more
    for plugin in find_plugins(target):
        for finding in check(plugin.kind, plugin.name):
            yield plugin, finding


def line(plugin: Plugin, finding: Finding) -> str:
    """One finding for people."""
    reason = f": {finding.reason}" if finding.reason else ""
    return f"{finding.status:<8} {plugin.kind.removesuffix('s')} {plugin.name}: {finding.rule}{reason}"


def as_json(found: list[tuple[Plugin, Finding]]) -> str:
    """All findings for programs: a list of objects with kind, name, rule, status and reason."""
    return json.dumps([asdict(plugin) | asdict(finding) for plugin, finding in found], indent=1)
