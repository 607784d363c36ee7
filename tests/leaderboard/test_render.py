from __future__ import annotations

import io
import json

import pandas as pd
import pyarrow as pa
import pytest

from raybench.errors import UserError
from raybench.leaderboard.query import build_leaderboard, render
from raybench.leaderboard.schema import SEARCHES_SCHEMA, check_row, trial_schema


@pytest.fixture
def board(make_row, metrics):
    def method(name, distances, accuracy, seconds, **changes):
        return [
            make_row(method=name, train_seed=t, distance=d, forget_accuracy=accuracy, forget_accuracy_retrained=0.5,
                     forget_accuracy_gap=accuracy - 0.5, unlearn_s=seconds, speedup=10 / seconds, retain_loss=1.5,
                     **changes)
            for t, d in enumerate(distances)
        ]  # fmt: skip

    rows = method("far_one", (0.30, 0.31, 0.32), 0.9, 0.5)
    rows += method("best", (0.10, 0.11, 0.12), 0.4, 2.0, hparams='{"lr":0.1}')
    rows += method("gated", (0.01, 0.01, 0.01), 0.5, 1.0, gates='{"retain":false}')
    rows += method("best", (0.2,), 0.5, 1.0, model="mlp", scenario="random(0.1)")
    rows += [make_row(method="never", status="skipped", reason="needs classes")]
    schema = trial_schema(metrics)
    trials = pa.Table.from_pylist([check_row(row, schema) for row in rows], schema=schema).to_pandas()
    frame = build_leaderboard(trials, SEARCHES_SCHEMA.empty_table().to_pandas(), metrics).to_pandas()
    frame.attrs["metrics"] = {m.name: {"unit": m.unit, "direction": m.direction} for m in metrics}
    return frame


def test_table_is_sorted_aligned_and_in_percent(board):
    text = render(board, model="lenet5", metrics=list(board.attrs["metrics"]))
    heading, titles, _, *lines = text.splitlines()
    assert heading == "mnist / lenet5 / class(0)"
    # s = 0.01, n = 3: half width 2.484 * 0.01, as percent 2.5.
    assert "11.0 ± 2.5" in lines[0]
    assert [line.split()[0] for line in lines[:3]] == ["best", "far_one", "never"]
    assert "40.0 ± 0.0" in lines[0]
    assert "1.50 ± 0.00" in lines[0]  # nats are no percent
    assert lines[2].endswith("skipped")
    start = titles.index("status")
    assert all(line[start - 1] == " " and line[start] != " " for line in lines[:3])
    assert "1 line that fails a sanity gate is hidden (retain); --gated shows" in text
    assert "gated" not in text.replace("--gated", "")


def test_two_problems_have_a_heading_each_and_skipped_lines_their_reason(board):
    text = render(board)
    assert [line for line in text.splitlines() if " / " in line][:2] == [
        "mnist / lenet5 / class(0)",
        "mnist / mlp / random(0.1)",
    ]
    assert "skipped: never on lenet5/class(0): " in text


def test_choices(board):
    assert "gated" in render(board, gated=True)
    assert "mlp" not in render(board, model="lenet5")
    front = render(board, pareto=True)
    assert "never" not in front
    assert "far_one" in front  # the fastest
    assert render(board, by="scenario").startswith("scenario")
    assert "forget_accuracy" not in render(board, metrics=["distance"]).splitlines()[0]


def test_csv_is_the_whole_frame_in_fractions(board):
    read = pd.read_csv(io.StringIO(render(board, "csv")))
    assert list(read.columns) == list(board.columns)
    assert read.loc[read["model"] == "lenet5", "distance"].tolist()[:2] == pytest.approx([0.11, 0.31])


def test_json_is_a_list_of_objects(board):
    lines = json.loads(render(board, "json", model="lenet5"))
    assert [line["method"] for line in lines] == ["best", "far_one", "never"]
    assert lines[0]["hparams"] == {"lr": 0.1}
    assert lines[0]["rank_group"] == 1
    assert lines[0]["on_pareto_front"] is True
    assert lines[2]["distance"] is None
    assert lines[2]["reason"] == "needs classes"


def test_markdown_has_one_row_per_line(board):
    lines = render(board, "markdown", model="lenet5").splitlines()
    assert lines[0].startswith("| dataset | model | scenario | method |")
    assert set(lines[1]) == {"|", " ", "-"}
    assert {line.count("|") for line in lines[:5]} == {lines[0].count("|")}


def test_latex_escapes_and_sets_the_best_in_bold(board):
    text = render(board, "latex", model="lenet5")
    assert text.splitlines()[1].startswith("\\begin{tabular}")
    assert "\\toprule" in text
    assert "\\bottomrule" in text
    assert "far\\_one" in text
    assert "\\textbf{11.0 $\\pm$ 2.5}" in text  # the smallest distance
    assert "\\textbf{40.0 $\\pm$ 0.0}" in text  # nearest to the retrained 50, although 90 is higher
    assert "\\textbf{90.0" not in text


def test_status_of_a_part_is_counted(board):
    part = board.copy()
    part.attrs = board.attrs
    part.loc[part["method"] == "never", "status_counts"] = '{"ok": 2, "skipped": 1}'
    assert "skipped 1/3" in render(part)


def test_unresolved_is_said(board):
    marked = board.copy()
    marked.attrs = board.attrs
    marked["unresolved"] = [model == "lenet5" for model in board["model"]]
    assert "unresolved, not ranked: mnist / lenet5 / class(0)" in render(marked)


def test_front_probability_is_shown_where_it_says_more_than_the_star(board):
    def shown(star, chance):
        one = board[board["method"] == "far_one"].assign(on_pareto_front=star, front_probability=chance)
        line = next(line for line in render(one, "markdown").splitlines() if "far_one" in line)
        return line.split(" | ")[5]

    assert shown(True, 1.0) == "*"
    assert shown(True, 0.999) == "*"
    assert shown(True, 0.834) == "* 0.83"
    assert shown(False, 0.166) == "0.17"
    assert shown(False, 0.0) == ""
    assert shown(True, None) == "*"
    del board["front_probability"]
    assert " | * | " in render(board, "markdown")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tabel"}, "format must be .* did you mean table"),
        ({"by": "scenari"}, "did you mean scenario"),
        ({"model": "lenet"}, "model must be .* got 'lenet'; did you mean lenet5"),
        ({"metrics": ["distanc"]}, "did you mean distance"),
    ],
)
def test_bad_choices_are_explained(board, arguments, message):
    with pytest.raises(UserError, match=message):
        render(board, **arguments)


@pytest.mark.parametrize("format_", ["table", "csv", "markdown", "latex", "json"])
def test_nothing_to_show_is_no_error(board, format_):
    assert isinstance(render(board.iloc[:0], format_), str)
