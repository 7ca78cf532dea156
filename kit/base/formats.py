"""A table in the formats of papers: Markdown, and LaTeX for the package booktabs."""

import math

import pandas as pd


def as_markdown(frame: pd.DataFrame) -> str:
    """Return a table in Markdown, its index as the first column."""
    cells = frame.reset_index().map(_cell)
    rows = [list(map(str, cells.columns)), ["---"] * len(cells.columns), *cells.to_numpy().tolist()]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def as_latex(frame: pd.DataFrame) -> str:
    """Return a table in LaTeX, for the package booktabs, its index as the first column."""
    cells = frame.reset_index().map(_cell)
    text: str = cells.to_latex(index=False, escape=True)
    # Two hyphens would become a dash, in an option's name, too.
    return text.replace("--", "-{}-")


def format_number(value: float) -> str:
    """Show four decimals, or the size of what has none of them."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 5e-5 else f"{value:.1e}"


def format_p(p_value: float) -> str:
    """Show a p-value with three decimals; one that has none of them is below 0.001, never 0."""
    return f"p = {p_value:.3f}" if p_value >= 5e-4 else "p < 0.001"


def _cell(value: object) -> str:
    """Return what stands in a cell: nothing where there is no number."""
    if isinstance(value, float):
        return "" if math.isnan(value) else format_number(value)
    return str(value)
