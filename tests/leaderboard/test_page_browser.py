"""The page in a real browser: it asks for nothing, sorts, filters, draws, and shuts nobody out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import raybench
from raybench.cards import cards
from raybench.leaderboard.page import SECTIONS, Sources, write_page
from tests.leaderboard.browser import chromium, faults, look, needs_chromium, requests_of
from tests.leaderboard.many_rows import write_rows

pytestmark = needs_chromium
ROWS = (
    "return [...document.querySelectorAll('#lines tbody tr')].filter(r => r.offsetParent)"
    ".map(r => [...r.cells].map(c => c.textContent))"
)
SPEC: dict[str, Any] = {
    "name": "every_plot",
    "problems": [
        {
            "dataset": {"name": "digits", "train_size": 600},
            "models": [{"name": "mlp", "hidden": [64]}],
            "scenarios": [{"class": {"classes": [0]}}, {"class": {"classes": [1]}}],
        }
    ],
    "methods": [
        {"name": "finetune", "space": {"epochs": {"low": 1, "high": 2}}},
        {"name": "gradient_ascent", "space": {"epochs": {"low": 1, "high": 2}}},
        {"name": "deepclean", "hparams": {"epochs": 1}, "space": {}, "sweep": {"gamma": [0.5, 2.0]}},
    ],
    "recipe": {"epochs": 15, "batch_size": 64, "lr": 0.05},
    "seeds": {"train": [0, 1, 2]},
    "search": {"trials": 4, "round_size": 4},
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run with everything that can be drawn: curves, outputs, a sweep, searches."""
    folder = tmp_path_factory.mktemp("page")
    raybench.run(SPEC, results=str(folder / "results"), store=str(folder / "store"), serial=True, quiet=True)
    sources = Sources.read(folder / "results")
    write_page(sources, cards(sources.frames.leaderboard["method"], sources.spec), folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("width", [1440, 390])
def test_console_is_clean_and_no_request_leaves_the_file(driver, page, width, tmp_path):
    requests_of(driver)
    look(driver, page, width)
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    asked = [url for url in requests_of(driver) if not url.startswith("data:")]
    assert asked == [page.as_uri()]
    # Nothing but tables, plots and code scrolls sideways, on a phone either.
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert driver.save_screenshot(str(tmp_path / f"{width}.png"))


def test_sorting_changes_the_order(driver, page):
    look(driver, page, 1440)
    before = driver.execute_script(ROWS)
    head = driver.execute_script("return [...document.querySelectorAll('#lines thead th')].map(h => h.textContent)")
    at = head.index("unlearn s")

    def seconds() -> list[float]:
        return [float(row[at].split()[0]) for row in driver.execute_script(ROWS) if row[at]]

    button = f"document.querySelectorAll('#lines thead button')[{at}].click()"
    driver.execute_script(button)
    up = driver.execute_script(ROWS)
    assert up != before
    assert sorted(up) == sorted(before)
    assert seconds() == sorted(seconds())
    state = f"return document.querySelectorAll('#lines thead th')[{at}].getAttribute('aria-sort')"
    assert driver.execute_script(state) == "ascending"
    driver.execute_script(button)
    assert seconds() == sorted(seconds(), reverse=True)
    assert driver.execute_script(state) == "descending"
    driver.execute_script("document.querySelectorAll('#lines thead button')[0].click()")
    names = [row[0] for row in driver.execute_script(ROWS)]
    assert names == sorted(names)


def choose(driver: Any, control: str, value: str) -> None:
    driver.execute_script(
        "const c = document.querySelector(arguments[0]);"
        "if (c.type === 'checkbox') c.checked = arguments[1] === 'on'; else c.value = arguments[1];"
        "c.dispatchEvent(new Event('input', {bubbles: true}));",
        control,
        value,
    )


def test_filters_change_lines_figures_and_summary(driver, page):
    look(driver, page, 1440)
    figures = "return [...document.querySelectorAll('figure')].filter(f => f.offsetParent).length"
    winners = "return [...document.querySelectorAll('#summary tbody tr')].filter(r => r.offsetParent).length"
    lines, drawn = len(driver.execute_script(ROWS)), driver.execute_script(figures)
    choose(driver, "[data-filter='2']", "class(0)")
    left = driver.execute_script(ROWS)
    assert 0 < len(left) < lines
    assert {row[4] for row in left} == {"mlp(hidden=64) / class(0)"}
    assert 0 < driver.execute_script(figures) < drawn
    assert driver.execute_script(winners) == 1
    choose(driver, "#search", "deepclean")
    assert {row[0].split(" ")[0] for row in driver.execute_script(ROWS)} == {"deepclean"}
    choose(driver, "#search", "nobody")
    assert driver.execute_script(ROWS) == []
    assert driver.execute_script("return document.getElementById('none').offsetParent !== null")
    choose(driver, "#search", "")
    choose(driver, "[data-filter='2']", "")
    assert len(driver.execute_script(ROWS)) == lines
    choose(driver, "#gates", "off")
    everything = driver.execute_script("return document.querySelectorAll('#lines tbody tr').length")
    assert len(driver.execute_script(ROWS)) == everything
    assert driver.execute_script("return document.getElementById('count').textContent").startswith(f"{everything} of")


def test_every_section_is_drawn_and_every_plot_has_data(driver, page):
    look(driver, page, 1440)
    drawn = driver.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('section[id^=plot-]')].map("
        "s => [s.id.slice(5), [...s.querySelectorAll('svg')].map("
        "v => [v.querySelectorAll('path, use, image').length, v.querySelectorAll('.tip').length,"
        " v.getBoundingClientRect().height])]))"
    )
    assert set(drawn) == set(SECTIONS) - {"overall"}  # which needs ten problems, and the page says so
    assert "more to run" in driver.execute_script("return document.getElementById('summary').textContent")
    for section, plots in drawn.items():
        assert plots, section
        for paths, tips, height in plots:
            assert paths > 10
            assert height > 100
            assert tips > 0 or section == "sweep"  # those are the figures of the papers, without hover texts


def test_marks_say_what_they_are(driver, page):
    look(driver, page, 1440)
    driver.execute_async_script(  # two frames later: the scrolling itself hides what is said
        "const done = arguments[0], m = document.querySelector('#plot-front .tip');"
        "m.scrollIntoView({block: 'center', behavior: 'instant'});"
        "requestAnimationFrame(() => requestAnimationFrame(() => {"
        "  m.dispatchEvent(new PointerEvent('pointerover', {bubbles: true, clientX: 50, clientY: 50})); done(); }));"
    )
    assert "distance" in driver.execute_script("return document.getElementById('tip').textContent")
    assert driver.execute_script("return document.getElementById('tip').offsetWidth > 0")


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_no_serious_fault_of_accessibility(driver, page, width, dark):
    look(driver, page, width, dark)
    driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true;")
    assert faults(driver) == []


def test_theme_follows_the_system_and_the_button(driver, page):
    ground = "return getComputedStyle(document.body).backgroundColor"
    look(driver, page, 1440, dark=True)
    dark = driver.execute_script(ground)
    assert dark == "rgb(20, 23, 28)"
    driver.execute_script("document.getElementById('theme').click()")  # auto -> light
    assert driver.execute_script(ground) == "rgb(255, 255, 255)"
    driver.execute_script("document.getElementById('theme').click()")  # -> dark
    assert driver.execute_script(ground) == dark
    ink = "return getComputedStyle(document.querySelector('#plot-front svg text')).fill"
    assert driver.execute_script(ink) == "rgb(233, 235, 238)"  # figures go along
    driver.execute_script("document.getElementById('theme').click()")  # back to auto
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert driver.execute_script(ground) == "rgb(255, 255, 255)"  # paper is white
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_downloads_hold_the_leaderboard(driver, page):
    look(driver, page, 1440)
    links = driver.execute_script(
        "return [...document.querySelectorAll('#downloads a')].map(a => [a.download, a.href])"
    )
    assert [name for name, _ in links] == ["leaderboard.csv", "leaderboard.parquet"]
    assert all(href.startswith("data:") for _, href in links)


def test_a_hundred_thousand_rows_make_a_page_that_is_usable_in_three_seconds(driver, tmp_path):
    write_rows(tmp_path / "results", problems=5, methods=40, search=500, seeds=3)
    sources = Sources.read(tmp_path / "results")
    assert len(sources.frames.trials) >= 100_000
    page = tmp_path / "page.html"
    assert write_page(sources, cards((), ""), page) < 10_000_000
    taken = []
    for _ in range(3):  # another program may have the machine for one of them
        start = time.monotonic()
        look(driver, page, 1440)
        driver.execute_script("document.querySelectorAll('#lines thead button')[3].click()")
        choose(driver, "#search", "method 1")
        assert len(driver.execute_script(ROWS)) > 0
        taken.append(time.monotonic() - start)
    assert min(taken) < 3.0, taken
