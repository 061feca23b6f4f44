"""Small plots as inline SVG: no script, no network; colours come from the page's style."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 46
COLOURS = 6  # classes c0 to c5 of the page's style

Points = Sequence[tuple[float, float]]


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Points],
    *,
    dashed: Mapping[str, Points] | None = None,
    marked: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Lines over a logarithmic x axis of powers of two; `dashed` lines share their names' colours.

    `marked` points get a ring.
    """
    everything = [p for points in (*series.values(), *(dashed or {}).values()) for p in points]
    if not everything:
        return _empty(title)
    axes = _Axes([p[0] for p in everything], [p[1] for p in everything], log_x=True)
    body = [axes.drawn(x_label, y_label)]
    for number, (name, points) in enumerate(series.items()):
        colour = f"c{number % COLOURS}"
        body.append(_line(axes, points, colour, ""))
        if dashed and name in dashed:
            body.append(_line(axes, dashed[name], colour, " dashed"))
        for x, y in points:
            body.append(_dot(axes, x, y, colour, f"{name}: {y:.4g} at {x:g}"))
        if marked and name in marked:
            x, y = marked[name]
            body.append(f'<circle class="ring {colour}" cx="{axes.x(x)}" cy="{axes.y(y)}" r="7"/>')
    return _figure(title, body, list(series))


def scatter(
    title: str,
    x_label: str,
    y_label: str,
    points: Mapping[str, tuple[float, float]],
    best: Sequence[str],
) -> str:
    """One point a name; those in `best` get a ring."""
    if not points:
        return _empty(title)
    axes = _Axes([p[0] for p in points.values()], [p[1] for p in points.values()], from_zero=False)
    body = [axes.drawn(x_label, y_label)]
    for number, (name, (x, y)) in enumerate(points.items()):
        colour = f"c{number % COLOURS}"
        body.append(_dot(axes, x, y, colour, f"{name}: {y:.5g} at {x:.4g}"))
        if name in best:
            body.append(f'<circle class="ring {colour}" cx="{axes.x(x)}" cy="{axes.y(y)}" r="8"/>')
    return _figure(title, body, list(points))


class _Axes:
    def __init__(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        *,
        log_x: bool = False,
        from_zero: bool = True,
    ) -> None:
        self._log_x = log_x
        if log_x:
            self._x_ticks = [2.0**n for n in range(_log2(min(xs)), _log2(max(xs)) + 1)]
            if len(self._x_ticks) > 9:
                self._x_ticks = self._x_ticks[::2]
            self._x0, self._x1 = math.log2(min(xs)) - 0.2, math.log2(max(xs)) + 0.2
        else:
            self._x_ticks = _ticks(*_padded(min(xs), max(xs)))
            self._x0, self._x1 = _padded(min(xs), max(xs))
        low, high = (0.0, max(ys) * 1.08 or 1.0) if from_zero else _padded(min(ys), max(ys))
        self._y0, self._y1 = low, high
        self._y_ticks = _ticks(low, high)

    def x(self, value: float) -> float:
        at = math.log2(value) if self._log_x else value
        share = (at - self._x0) / (self._x1 - self._x0)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self._y0) / (self._y1 - self._y0)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def drawn(self, x_label: str, y_label: str) -> str:
        floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = [f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{right}"/>']
        for tick in self._y_ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
            parts.append(
                f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{_number(tick)}</text>'
            )
        for tick in self._x_ticks:
            x = self.x(tick)
            parts.append(
                f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{_number(tick)}</text>'
            )
        middle = (LEFT + right) / 2
        parts.append(
            f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        )
        parts.append(f'<text x="{LEFT - 50}" y="{TOP - 12}">{escape(y_label)}</text>')
        return "".join(parts)


def _line(axes: _Axes, points: Points, colour: str, extra: str) -> str:
    path = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in points)
    return f'<polyline class="line {colour}{extra}" points="{path}"/>'


def _dot(axes: _Axes, x: float, y: float, colour: str, title: str) -> str:
    return (
        f'<circle class="dot {colour}" cx="{axes.x(x)}" cy="{axes.y(y)}" r="3.5">'
        f"<title>{escape(title)}</title></circle>"
    )


def _figure(title: str, body: Sequence[str], names: Sequence[str]) -> str:
    legend = "".join(
        f'<span class="key"><i class="c{n % COLOURS}"></i>{escape(name)}</span>'
        for n, name in enumerate(names)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(body)}</svg><div class="legend">{legend}</div></figure>'
    )


def _empty(title: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption><p>not measured</p></figure>"


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two bounds."""
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]


def _log2(value: float) -> int:
    return round(math.log2(value))


def _number(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:.6g}"
