"""The page and its parts without a browser: what it says, that its text is escaped, and that its numbers are right."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from safetensors.numpy import save_file
from sklearn.metrics import log_loss, roc_auc_score

from raybench.cards import cards, link
from raybench.folder import open_folder
from raybench.leaderboard.figure_data import Frames
from raybench.leaderboard.page import Card, Sources, code, render_page, write_figures
from raybench.leaderboard.page_data import downloads, table_of, winners
from raybench.leaderboard.page_figures import Drawing, over_problems
from raybench.leaderboard.page_svg import tip, to_svg
from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.leaderboard.render import render
from raybench.leaderboard.response import binned, grid, responses
from raybench.leaderboard.roc import GRID, curve_of, kept_outputs
from tests.leaderboard.many_rows import write_rows

RESULTS = Path(__file__).parents[2] / "results"
NASTY = '<script>alert("1")</script>&$x_1$'


@pytest.fixture(scope="module")
def quickstart() -> Sources:
    return Sources.read(RESULTS / "quickstart")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "results"
    write_rows(folder, problems=2, methods=2, search=5, seeds=3)
    return folder


def test_table_says_what_the_terminal_says(quickstart: Sources) -> None:
    board = quickstart.frames.leaderboard
    table = table_of(board)
    printed = render(board, gated=True)
    assert len(table.rows) == len(board)
    assert table.left_out == 0
    for row in table.rows:
        named, shown = row.cells[0], [cell for cell in (*row.cells[1:4], *row.cells[5:]) if cell]
        name, _, variant = named.partition(" ")
        lines = [line for line in printed.splitlines() if line.split(" ")[0] == name and variant.strip("()") in line]
        assert any(all(cell in line for cell in shown) for line in lines), row
    (failing,) = [row for row in table.rows if row.gated]
    assert "retain_above_chance" in failing.gated


def test_winners_are_the_nearest_and_the_fastest_of_those_tied(quickstart: Sources) -> None:
    board = quickstart.frames.leaderboard
    for winner in winners(board):
        lines = board[(board[["dataset", "model", "scenario"]] == list(winner.problem)).all(axis=1)]
        first = lines[lines["rank_group"] == 1]
        assert winner.nearest == first.loc[first["distance"].idxmin(), "method"]
        assert {winner.nearest, *winner.tied} == set(first["method"])
        assert winner.fastest == first.loc[first["unlearn_s"].idxmin(), "method"]


def test_the_fastest_is_the_fastest_on_the_device_of_the_nearest(quickstart: Sources) -> None:
    board = quickstart.frames.leaderboard
    cpu, cuda = (board.assign(variant=device, device_type=device) for device in ("cpu", "cuda"))
    cuda["distance"] -= 1e-9  # the nearest is there
    cpu["unlearn_s"] /= 1000
    both = pd.concat([cpu, cuda], ignore_index=True)
    for alone, winner in zip(winners(cuda), winners(both), strict=True):
        assert (winner.nearest, winner.fastest) == (alone.nearest, alone.fastest)
        assert "(cuda)" in winner.fastest
        assert winner.retrain == alone.retrain


def test_unresolved_problems_have_no_winner(quickstart: Sources) -> None:
    board = quickstart.frames.leaderboard.assign(unresolved=True, rank_group=None)
    assert all(not winner.nearest and "unresolved" in winner.note for winner in winners(board))


def test_downloads_are_the_leaderboard(quickstart: Sources) -> None:
    board = quickstart.frames.leaderboard
    read = {}
    for item in downloads(board, "results"):
        read[item.name] = io.BytesIO(base64.b64decode(item.url.split("base64,")[1]))
    pd.testing.assert_frame_equal(pd.read_parquet(read["leaderboard.parquet"]), board, check_like=True)
    text = pd.read_csv(read["leaderboard.csv"], keep_default_na=False)
    assert text["method"].tolist() == board["method"].tolist()
    assert list(text.columns) == list(board.columns)


def test_too_large_downloads_say_where_else_they_are() -> None:
    board = pd.DataFrame({"dataset": ["d"] * 200_000, "distance": np.random.default_rng(0).random(200_000)})
    for item in downloads(board, "a folder"):
        assert item.url == ""
        assert "'a folder'" in item.note


def test_page_escapes_every_name(few: Path) -> None:
    sources = Sources.read(few)
    frames = sources.frames
    frames.leaderboard.loc[frames.leaderboard["method"] == "method 1", "method"] = NASTY
    for name in ("dataset", "scenario"):
        frames.leaderboard[name] += NASTY
        frames.trials[name] += NASTY
    text = render_page(sources, [Card(NASTY, NASTY, paper=NASTY, missing=NASTY, deviations=(NASTY,))])
    assert "<script>alert" not in text
    assert text.count("<script") == 2  # the list of problems and the page's own
    assert "&lt;script&gt;alert" in text
    data = re.search(r'<script type="application/json" id="problems">(.*?)</script>', text)
    assert data is not None
    assert json.loads(data[1])[0][0] == "made_up" + NASTY
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)  # well formed, whatever the names are


def test_page_names_no_address_but_papers(quickstart: Sources) -> None:
    text = render_page(quickstart, cards(quickstart.frames.leaderboard["method"], quickstart.spec))
    hosts = set(re.findall(r"https?://([^/\"'\s<>]+)", text)) - {"www.w3.org"}
    assert hosts <= {"arxiv.org", "doi.org"}
    assert 'href="https://arxiv.org/abs/2311.10448"' in text
    assert "src=" not in text
    for said in ("DeepClean", "gamma", "raybench again", "prefers-color-scheme", "No outputs of trials are in this"):
        assert said in text


def test_same_rows_make_the_same_page(few: Path) -> None:
    assert render_page(Sources.read(few), []) == render_page(Sources.read(few), [])


def test_docstrings_have_code_and_nothing_else() -> None:
    assert code("set ``gamma`` < 1") == "set <code>gamma</code> &lt; 1"
    assert code("``<b>``") == "<code>&lt;b&gt;</code>"
    assert code("odd `` one") == "odd `` one"


def test_cards_tell_what_the_registry_knows_and_what_it_does_not() -> None:
    known, unknown_ = cards(["gkt", "nobody_has_this"], "plugins: [no_such_module]")
    assert "arXiv" in known.paper
    assert known.link.startswith("https://arxiv.org/abs/")
    assert "entropy_cutoff" in {item["name"] for item in known.hparams}
    assert known.deviations
    assert "no_such_module" in unknown_.missing
    assert link("doi:10.1609/aaai.v39i25.34822") == "https://doi.org/10.1609/aaai.v39i25.34822"
    assert link("CVPR 2022") == ""


def test_svg_has_hover_texts_own_ids_and_variables() -> None:
    figure = Figure()
    axis = figure.subplots()
    (drawn,) = axis.plot([1, 2], [3, 4], color="#0072B2", marker="o")
    tip(drawn, "a < b & c")
    text = to_svg(figure, 'what "it" shows', "f7-", {"#0072b2": "s0", "#000000": "ink"})
    root = ET.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'what "it" shows'
    assert [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")] == ["a < b & c"]
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert ids
    assert all(str(i).startswith("f7-") for i in ids)
    for used in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert used in ids
    assert "var(--s0,#0072b2)" in text
    assert "var(--ink,#000000)" in text
    assert "<style" not in text


def test_roc_curve_agrees_with_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors: dict[str, Any] = {}
    for split, n, shift in (("forget", 300, 1.5), ("test_forgotten", 200, 0.0), ("test", 50, 9.0)):
        labels = rng.integers(0, 5, n)
        logits = rng.normal(size=(n, 5)).astype(np.float32)
        logits[np.arange(n), labels] += shift
        tensors |= {f"{split}.logits": logits, f"{split}.labels": labels.astype(np.int64)}
    (tmp_path / "artifacts" / "t1").mkdir(parents=True)
    save_file(tensors, tmp_path / "artifacts" / "t1" / "outputs.safetensors")
    folder = open_folder(tmp_path)
    files = kept_outputs(folder)
    assert files == {"t1": "artifacts/t1/outputs.safetensors"}
    found = curve_of(folder, files["t1"])
    assert found is not None

    def per_sample(split: str) -> list[float]:
        p = np.exp(tensors[f"{split}.logits"].astype(float))
        p /= p.sum(axis=1, keepdims=True)
        return [log_loss([y], [q], labels=range(5)) for y, q in zip(tensors[f"{split}.labels"], p, strict=True)]

    members, others = per_sample("forget"), per_sample("test_forgotten")
    truth = [1] * len(members) + [0] * len(others)
    area = roc_auc_score(truth, [-x for x in members + others])
    assert np.trapezoid(found, GRID) == pytest.approx(area, abs=5e-3)  # the grid is coarser than the thresholds
    assert (np.diff(found) >= 0).all()
    # one rate by hand: at one in ten of the others accused
    threshold = np.quantile(others, 0.1, method="lower")
    assert np.interp(0.1, GRID, found) == pytest.approx(np.mean(np.array(members) <= threshold), abs=0.02)


def test_roc_needs_both_sides(tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "t").mkdir(parents=True)
    save_file({"forget.logits": np.ones((3, 2), np.float32), "forget.labels": np.zeros(3, np.int64)},
              tmp_path / "artifacts" / "t" / "outputs.safetensors")  # fmt: skip
    folder = open_folder(tmp_path)
    assert curve_of(folder, kept_outputs(folder)["t"]) is None


def test_responses_average_seeds_and_keep_numbers_alone(few: Path) -> None:
    trials = load_trials(few)
    found = list(responses(trials, {"method 0": ["gamma"]}))
    assert {r.method for r in found} == {"method 0", "method 1"}
    first = next(r for r in found if r.method == "method 0")
    assert first.names == ("gamma",)
    rows = trials[
        (trials["method"] == "method 0") & (trials["scenario"] == first.problem[2]) & (trials["phase"] == "search")
    ]
    assert sorted(first.settings["y"]) == pytest.approx(sorted(rows["distance_validation"]))
    assert first.selected == {"gamma": (2.0,)}
    again = pd.concat([trials, trials[trials["phase"] == "search"].assign(train_seed=1, distance_validation=1.0)])
    both = next(iter(responses(again, {"method 0": ["gamma"]})))
    assert sorted(both.settings["y"]) == pytest.approx(sorted((first.settings["y"] + 1) / 2))


def test_responses_are_of_the_metric_that_the_search_minimised(few: Path) -> None:
    trials = load_trials(few).assign(selected_on="validation")
    assert list(responses(trials, {})) == []  # not measured
    found = list(responses(trials.assign(retrained_free=0.5), {}))
    assert {r.objective for r in found} == {"retrained_free"}
    assert set(found[0].settings["y"]) == {0.5}


def test_without_a_distance_the_page_says_so(quickstart: Sources) -> None:
    board = quickstart.frames.leaderboard
    bare = board.drop(columns=[c for c in board if c.startswith("distance")]).assign(rank_group=None)
    bare.attrs = {"metrics": {k: v for k, v in board.attrs["metrics"].items() if not k.startswith("distance")}}
    frames = Frames(bare, quickstart.frames.trials, quickstart.frames.series)
    text = render_page(Sources("r", frames, "", quickstart.folder, {}), [])
    assert "the distance to the retrained model was not measured" in text
    assert 'id="plot-front"' not in text
    assert 'id="plot-accuracy"' in text


def test_bins_hold_every_setting_once() -> None:
    rng = np.random.default_rng(0)
    settings = pd.DataFrame({"g": 10 ** rng.uniform(-3, 2, 5000), "h": rng.uniform(0, 1, 5000)})
    settings["y"] = np.log10(settings["g"]) ** 2
    settings.loc[0, "g"] = np.nan
    table = binned(settings, "g")
    assert table["count"].sum() == 4999
    assert table["median"].to_numpy() == pytest.approx(np.log10(table["x"]) ** 2, abs=0.4)
    assert (table["lo"] <= table["median"]).all()
    assert (table["best"] <= table["lo"]).all()
    ex, ey, cells = grid(settings, "g", "h", 8)
    assert len(ex) == len(ey) == 9
    assert np.nanmean(cells, axis=0) == pytest.approx(((np.log10(ex[1:] * ex[:-1]) / 2) ** 2), abs=0.3)


def test_mean_ranks_are_drawn_from_ten_problems_on(tmp_path: Path) -> None:
    write_rows(tmp_path, problems=10, methods=3, search=1, seeds=3)
    board = load_leaderboard(tmp_path)
    board["unresolved"], board["rank_group"] = False, board["rank_group"].where(board["kind"] != "method", 1)
    drawn = over_problems(board)
    assert isinstance(drawn, Drawing)
    assert "Friedman" in drawn.note
    few = board[board["scenario"].isin(["class(0)", "class(1)"])]
    assert "8 more to run" in str(over_problems(few))


def test_figures_come_as_svg_and_pdf(few: Path, tmp_path: Path) -> None:
    sources = Sources.read(few)
    written = write_figures(sources, [], tmp_path / "figures")
    assert len(written) >= 10
    assert {path.suffix for path in written} == {".svg", ".pdf"}
    for path in written:
        data = path.read_bytes()
        assert data.startswith(b"%PDF" if path.suffix == ".pdf" else b"<svg")
        assert b"var(--" not in data
    first = {path.name: path.read_bytes() for path in written}
    for path in write_figures(sources, [], tmp_path / "again"):
        assert path.read_bytes() == first[path.name]


def test_command_writes_into_the_folder_and_says_how_large(cli: Any, few: Path, tmp_path: Path) -> None:
    said = cli("report", str(few), "--out", str(tmp_path / "sub" / "page.html"))
    assert said.code == 0, said.err
    assert said.out.split(" (")[0] == str(tmp_path / "sub" / "page.html")
    assert (tmp_path / "sub" / "page.html").read_text().startswith("<!doctype html>")
    assert cli("report", str(few)).code == 0
    assert (few / "report.html").is_file()
    bad = cli("report", str(tmp_path / "nothing"))
    assert bad.code == 2
    assert "a results folder must exist" in bad.err
    (tmp_path / "file").write_text("")
    bad = cli("report", str(few), "--out", str(tmp_path / "file" / "page.html"))
    assert bad.code == 2
    assert "--out must be a file that can be written" in bad.err


def test_page_needs_neither_torch_nor_ray() -> None:
    code = "import sys, raybench.leaderboard.page; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_empty_frames_are_a_page_without_plots(few: Path) -> None:
    sources = Sources.read(few)
    skipped = sources.frames.leaderboard.assign(status="skipped", distance=None)
    sources.frames = Frames(skipped, sources.frames.trials.iloc[:0], sources.frames.series)
    text = render_page(sources, [])
    assert "no method has a result" in text
