"""The arguments of the command line, and what ``--help`` says. Imports nothing heavy: it must be there at once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import NoReturn

from raybench.errors import nearest

# Source documents with published numbers (raybench/published); written out, so that --help reads no file.
DOCUMENTS = ("afim", "deepclean", "gkt", "mnemonic", "rewind")

EXAMPLES = """examples:
  raybench run quickstart                          digits, small models, seven methods: minutes on a laptop
  raybench run jobs/baselines_mnist.yaml --data DIR  a spec of your own, data under DIR
  raybench plan quickstart                         what would run, what is there already, how long it takes
  raybench leaderboard raybench-runs/quickstart    the table again
  raybench status raybench-runs/quickstart         how far it is, how fast, what failed
  raybench compare raybench-runs/a raybench-runs/b  what changed beyond noise
  raybench list methods --format json              what can be named in a spec
  raybench reproduce mnemonic --data DIR           a source document's numbers beside ours
  raybench report raybench-runs/quickstart         one HTML page that opens offline
  raybench figures raybench-runs/gamma_sweep       the figures that its rows allow
  raybench new method my_method                    a plug-in of your own that works, to be changed
"""


# One or two of each command, under its help.
EXAMPLES_OF = {
    "run": (
        "raybench run quickstart",
        "raybench run my.yaml --data ~/data --set search.trials=4 --serial",
        "raybench run my.yaml --address auto --results s3://bucket/my --yes",
    ),
    "reproduce": ("raybench reproduce deepclean", "raybench reproduce mnemonic --scale full --data ~/data --plan"),
    "plan": ("raybench plan quickstart", "raybench plan my.yaml --data ~/data --format json"),
    "leaderboard": (
        "raybench leaderboard raybench-runs/quickstart --by scenario",
        "raybench leaderboard raybench-runs/a raybench-runs/b --overall --format latex",
    ),
    "compare": ("raybench compare raybench-runs/before raybench-runs/after --metrics distance,test_accuracy",),
    "status": ("raybench status raybench-runs/quickstart",),
    "show": ("raybench show 4f2a --results raybench-runs/quickstart",),
    "again": ("raybench again 4f2a --results raybench-runs/quickstart --keep weights",),
    "export": ("raybench export 4f2a model.safetensors --results raybench-runs/quickstart",),
    "retry": ("raybench retry --failed raybench-runs/quickstart",),
    "list": ("raybench list methods", "raybench list metrics --format json"),
    "figures": ("raybench figures raybench-runs/gamma_sweep --out figures",),
    "report": ("raybench report raybench-runs/quickstart --out page.html --figures figures",),
    "new": ("raybench new method my_method", "raybench new dataset my_data --into ~/plugins/my_data"),
    "check-plugin": ("raybench check-plugin my_method", "raybench check-plugin my_package.methods --format json"),
    "doctor": ("raybench doctor --data ~/data", "raybench doctor --address auto --format json"),
}


class _Formatter(argparse.HelpFormatter):
    """Descriptions are filled to the width of the terminal; examples stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example"):
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """Bad arguments are one line and exit code 2, with a guess at what was meant."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """What a command does not know it refuses itself: its caller would guess among the options of all commands."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '([^']*)'|unrecognized arguments: (\S+)", message)
        if found:
            close = nearest(found[1] or found[2], self._words(options=found[1] is None), 1)
            message += f"; did you mean {close[0]}?" if close else ""
        self.exit(2, " ".join(f"{self.prog}: {message} (see {self.prog} --help)".split()) + "\n")

    def _words(self, *, options: bool) -> Iterator[str]:
        """Options of this parser and of those below it, or the choices of its arguments."""
        for action in self._actions:
            if options:
                yield from action.option_strings
                if isinstance(action.choices, dict):
                    for parser in action.choices.values():
                        yield from parser._words(options=True)
            else:
                yield from map(str, action.choices or ())


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="raybench",
        description="Which machine-unlearning method forgets best, at what cost, on my data and my model?",
        epilog=EXAMPLES,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="run a spec, or go on with it", description="Run a spec, or go on with it.")
    _add_spec(run)
    _add_how(run)

    again = commands.add_parser(
        "reproduce",
        help="a source document's numbers beside ours",
        description="Run the spec of a source document and print its published numbers beside ours, with the "
        "difference and a verdict per cell; reproduce.md and reproduce.parquet in the results folder hold the same.",
    )
    again.add_argument("document", choices=DOCUMENTS, help="the source document")
    scales = "tiny: minutes on 2 cores (default); full: the paper's setting, it says what it needs"
    again.add_argument("--scale", choices=("tiny", "full"), default="tiny", help=scales)
    again.add_argument("--plan", action="store_true", help="only say what would run and how long it takes")
    _add_settings(again)
    _add_places(again, results=True)
    _add_how(again)

    plan = commands.add_parser("plan", help="what would run, what is cached, how long it takes")
    _add_spec(plan)
    plan.add_argument("--address", help="a Ray cluster: auto, or host:port (its devices decide what would run)")
    plan.add_argument("--format", choices=("table", "json"), default="table")

    board = commands.add_parser("leaderboard", help="show a leaderboard")
    board.add_argument("results", nargs="+", help="a results folder, or several in one leaderboard")
    board.add_argument("--model", help="only this model")
    board.add_argument("--by", choices=("dataset", "model", "scenario", "method"), help="group the lines by this")
    board.add_argument("--pareto", action="store_true", help="only the front of distance against time")
    board.add_argument("--gated", action="store_true", help="also lines that fail a sanity gate")
    board.add_argument("--overall", action="store_true", help="methods ranked over problems (needs 10 or more)")
    board.add_argument("--select", choices=("distance", "knee", "paper"), help="the settings that this rule selects")
    board.add_argument("--force-rank", action="store_true", help="rank lines with fewer than 3 train seeds too")
    board.add_argument("--format", choices=("table", "csv", "markdown", "latex", "json"), default="table")

    state = commands.add_parser("status", help="how a run is doing, from any machine that sees its results")
    state.add_argument("results", help="a results folder (path or URL)")
    state.add_argument("--format", choices=("table", "json"), default="table")

    versus = commands.add_parser(
        "compare",
        help="what changed between two results beyond noise",
        description="Compare the lines that two results folders share, by train seed, Holm over all lines and "
        "metrics. Exit code 3 where something differs.",
    )
    versus.add_argument("a", metavar="A", help="a results folder")
    versus.add_argument("b", metavar="B", help="another one; differences are B minus A")
    versus.add_argument("--metrics", help="only these, such as distance,test_accuracy (default: all that both have)")
    versus.add_argument("--all", action="store_true", help="also what does not differ (csv and json always hold it)")
    versus.add_argument("--format", choices=("table", "csv", "markdown", "latex", "json"), default="table")

    show = commands.add_parser("show", help="everything of one trial, and the command that makes it again")
    again_one = commands.add_parser(
        "again",
        help="run one trial once more and compare",
        description="Run one trial of a results folder once more, from its row, and say whether its numbers came "
        "again. Its row stays as it is. Exit code 3 where they did not. Reference models come from the store; a new "
        "--store trains them anew too.",
    )
    export = commands.add_parser("export", help="the unlearned model of a trial as a safetensors file")
    for one in (show, again_one, export):
        one.add_argument("trial", help="a trial id, or the start of one (column trial_id)")
    export.add_argument("file", help="where the model goes, such as model.safetensors")
    for one in (show, again_one, export):
        one.add_argument("--results", metavar="DIR", required=True, help="the results folder")
    show.add_argument("--format", choices=("table", "json"), default="table")
    again_one.add_argument("--keep", choices=("weights", "outputs"), action="append", default=[],
                           help="leave these in the folder's artifacts/")  # fmt: skip
    _add_places(again_one, results=False)

    retry = commands.add_parser("retry", help="run failed trials once more")
    retry.add_argument("results", help="a results folder")
    retry.add_argument("--failed", action="store_true", required=True, help="the trials whose status is failed")
    _add_places(retry, results=False)
    retry.add_argument("--serial", action="store_true", help="in this process, without Ray")
    retry.add_argument("--address", help="a Ray cluster: auto, or host:port")
    retry.add_argument("--slots", type=int, help="trials at once on this machine (default: its cores)")
    _add_loudness(retry)

    listing = commands.add_parser("list", help="what can be named in a spec")
    kinds = ("methods", "models", "datasets", "scenarios", "metrics", "specs", "deviations", "gates")
    listing.add_argument("kind", choices=kinds)
    listing.add_argument("--format", choices=("table", "markdown", "json"), default="table")

    figures = commands.add_parser("figures", help="draw the figures that the rows of a results folder allow")
    figures.add_argument("results", help="a results folder; the figures come into its folder figures/")
    figures.add_argument("--out", metavar="DIR", help="another folder for the figures")

    report = commands.add_parser("report", help="write a leaderboard as one HTML page that opens offline")
    report.add_argument("results", help="a results folder")
    report.add_argument("--out", metavar="FILE", help="the page (default: report.html in the results folder)")
    report.add_argument("--figures", metavar="DIR", help="also write every figure as SVG and PDF into this folder")

    new = commands.add_parser(
        "new",
        help="write a plug-in of your own that works, to be changed",
        description="Write a package with a working plug-in, its tests, a spec that runs it and a pyproject.toml with "
        "the entry point by which raybench finds it. Nothing is overwritten.",
    )
    new.add_argument("kind", choices=("method", "model", "dataset", "scenario", "metric"))
    new.add_argument("name", help="the name in specs, of the function and of the module: a lower-case word")
    new.add_argument("--into", metavar="DIR", help="the folder of the package (default: ./NAME)")

    held = commands.add_parser(
        "check-plugin",
        help="hold a plug-in to the rules of its kind",
        description="Import a plug-in and run the checks that every plug-in of its kind must pass. Exit code 1 where "
        "one is broken.",
    )
    held.add_argument("plugin", help="a folder, a Python file, or the name of an importable module")
    held.add_argument("--format", choices=("table", "json"), default="table")

    doctor = commands.add_parser("doctor", help="what works here: devices, Ray, data, versions")
    doctor.add_argument("--data", metavar="DIR", help="where datasets are (or RAYBENCH_DATA)")
    doctor.add_argument("--address", help="also look at this Ray cluster")
    doctor.add_argument("--format", choices=("table", "json"), default="table")
    for name, command in commands.choices.items():
        command.formatter_class = _Formatter
        shown = EXAMPLES_OF[name]
        command.epilog = "\n  ".join([f"example{'s' if len(shown) > 1 else ''}:", *shown])
    return parser


def _add_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", help="a shipped spec by name (quickstart), or a YAML file")
    _add_settings(parser)
    _add_places(parser, results=True)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
                        help="override a key of the spec, such as search.trials=4")  # fmt: skip


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--serial", action="store_true", help="in this process, without Ray")
    parser.add_argument("--address", help="a Ray cluster: auto, or host:port")
    parser.add_argument("--slots", type=int, help="trials at once on this machine (default: its cores)")
    parser.add_argument("--no-once", action="store_true", help="share nothing between trials; results are the same")
    parser.add_argument("--yes", action="store_true", help="do not ask before a long run (asked on a terminal only)")
    _add_loudness(parser)


def _add_loudness(parser: argparse.ArgumentParser) -> None:
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="no progress, only the table")
    loud.add_argument("--verbose", action="store_true", help="a line for every trial that ends")
    parser.add_argument("--format", choices=("table", "json"), default="table",
                        help="json: what ran, what failed and where it is, for programs")  # fmt: skip


def _add_places(parser: argparse.ArgumentParser, *, results: bool) -> None:
    if results:
        parser.add_argument("--results", metavar="DIR",
                            help="a folder or s3:// URL; default: ./raybench-runs/<name of the spec>")  # fmt: skip
    parser.add_argument(
        "--store", metavar="DIR", help="reference models, shared values: folder or URL (RAYBENCH_STORE)"
    )
    parser.add_argument("--data", metavar="DIR", help="where datasets are (or RAYBENCH_DATA)")
    parser.add_argument("--download", action="store_true", help="let torchvision download missing datasets")
