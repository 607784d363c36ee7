"""The parts of the documents that are made from code and rows: methods, API, templates, pages of shipped leaderboards.

``python docs/generate.py`` writes them; a test holds the committed files to what this makes.
"""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import yaml

from raybench.leaderboard.query import load_leaderboard, render

DOCS = Path(__file__).parent
# What the API reference shows, in this order: module -> names. A class is shown with its public methods.
PUBLIC: dict[str, tuple[str, ...]] = {
    "raybench": ("run", "load_leaderboard", "load_trials", "pareto", "compare", "load_model"),
    "raybench.run": ("Options", "Outcome"),
    "raybench.task": ("UnlearningTask", "Facts", "UndeclaredAccess", "Stop"),
    "raybench.data": ("Split", "RawData", "Request", "Pixels"),
    "raybench.registry": (
        "Registry", "MethodEntry", "TrainingEntry", "ModelEntry", "DatasetEntry", "ScenarioEntry", "MetricEntry",
        "Attack",
    ),
    "raybench.space": ("scientific", "nuisance", "at_least", "above"),
    "raybench.contract": ("Classifier", "check_problem", "broken_rules"),
    "raybench.options": ("checked_options",),
    "raybench.outputs": ("Outputs", "SplitOutputs", "MetricContext"),
    "raybench.probe": ("Probe",),
    "raybench.training": ("TrainingJob", "Trained", "Recipe"),
    "raybench.testing": ("make_task", "run_method", "make_bench", "make_probe"),
    "raybench.conformance": ("check", "cases", "Finding"),
    "raybench.errors": ("UserError", "MetricUnavailable"),
}  # fmt: skip
HEAD = """# API reference

From the docstrings; `python docs/generate.py` writes this page. Accuracies are fractions, times seconds, images
[n, channels, height, width], logits [n, classes].
"""


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself."""
    for name, value in vars(cls).items():
        if name.startswith("_") or name in getattr(cls, "__dataclass_fields__", {}):  # a default may be a function
            continue
        if inspect.isfunction(value) or isinstance(value, property):
            yield name, value


def public() -> Iterator[tuple[str, str, Any]]:
    """(module, name, object) of everything on the page; of classes their methods too, as ``Class.method``."""
    for module, names in PUBLIC.items():
        for name in names:
            package = importlib.import_module(module)
            found = getattr(package, name)
            if inspect.ismodule(found):  # raybench.run, once the module of that name is imported
                found = getattr(package, f"_{name}")
            yield module, name, found
            if inspect.isclass(found):
                yield from ((module, f"{name}.{inner}", value) for inner, value in members(found))


def api() -> str:
    """The page of the API."""
    text, last = [HEAD], ""
    for module, name, found in public():
        if module != last:
            text.append(f"## {module}\n")
            last = module
        whole = f"{name}{_signature(name, found)}"
        text.append(f"{'####' if '.' in name else '###'} {name}\n")
        text.append(f"```python\n{whole}\n```\n")
        text.append(f"```text\n{inspect.getdoc(found) or ''}\n```\n")
    return "\n".join(text)


def _signature(name: str, found: Any) -> str:
    if isinstance(found, property):
        return ""
    if inspect.isclass(found) and issubclass(found, Exception):
        return "(...)"
    if name == "UnlearningTask":
        return "  # built by the harness, and by raybench.testing.make_task"
    whole = inspect.signature(found)
    bare = [
        p if p.annotation is p.empty else p.replace(annotation=_Bare(p.annotation)) for p in whole.parameters.values()
    ]
    back = whole.return_annotation
    whole = whole.replace(parameters=bare, return_annotation=back if back is whole.empty else _Bare(back))
    text = re.sub(r"frozenset\(\{(.*?)\}\)", lambda m: "{" + ", ".join(sorted(m[1].split(", "))) + "}", str(whole))
    return re.sub(r"<factory>|<function (\S+) at 0x\w+>", lambda m: (m[1] or "...").split(".")[-1], text)


class _Bare(str):
    """An annotation as it is written, without the quotes that postponed ones are shown with."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def templates() -> dict[str, str]:
    """Kind -> the module that ``raybench new KIND my_KIND`` writes."""
    made = {}
    for kind in ("method", "model", "dataset", "scenario", "metric"):
        values = {"name": f"my_{kind}", "Class": f"My{kind.capitalize()}", "Label": f"My {kind}", "kind": kind}
        source = (DOCS.parent / "raybench" / "templates" / f"{kind}.py.txt").read_text()
        made[kind] = Template(source).substitute(values)
    return made


def filled(text: str, mark: str, content: str) -> str:
    """``text`` with ``content`` between the comments ``<!-- mark -->`` and ``<!-- end of mark -->``."""
    start, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, rest = text.split(start)
    return before + start + content.rstrip("\n") + "\n" + end + rest.split(end)[1]


def short(table: str) -> str:
    """Of the table of methods, the columns that the README shows."""
    rows = [re.split(r"(?<!\\) ?\| ", line.strip("| ")) for line in table.strip().splitlines()]
    at = [rows[0].index(name) for name in ("name", "needs", "measured", "searched", "paper")]
    return "\n".join("| " + " | ".join(row[i].strip() for i in at) + " |" for row in rows)


def leaderboard_page(folder: Path) -> str:
    """The page of a shipped results folder: its spec's description, and the table."""
    frame = load_leaderboard(folder)
    spec = yaml.safe_load((folder / "spec.yaml").read_text())
    described = " ".join(str(spec.get("description", "")).split())
    head = f"# {folder.name}\n\n{described}\n\n" if described else f"# {folder.name}\n\n"
    about = "Generated by `python docs/generate.py` from `leaderboard.parquet`; made by [spec.yaml](spec.yaml), "
    about += "summed up in [the list of results](../README.md). Intervals are 95 % over train seeds.\n\n"
    return head + about + render(frame, "markdown").rstrip("\n") + "\n"


def leaderboard_pages() -> dict[Path, str]:
    """``results/<name>/leaderboard.md`` of every shipped folder."""
    folders = sorted(path.parent for path in (DOCS.parent / "results").glob("*/spec.yaml"))
    return {folder / "leaderboard.md": leaderboard_page(folder) for folder in folders}


def pages() -> dict[Path, str]:
    """Every page with generated parts, as it should be."""
    command = [sys.executable, "-m", "raybench", "list", "methods", "--format", "markdown"]  # without tests' methods
    table = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, check=True, timeout=120).stdout
    extending = (DOCS / "extending.md").read_text()
    for kind, source in templates().items():
        extending = filled(extending, f"my_{kind}", f"```python\n{source}```")
    return {
        DOCS.parent / "README.md": filled(
            (DOCS.parent / "README.md").read_text(), "short table of methods", short(table)
        ),
        DOCS / "api.md": api(),
        DOCS / "methods.md": filled((DOCS / "methods.md").read_text(), "methods table", table),
        DOCS / "extending.md": extending,
    }


if __name__ == "__main__":
    for path, text in (pages() | leaderboard_pages()).items():
        path.write_text(text)
        print(path)
