"""Small plots as inline SVG: no script, no network; colours come from the page's style."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Self

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 46
COLOURS: Final = 6  # classes c0 to c5 of the page's style; the seventh name has c0 and squares

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """The points of one name; `colour` is the name's number on the page, `ringed` are marked."""

    name: str
    colour: int
    points: Points
    ringed: Points = ()


def lines(
    title: str, x_label: str, y_label: str, series: Sequence[Series], *, log_y: bool = False
) -> str:
    """Lines over a logarithmic x axis of powers of two; y is from zero, or logarithmic."""
    xs, ys = _columns(series)
    if not xs:
        return _empty(title)
    axes = _Axes(_Scale.twos(xs), _Scale.tens(ys) if log_y else _Scale.linear(ys, from_zero=True))
    body = [axes.drawn(x_label, y_label)]
    for each in series:
        path = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in each.points)
        body.append(f'<polyline class="line {_class(each)}" points="{path}"/>')
    body += [_marks(axes, each) for each in series]
    return _figure(title, body, series)


def scatter(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Points alone over linear axes: x from zero, y as far as the points go."""
    xs, ys = _columns(series)
    if not xs:
        return _empty(title)
    axes = _Axes(_Scale.linear(xs, from_zero=True), _Scale.linear(ys))
    body = [axes.drawn(x_label, y_label), *(_marks(axes, each) for each in series)]
    return _figure(title, body, series)


@dataclass(frozen=True)
class _Scale:
    """Where a value is between two bounds, and which values are written beside the axis."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    @classmethod
    def twos(cls, values: Sequence[float]) -> Self:
        """Logarithmic, a tick at each power of two, or at each second one where they are many."""
        low, high = math.log2(min(values)), math.log2(max(values))
        powers = range(math.ceil(low), math.floor(high) + 1)
        step = 1 + len(powers) // 10
        ticks = tuple((2.0**n, f"{2**n:,}") for n in powers[::step])
        return cls(2 ** (low - 0.2), 2 ** (high + 0.2), ticks, log=True)

    @classmethod
    def tens(cls, values: Sequence[float]) -> Self:
        """Logarithmic, with ticks at 1, 2, 5, 10, ... or at powers of ten over many of them."""
        low, high = min(values) / 1.25, max(values) * 1.25
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        heads = (1, 2, 5) if len(decades) < 5 else (1,)
        ticks = [head * 10.0**n for n in decades for head in heads]
        return cls(low, high, tuple((t, f"{t:,.12g}") for t in ticks if low <= t <= high), log=True)

    @classmethod
    def linear(cls, values: Sequence[float], *, from_zero: bool = False) -> Self:
        """About five round ticks, written with as many digits as tell them apart."""
        low, high = min([0.0] * from_zero + list(values)), max(values)
        # Values that differ by rounding errors are the same: they get no magnifying glass.
        margin = max((high - low) * 0.12, max(abs(low), abs(high)) * 0.001) or 1.0
        low, high = (max(0.0, low - margin) if low >= 0 else low - margin), high + margin
        rough = (high - low) / 5
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        marks = range(math.ceil(low / step), math.floor(high / step) + 1)
        return cls(low, high, tuple((n * step, f"{n * step:,.{digits}f}") for n in marks))

    def share(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class _Axes:
    across: _Scale
    up: _Scale

    def x(self, value: float) -> float:
        return round(LEFT + self.across.share(value) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - self.up.share(value) * (HEIGHT - TOP - BOTTOM), 1)

    def drawn(self, x_label: str, y_label: str) -> str:
        floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = []
        for tick, said in self.up.ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{said}</text>')
        for tick, said in self.across.ticks:
            x = self.x(tick)
            parts.append(f'<path class="axis" d="M{x} {floor}v4"/>')
            parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{said}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{right}"/>')
        middle = (LEFT + right) / 2
        parts.append(
            f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        )
        parts.append(f'<text x="{LEFT - 50}" y="{TOP - 16}">{escape(y_label)}</text>')
        return "".join(parts)


def _columns(series: Iterable[Series]) -> tuple[list[float], list[float]]:
    points = [point for each in series for point in each.points]
    return [x for x, _ in points], [y for _, y in points]


def _class(series: Series) -> str:
    return f"c{series.colour % COLOURS}"


def _marks(axes: _Axes, series: Series) -> str:
    colour, parts = _class(series), []
    for x, y in series.points:
        at_x, at_y = axes.x(x), axes.y(y)
        said = f"<title>{escape(f'{series.name}: {y:.6g} at {x:.4g}')}</title>"
        if series.colour < COLOURS:
            parts.append(f'<circle class="dot {colour}" cx="{at_x}" cy="{at_y}" r="3.5">{said}')
            parts.append("</circle>")
        else:
            corner = f'x="{at_x - 3.5:.1f}" y="{at_y - 3.5:.1f}"'
            parts.append(f'<rect class="dot {colour}" {corner} width="7" height="7">{said}</rect>')
    for x, y in series.ringed:
        parts.append(f'<circle class="ring {colour}" cx="{axes.x(x)}" cy="{axes.y(y)}" r="7.5"/>')
    return "".join(parts)


def _figure(title: str, body: Sequence[str], series: Sequence[Series]) -> str:
    legend = "".join(
        f'<span class="key"><i class="{_class(each)}{" square" * (each.colour >= COLOURS)}"></i>'
        f"{escape(each.name)}</span>"
        for each in series
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(body)}</svg><div class="legend">{legend}</div></figure>'
    )


def _empty(title: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption><p>not measured</p></figure>"
