"""The command line. Heavy imports happen inside the commands: ``--help`` needs neither torch nor Ray."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from raybench.errors import UserError, nearest

# Source documents with published numbers (raybench/published); written out, so that --help reads no file.
DOCUMENTS = ("afim", "deepclean", "gkt", "mnemonic", "rewind")

EXAMPLES = """examples:
  raybench run quickstart                          digits, small models, seven methods: minutes on a laptop
  raybench run jobs/baselines_mnist.yaml --data DIR  a spec of your own, data under DIR
  raybench plan quickstart                         what would run, what is there already, how long it takes
  raybench leaderboard raybench-runs/quickstart    the table again
  raybench compare raybench-runs/a raybench-runs/b  what changed beyond noise
  raybench list methods --format json              what can be named in a spec
  raybench reproduce mnemonic --data DIR           a source document's numbers beside ours
  raybench report raybench-runs/quickstart         one HTML page that opens offline
  raybench figures raybench-runs/gamma_sweep       the figures that its rows allow
"""


class _Parser(argparse.ArgumentParser):
    """Bad arguments are one line and exit code 2, with a guess at what was meant."""

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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="raybench",
        description="Which machine-unlearning method forgets best, at what cost, on my data and my model?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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

    doctor = commands.add_parser("doctor", help="what works here: devices, Ray, data, versions")
    doctor.add_argument("--data", metavar="DIR", help="where datasets are (or RAYBENCH_DATA)")
    doctor.add_argument("--address", help="also look at this Ray cluster")
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
    parser.add_argument("--quiet", action="store_true", help="no progress, only the table")


def _add_places(parser: argparse.ArgumentParser, *, results: bool) -> None:
    if results:
        parser.add_argument("--results", metavar="DIR",
                            help="a folder or s3:// URL; default: ./raybench-runs/<name of the spec>")  # fmt: skip
    parser.add_argument(
        "--store", metavar="DIR", help="reference models, shared values: folder or URL (RAYBENCH_STORE)"
    )
    parser.add_argument("--data", metavar="DIR", help="where datasets are (or RAYBENCH_DATA)")
    parser.add_argument("--download", action="store_true", help="let torchvision download missing datasets")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 a trial failed, 2 bad input, 3 a difference found, 130 interrupted."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        from raybench import __version__

        print(__version__)
        return 0
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        return int(_COMMANDS[arguments.command](arguments))
    except UserError as error:
        print(f"raybench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("raybench: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _options(arguments: argparse.Namespace) -> Any:
    from raybench.run import Options

    given = vars(arguments)
    slots = given.get("slots")
    if slots is not None and slots < 1:
        raise UserError(f"--slots must be at least 1, got {slots}; leave it out for one per core")
    return Options(
        results=given.get("results"),
        store=arguments.store,
        data=arguments.data,
        download=arguments.download,
        serial=given.get("serial", False),
        address=given.get("address"),
        slots=slots,
        use_once=not given.get("no_once", False),
        quiet=given.get("quiet", False),
    )


def _run(arguments: argparse.Namespace) -> int:
    from raybench.run import run

    return _tell(run(arguments.spec, options=_options(arguments), settings=arguments.settings))


def _retry(arguments: argparse.Namespace) -> int:
    from raybench.retry import retry_failed

    return _tell(retry_failed(arguments.results, _options(arguments)))


def _reproduce(arguments: argparse.Namespace) -> int:
    from raybench.leaderboard.published import read_published
    from raybench.reproduce import PAGE, reproduce, spec_of, table

    if arguments.plan:
        from raybench.forecast import forecast

        spec = spec_of(arguments.document, arguments.scale)
        print(forecast(spec, arguments.settings, _options(arguments), "table"))
        return 0
    outcome, frame = reproduce(arguments.document, arguments.scale, _options(arguments), arguments.settings)
    print(table(read_published(arguments.document), frame))
    code = _counts(outcome)
    print(f"published beside ours: {outcome.results}/{PAGE}")
    return code


def _figures(arguments: argparse.Namespace) -> int:
    from raybench.leaderboard.figures import draw_all

    drawn, skipped = draw_all(arguments.results, arguments.out)
    for path in drawn:
        print(path)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from raybench.show import find_row, render_row

    print(render_row(find_row(arguments.results, arguments.trial), arguments.results, arguments.format))
    return 0


def _again(arguments: argparse.Namespace) -> int:
    from raybench.again import render_again, run_again

    found = run_again(arguments.results, arguments.trial, _options(arguments), tuple(arguments.keep))
    print(render_again(found))
    return 0 if found.same else 3


def _export(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from raybench.export import export_model

    trial_id = export_model(arguments.results, arguments.trial, Path(arguments.file).expanduser())
    print(f"{arguments.file}: trial {trial_id}; raybench.load_model({arguments.file!r}) builds the network again")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from raybench.cards import cards
    from raybench.leaderboard.page import Sources, write_figures, write_page

    sources = Sources.read(arguments.results)
    found = cards(sources.frames.leaderboard["method"], sources.spec)
    if arguments.out is None and "://" in arguments.results:
        raise UserError(
            f"the page of results behind a URL must be told where to go, got {arguments.results}; add --out"
        )
    out = Path(arguments.out or Path(arguments.results) / "report.html").expanduser()
    size = write_page(sources, found, out)
    print(f"{out} ({size / 1e6:.1f} MB)")
    if arguments.figures:
        for path in write_figures(sources, found, Path(arguments.figures).expanduser()):
            print(path)
    return 0


def _tell(outcome: Any) -> int:
    """The table, what went wrong, and where everything is."""
    from raybench.leaderboard.query import load_leaderboard, render
    from raybench.leaderboard.render import wants_colour

    print(render(load_leaderboard(outcome.results), "table", colour=wants_colour(sys.stdout)))
    return _counts(outcome)


def _counts(outcome: Any) -> int:
    """What ran, what went wrong, and where everything is."""
    for line in outcome.bad:
        print(line, file=sys.stderr)
    counted = ", ".join(f"{count} {status}" for status, count in sorted(outcome.counted.items()))
    late = f", {outcome.measured} rows measured after their trials" if outcome.measured else ""
    print(f"{outcome.ran} trials run now ({outcome.trained} reference models trained){late}; rows: {counted}")
    if outcome.bad:
        print(f"{len(outcome.bad)} failed; run them again with: raybench retry --failed {outcome.results}")
    print(f"leaderboard: {outcome.results}/leaderboard.parquet")
    return int(outcome.exit_code)


def _plan(arguments: argparse.Namespace) -> int:
    from raybench.forecast import forecast

    print(forecast(arguments.spec, arguments.settings, _options(arguments), arguments.format))
    return 0


def _leaderboard(arguments: argparse.Namespace) -> int:
    from raybench.leaderboard.gathered import load_leaderboards
    from raybench.leaderboard.query import render
    from raybench.leaderboard.render import wants_colour

    notes: list[str] = []
    if arguments.select is None:
        frame = load_leaderboards(arguments.results, forced=arguments.force_rank)
    else:
        from raybench.selected import explain, select

        if len(arguments.results) > 1:
            raise UserError(f"--select works on one results folder, got {len(arguments.results)}; name one")
        selected = select(arguments.results[0], arguments.select, forced=arguments.force_rank)
        frame, notes = selected.leaderboard, explain(selected, arguments.select)
    if arguments.overall:
        from raybench.leaderboard.overall import overall, render_overall

        print(render_overall(overall(frame), arguments.format))
    else:
        chosen = {"by": arguments.by, "model": arguments.model, "pareto": arguments.pareto, "gated": arguments.gated}
        print(render(frame, arguments.format, **chosen, colour=wants_colour(sys.stdout)))
    for note in notes:  # what a program reads stays clean
        print(note, file=sys.stdout if arguments.format in ("table", "markdown") else sys.stderr)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from raybench.leaderboard.differences import compare, found_difference, render_differences

    metrics = arguments.metrics.split(",") if arguments.metrics else None
    frame = compare(arguments.a, arguments.b, metrics)
    print(render_differences(frame, arguments.format, every=arguments.all))
    return 3 if found_difference(frame) else 0


def _list(arguments: argparse.Namespace) -> int:
    if arguments.kind == "deviations":
        from raybench.deviations import render

        print(render(arguments.format))
        return 0
    if arguments.kind == "gates":
        from raybench.gates import render as render_gates

        print(render_gates(arguments.format))
        return 0
    from raybench.catalogue import catalogue

    print(catalogue(arguments.kind, arguments.format))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from raybench.doctor import examine

    report, healthy = examine(arguments.data, arguments.address)
    print(report)
    return 0 if healthy else 1


_COMMANDS = {
    "run": _run,
    "reproduce": _reproduce,
    "figures": _figures,
    "report": _report,
    "show": _show,
    "again": _again,
    "export": _export,
    "plan": _plan,
    "leaderboard": _leaderboard,
    "compare": _compare,
    "retry": _retry,
    "list": _list,
    "doctor": _doctor,
}
