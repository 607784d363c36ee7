"""The command line. Heavy imports happen inside the commands: ``--help`` needs neither torch nor Ray."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from raybench.arguments import make_parser
from raybench.errors import UserError

RESUMED = ("run", "reproduce", "retry")  # commands that go on where they were


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 a trial failed, 2 bad input, 3 a difference found, 130 interrupted."""
    parser = make_parser()
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
        same = shlex.join(["raybench", *(sys.argv[1:] if argv is None else argv)])
        lost = f"; no finished row is lost, this goes on from here: {same}" if arguments.command in RESUMED else ""
        print(f"raybench: interrupted{lost}", file=sys.stderr)
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
        quiet=given.get("quiet", False) or given.get("format") == "json",
        verbose=given.get("verbose", False),
    )


def _run(arguments: argparse.Namespace) -> int:
    from raybench.run import run

    options = _options(arguments)
    if not _confirmed(arguments, arguments.spec, options):
        return 130
    return _tell(run(arguments.spec, options=options, settings=arguments.settings), arguments.format)


def _confirmed(arguments: argparse.Namespace, spec: str, options: Any) -> bool:
    from raybench.confirm import confirmed

    if arguments.yes or confirmed(spec, arguments.settings, options):
        return True
    print("raybench: nothing was started", file=sys.stderr)
    return False


def _retry(arguments: argparse.Namespace) -> int:
    from raybench.retry import retry_failed

    return _tell(retry_failed(arguments.results, _options(arguments)), arguments.format)


def _reproduce(arguments: argparse.Namespace) -> int:
    from raybench.leaderboard.published import read_published
    from raybench.reproduce import PAGE, reproduce, spec_of, table

    if arguments.plan:
        from raybench.forecast import forecast

        spec = spec_of(arguments.document, arguments.scale)
        print(forecast(spec, arguments.settings, _options(arguments), arguments.format))
        return 0
    options = _options(arguments)
    if not _confirmed(arguments, spec_of(arguments.document, arguments.scale), options):
        return 130
    outcome, frame = reproduce(arguments.document, arguments.scale, options, arguments.settings)
    if arguments.format == "json":
        return _outcome_json(outcome)
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


def _outcome_json(outcome: Any) -> int:
    """What ran, what went wrong, and where everything is, for programs."""
    import dataclasses
    import json

    leaderboard = f"{outcome.results}/leaderboard.parquet"
    record = dataclasses.asdict(outcome) | {"exit_code": outcome.exit_code, "leaderboard": leaderboard}
    print(json.dumps(record, indent=1))
    return int(outcome.exit_code)


def _tell(outcome: Any, form: str) -> int:
    """The table, what went wrong, and where everything is."""
    if form == "json":
        return _outcome_json(outcome)
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
    from raybench.leaderboard.render import only_model, wants_colour

    if arguments.overall and (arguments.by or arguments.pareto or arguments.gated):
        raise UserError("--overall is one table of methods and takes no --by, --pareto or --gated; leave that out")
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

        frame = frame if arguments.model is None else only_model(frame, arguments.model)
        print(render_overall(overall(frame), arguments.format))
    else:
        chosen = {"by": arguments.by, "model": arguments.model, "pareto": arguments.pareto, "gated": arguments.gated}
        print(render(frame, arguments.format, **chosen, colour=wants_colour(sys.stdout)))
    for note in notes:  # what a program reads stays clean
        print(note, file=sys.stdout if arguments.format in ("table", "markdown") else sys.stderr)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from raybench.status import render_status, status

    print(render_status(status(arguments.results), arguments.format))
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


def _new(arguments: argparse.Namespace) -> int:
    from raybench.new import next_steps, write_package

    print(next_steps(arguments.kind, arguments.name, write_package(arguments.kind, arguments.name, arguments.into)))
    return 0


def _check_plugin(arguments: argparse.Namespace) -> int:
    from raybench.check_plugin import as_json, examine, line

    found = []
    for plugin, finding in examine(arguments.plugin):
        found.append((plugin, finding))
        if arguments.format == "table":
            print(line(plugin, finding), flush=True)  # one that takes a minute shows what is done
    if arguments.format == "json":
        print(as_json(found))
    broken = sum(finding.status == "broken" for _, finding in found)
    print(f"{broken} of {len(found)} rules broken", file=sys.stderr)
    return 1 if broken else 0


def _doctor(arguments: argparse.Namespace) -> int:
    from raybench.doctor import examine

    report, healthy = examine(arguments.data, arguments.address, arguments.format)
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
    "status": _status,
    "compare": _compare,
    "retry": _retry,
    "list": _list,
    "new": _new,
    "check-plugin": _check_plugin,
    "doctor": _doctor,
}
