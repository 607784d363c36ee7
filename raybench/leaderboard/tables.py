"""Tables of text: aligned for a terminal, Markdown, LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
}


def as_plain(header: Sequence[str], rows: Rows, notes: Sequence[str] = ()) -> str:
    """Aligned columns with a rule under the header, and the notes below."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(text + (["", *notes] if notes else [])) + "\n"


def as_markdown(header: Sequence[str], rows: Rows, notes: Sequence[str] = ()) -> str:
    """A table in Markdown; each note is a line of its own."""
    lines = [header, ["---"] * len(header), *rows]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join(text + ([""] + [f"{note}  " for note in notes] if notes else [])) + "\n"


def as_latex(header: Sequence[str], rows: Rows, notes: Sequence[str] = ()) -> str:
    """A tabular for the package booktabs; notes are comments above it."""
    start = [*(f"% {note}" for note in notes), rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\toprule"]
    first, *rest = [" & ".join(map(latex_text, line)) + r" \\" for line in (header, *rows)]
    return "\n".join([*start, first, r"\midrule", *rest, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex_text(text: str) -> str:
    """``text`` with what LaTeX reads as commands escaped."""
    return "".join(_LATEX.get(c, c) for c in text)
