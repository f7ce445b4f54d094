"""A picture by hand: two panels over a day, logarithmic upwards."""

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, TOP, GAP = 720, 190, 90, 34, 56
COLOURS = ("#0a7d4f", "#c2410c", "#2563eb", "#7c3aed")
Points = Sequence[tuple[float, float, float]]
PANELS: tuple[tuple[str, int, float, int, tuple[str, ...]], ...] = (
    (
        "depth of the channel's queue",
        1,
        1.0,
        1,
        ("1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"),
    ),
    (
        "error of the timestamps (absolute)",
        2,
        1.0,
        2,
        ("1 µs", "100 µs", "10 ms", "1 s", "100 s"),
    ),
)


def day(lines: Mapping[str, Points]) -> str:
    """One line per entry: hours, ms for the upper panel, µs for the lower one."""
    total = TOP + 2 * (HEIGHT + GAP) + 14
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {total}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (title, column, start, decades, names) in enumerate(PANELS):
        y0 = TOP + number * (HEIGHT + GAP)
        span = (len(names) - 1) * decades

        def height(value: float, y0: int = y0, start: float = start, span: int = span) -> float:
            place = math.log10(max(abs(value), start) / start) / span
            return y0 + HEIGHT * (1 - min(1.0, place))

        out.append(f'<text x="{LEFT}" y="{y0 - 8}" font-weight="bold">{title}</text>')
        for step, name in enumerate(names):
            y = height(start * 10 ** (step * decades))
            out.append(f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#ddd"/>')
            out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
        for hour in range(0, 25, 4):
            x = LEFT + WIDTH * hour / 24
            out.append(
                f'<text x="{x:.0f}" y="{y0 + HEIGHT + 18}" text-anchor="middle">{hour} h</text>'
            )
        for colour, points in zip(COLOURS, lines.values(), strict=False):
            path = " ".join(
                f"{LEFT + WIDTH * point[0] / 24:.1f},{height(point[column]):.1f}"
                for point in points[:: max(1, len(points) // 720)]
            )
            out.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
            )
    for number, (colour, name) in enumerate(zip(COLOURS, lines, strict=False)):
        x = LEFT + number * 220
        out.append(f'<text x="{x}" y="{total - 8}" fill="{colour}">■ {name}</text>')
    return "\n".join([*out, "</svg>", ""])
