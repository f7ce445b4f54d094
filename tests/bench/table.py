"""Plain text tables: medians and spread, goals and whether they are reached."""

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and lowest to highest where there are several."""
    if not values:
        return "-"
    middle = f"{median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints aligned columns; a row that is too short says in its last cell why."""
    whole = [row for row in rows if len(row) == len(head)]
    widths = [max(len(row[at]) for row in [head, *whole]) for at in range(len(head))]
    widths[0] = max([widths[0]] + [len(row[0]) for row in rows])
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  " + "  ".join(cells).rstrip())


def goal(words: str, figure: str, reached: bool | None) -> None:
    """One goal beside its figure; None: nothing to judge by."""
    verdict = {True: "reached", False: "NOT REACHED", None: "not measured"}[reached]
    print(f"  goal: {words}: {figure}: {verdict}", flush=True)


def at_most(words: str, figure: float | None, limit: float | None, unit: str = "") -> None:
    """The goal that a figure is at most ``limit``."""
    if figure is None or limit is None:
        goal(words, "no figure", None)
    else:
        goal(words, f"{figure:.3g}{unit} of at most {limit:.3g}{unit}", figure <= limit)
