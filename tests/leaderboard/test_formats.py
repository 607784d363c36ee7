"""The printed formats by the parsers of others: LaTeX compiles, Markdown renders, JSON fits the shipped schema."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker

import raybench
from raybench.leaderboard.query import load_leaderboard, render
from raybench.leaderboard.render import wants_colour

RESULTS = Path(__file__).parents[2] / "results"
FOLDERS = ("quickstart", "baselines_mnist", "gkt_mnist_cutoffs", "rewind_label_noise")
SCHEMA = Path(raybench.__file__).parent / "leaderboard" / "leaderboard.schema.json"
NASTY = r"a_b & 50% #1 {x} ~ ^ \end{tabular} | <script>"


def nasty() -> pd.DataFrame:
    board = load_leaderboard(RESULTS / "quickstart")
    board.loc[board["method"] == "gkt", "variant"] = NASTY
    return board


def boards() -> list[pd.DataFrame]:
    return [*(load_leaderboard(RESULTS / name) for name in FOLDERS), nasty()]


@pytest.mark.parametrize("index", range(len(FOLDERS) + 1))
def test_latex(index, tmp_path):
    text = render(boards()[index], "latex")
    # A strict parser where there is no TeX: it raises on unbalanced braces, environments and mathematics.
    nodes, _, _ = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
    (tabular,) = [node for node in nodes if isinstance(node, LatexEnvironmentNode)]
    assert tabular.environmentname == "tabular"
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
    for line in text.splitlines():
        if line.endswith(r"\\") and r"\multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    if shutil.which("pdflatex"):
        head = "\\documentclass{article}\\usepackage{booktabs}\\usepackage[T1]{fontenc}\\begin{document}\\tiny\n"
        (tmp_path / "table.tex").write_text(head + text + "\\end{document}\n")
        done = subprocess.run(
            ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"], cwd=tmp_path, capture_output=True
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def distance_column(text: str) -> int:
    header = next(line for line in text.splitlines() if line.startswith("method & "))
    return next(i for i, name in enumerate(header.split(" & ")) if name.startswith("distance"))


def test_latex_has_intervals_and_sets_ties_in_bold_together():
    board = load_leaderboard(RESULTS / "quickstart")
    text, at = render(board, "latex"), distance_column(render(board, "latex"))
    mlp = text.split(r"digits / mlp / class(0)")[1].split(r"\midrule")[0]
    lines = {line.split(" & ")[0].replace(r"\_", "_"): line.split(" & ") for line in mlp.splitlines() if " & " in line}
    here = board[(board["model"] == "mlp") & (board["scenario"] == "class(0)")].set_index("method")
    best = [name for name in lines if here.loc[name, "rank_group"] == 1]
    assert len(best) > 1  # the rows that ship have a tie there
    for name, cells in lines.items():
        half = 50 * (here.loc[name, "distance_hi"] - here.loc[name, "distance_lo"])
        assert rf"{100 * here.loc[name, 'distance']:.1f} $\pm$ {half:.1f}" in cells[at]
        assert cells[at].startswith(r"\textbf{") == (name in best)  # a reference never wins


def test_nothing_is_best_where_doing_nothing_is_within_the_floor():
    board = load_leaderboard(RESULTS / "quickstart")
    board["unresolved"], board["rank_group"] = True, None
    text = render(board, "latex")
    lines = [line for line in text.splitlines() if line.startswith(("deepclean", "gkt"))]
    assert lines
    assert not any("textbf" in line.split(" & ")[distance_column(text)] for line in lines)


@pytest.mark.parametrize("index", range(len(FOLDERS) + 1))
def test_markdown(index):
    board = boards()[index]
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(render(board, "markdown"))
    body = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    assert len(body) == 1 + len(json.loads(render(board, "json")))
    assert {len(re.findall(r"<t[hd]", row)) for row in body} == {len(re.findall("<th", body[0]))}
    assert "<script>" not in html


@pytest.mark.parametrize("index", range(len(FOLDERS) + 1))
def test_json_fits_the_shipped_schema(index):
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    lines = json.loads(render(boards()[index], "json"))
    assert lines
    jsonschema.validate(lines, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{**lines[0], "status": "fine"}], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{**lines[0], "distance": "small"}], schema)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_and_changes_no_word(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colour(Terminal())
    assert not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())
    board = load_leaderboard(RESULTS / "quickstart")
    plain, coloured = render(board), render(board, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[1m" in coloured
    bare = re.sub(r"\x1b\[\d+m", "", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == plain.splitlines()
