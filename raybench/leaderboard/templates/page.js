"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const problems = JSON.parse($("problems").textContent);
  const body = $("lines").tBodies[0];
  const rows = [...body.rows];
  const selects = [...document.querySelectorAll("[data-filter]")];

  // Filters: what they hide is hidden in the tables and among the figures.
  const apply = () => {
    const fits = problems.map((problem) => selects.every((s) => !s.value || problem[s.dataset.filter] === s.value));
    const wanted = $("search").value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const gated = $("gates").checked && "g" in row.dataset;
      const named = !wanted || row.cells[0].textContent.toLowerCase().includes(wanted);
      row.hidden = gated || !named || !fits[row.dataset.p];
      shown += !row.hidden;
    }
    for (const item of document.querySelectorAll("figure[data-p], #summary tr[data-p]")) {
      item.hidden = !fits[item.dataset.p];
    }
    $("count").textContent = `${shown} of ${rows.length} lines`;
    $("none").hidden = shown > 0;
  };
  // Both: "input" follows typing, and some drivers and browsers send it before a choice counts.
  for (const control of [...selects, $("search"), $("gates")]) {
    for (const kind of ["input", "change"]) control.addEventListener(kind, apply);
  }
  $("filters").hidden = false;
  apply();

  // Sorting: by number where a cell starts with one, by words elsewhere; empty cells stay last.
  const value = (row, at) => {
    const text = row.cells[at].textContent;
    const number = parseFloat(text);
    return text === "" ? null : Number.isNaN(number) ? text : number;
  };
  const sort = (at, direction) => {
    const keyed = rows.map((row) => [value(row, at), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      if (typeof a === typeof b && typeof a === "number") return direction * (a - b);
      return direction * String(a).localeCompare(String(b));
    });
    body.append(...keyed.map(([, row]) => row));
  };
  const heads = [...$("lines").tHead.rows[0].cells];
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(at, up ? 1 : -1);
    });
  });

  // Theme: as the system has it, light, dark.
  const themes = ["auto", "light", "dark"];
  const show = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    $("theme").textContent = `Theme: ${theme}`;
    $("theme").dataset.now = theme;
  };
  let kept = null;
  try { kept = localStorage.getItem("raybench-theme"); } catch { /* a browser may forbid storage to files */ }
  show(themes.includes(kept) ? kept : "auto");
  $("theme").hidden = false;
  $("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf($("theme").dataset.now) + 1) % themes.length];
    show(next);
    try { localStorage.setItem("raybench-theme", next); } catch { /* likewise */ }
  });

  // Hover texts of the figures, by mouse or finger.
  const tip = $("tip");
  const point = (event) => {
    const mark = event.target.closest?.(".tip");
    tip.hidden = !mark;
    if (!mark) return;
    const title = mark.querySelector(":scope > title");
    if (title) { mark.dataset.tip = title.textContent; title.remove(); } // else the browser shows it a second time
    tip.textContent = mark.dataset.tip;
    const left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 16 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${below ? event.clientY + 16 : event.clientY - tip.offsetHeight - 12}px`;
  };
  for (const kind of ["pointerover", "pointerdown"]) document.addEventListener(kind, point);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // Paper shows what is folded on a screen.
  const folded = [...document.querySelectorAll("details")];
  let open = [];
  addEventListener("beforeprint", () => {
    open = folded.filter((item) => item.open);
    for (const item of folded) item.open = true;
  });
  addEventListener("afterprint", () => { for (const item of folded) item.open = open.includes(item); });
})();
