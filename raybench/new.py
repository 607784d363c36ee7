"""``raybench new``: a plug-in package that works as it is, in a folder of the user's own, to be changed there."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from raybench.errors import UserError
from raybench.registry import KINDS
from raybench.version import PACKAGE

TEMPLATES = PACKAGE / "templates"
FILES = {  # of the package <- template
    "{name}.py": "{kind}.py.txt",
    "test_{name}.py": "test_{kind}.py.txt",
    "{name}.yaml": "{kind}.yaml.txt",
    "pyproject.toml": "pyproject.toml.txt",
}


def write_package(kind: str, name: str, into: str | None = None) -> list[Path]:
    """Write module, test, spec and pyproject.toml of a new plug-in; nothing is overwritten.

    Args:
        kind: ``method``, ``model``, ``dataset``, ``scenario`` or ``metric``.
        name: the key that specs will use, also the name of function and module.
        into: the folder, made where it is missing; default ``./<name>``.

    Returns:
        The files, absolute.

    Raises:
        raybench.errors.UserError: a name that is no lower-case word, that is registered already or that an installed
            module has; a file that exists already.
    """
    _check_name(kind, name)
    folder = Path(into or name).expanduser().resolve()
    words = name.split("_")
    values = {
        "kind": kind,
        "name": name,
        "Class": "".join(word.capitalize() for word in words),
        "Label": " ".join(words).capitalize(),
        "distribution": "raybench-" + "-".join(words),
    }
    texts = {
        folder / file.format(name=name): Template((TEMPLATES / template.format(kind=kind)).read_text())
        for file, template in FILES.items()
    }
    there = [str(path) for path in texts if path.exists()]
    if there:
        raise UserError(f"raybench new overwrites nothing, got {', '.join(there)} there already; give another --into")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, template in texts.items():
            path.write_text(template.substitute(values))
    except OSError as error:
        raise UserError(f"--into must be a folder that takes files, got {folder} ({error}); give another") from error
    return list(texts)


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(
            f"the name of a {kind} must be a lower-case word of Python such as my_{kind}, got {name!r}; change it"
        )
    if name in KINDS[f"{kind}s"]:
        raise UserError(f"the name of a new {kind} must be free, got {name!r}, which raybench has; choose another")
    found = importlib.util.find_spec(name)
    if found is not None and found.origin is not None:  # a mere folder of that name, here perhaps, is no module
        raise UserError(
            f"the name of a {kind} is also its module's, got {name!r}, which an installed module has; choose another"
        )


def next_steps(kind: str, name: str, files: list[Path]) -> str:
    """What to do with the package, for people."""
    folder = files[0].parent
    return "\n".join(
        [
            *map(str, files),
            "next:",
            f"  cd {folder}",
            f"  raybench check-plugin .                       # the rules that a {kind} keeps to",
            f"  PYTHONPATH=$PWD raybench run {name}.yaml      # or once: python -m pip install -e .",
        ]
    )
