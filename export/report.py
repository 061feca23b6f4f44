"""`report.html`: a version's manifest as one page to be read, light or dark, without network."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from math import isfinite
from typing import Final

from export import plot
from export.formats import BASE
from export.manifest import Candidate, FileFacts, Manifest, Metric, OutputParity, Profile, StepFacts
from export.pareto import front, measured, worst_cosine
from export.plot import Series
from export.table import NOT_MEASURED, cells_of, error_figure, figure

STYLE = """
:root{color-scheme:light dark;--ink:#1c2126;--dim:#5b6670;--line:#d5dbe0;--page:#fff;
--panel:#f5f7f8;--c0:#1f6fb2;--c1:#c4511d;--c2:#2b8a4b;--c3:#8a4fbf;--c4:#a87b00;--c5:#b3306e}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6eaee;--dim:#9aa6b1;--line:#39424b;
--page:#14181c;--panel:#1d2329;--c0:#6db3f2;--c1:#f2925f;--c2:#6fcf8e;--c3:#c39af0;--c4:#e3bd4f;
--c5:#f07fb0}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1060px;
margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2rem 0 .5rem;break-after:avoid}
.lead{color:var(--dim);margin:.3rem 0 1.2rem}
table{border-collapse:collapse;width:100%;font-size:13px}tr{break-inside:avoid}
th,td{padding:.3rem .5rem;text-align:left;vertical-align:top;white-space:pre-line;
overflow-wrap:break-word}th{vertical-align:bottom}td,thead{border-top:1px solid var(--line)}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}th.n{white-space:normal}
.name{white-space:nowrap}.why,.none{color:var(--dim)}td.why{border-top:0;padding-top:0}
.chosen{font-weight:600}.hash{font-family:monospace;font-size:11.5px;overflow-wrap:anywhere}
.wide{overflow-x:auto}
.panel{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:.6rem}
.panel div{background:var(--panel);border-radius:8px;padding:.6rem .8rem;break-inside:avoid}
.panel b{display:block;font-size:1.1rem}.panel span{color:var(--dim);font-size:12px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(380px,100%),1fr));gap:1rem}
figure{margin:0;background:var(--panel);border-radius:8px;padding:.6rem;break-inside:avoid}
figcaption{font-weight:600;font-size:13px}svg{width:100%;height:auto}svg text{fill:var(--dim);
font-size:11px}.axis{stroke:var(--dim);fill:none}.grid{stroke:var(--line);fill:none}
.line{fill:none;stroke-width:2}.ring{fill:none;stroke-width:1.5}
.legend{font-size:12px;display:flex;flex-wrap:wrap;gap:.2rem 1rem}
.key i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.35em}
.key .square{border-radius:0}
@media print{body{max-width:none;margin:0;padding:0;font-size:11pt;print-color-adjust:exact;
-webkit-print-color-adjust:exact}.wide{overflow:visible}table{font-size:8.5pt}
.plots{grid-template-columns:1fr 1fr}}
""" + "".join(
    f"svg .c{n}{{stroke:var(--c{n})}}svg .dot.c{n}{{fill:var(--c{n})}}"
    f".key .c{n}{{background:var(--c{n})}}"
    for n in range(plot.COLOURS)
)


# The columns of `cells_of`, between the format's name and its metric.
_FIGURES: Final = (
    "inferences/s at the knee",
    "batch",
    "p99 ms",
    "file MB",
    "resident MB",
    "cold start ms",
    "max |error|",
    "mean cosine",
)


def render(manifest: Manifest) -> str:
    """The page."""
    title = f"{manifest.model} version {manifest.version}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _lead(f"{_why(manifest)} Made {manifest.created}."),
        _panel(manifest),
        '<h2>Curves</h2><div class="plots">',
        *_plots(manifest.candidates),
        "</div>",
        "<h2>Formats</h2>",
        *_candidates(manifest.candidates),
        "<h2>Parity with the trained model</h2>",
        *_parity(manifest),
        "<h2>Steps</h2>",
        _table(("step", "status", "seconds", "what"), _steps(manifest.steps), right=(2,)),
        "<h2>Made from, made of</h2>",
        *_files(manifest),
        "<h2>Measured with, on</h2>",
        _table(("what", "which"), _where(manifest)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}"
        "</body></html>\n"
    )


def _why(manifest: Manifest) -> str:
    """Which format, why, and what it does: one sentence for each."""
    chosen = next((c for c in manifest.candidates if c.status == "chosen"), None)
    why = chosen.why if chosen and chosen.why else f"the objective was {manifest.objective}"
    said = f"Published as {manifest.format}: {why}."
    if profile := measured(manifest.profile):
        knee = profile.knee()
        said += (
            f" At its knee, batch {knee.batch}, it gives {figure(knee.throughput)} inferences/s, "
            f"and a batch takes {_ms(knee.p50_ms)} (p50) to {_ms(knee.p99_ms)} (p99)."
        )
    return said


def _panel(manifest: Manifest) -> str:
    size = sum(file.bytes for file in manifest.files.values())
    figures = [
        *_speed(manifest),
        ("files", _size(size) if manifest.files else NOT_MEASURED),
        *_memory(manifest),
    ]
    if metric := manifest.metric:
        figures.append((f"{metric.name} ({_allowed(metric)})", f"{metric.value:.4g}"))
    cells = (f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in figures)
    return f'<div class="panel">{"".join(cells)}</div>'


def _speed(manifest: Manifest) -> Iterable[tuple[str, str]]:
    profile = measured(manifest.profile)
    if profile is None:
        yield "inferences at the knee", NOT_MEASURED
        yield "p50 / p99 at batch 1", NOT_MEASURED
        return
    knee, first = profile.knee(), profile.curve[0]
    yield f"inferences at the knee, batch {knee.batch}", f"{figure(knee.throughput)}/s"
    if manifest.format != BASE:
        base = next((measured(c.profile) for c in manifest.candidates if c.format == BASE), None)
        ratio = f"{knee.throughput / base.knee().throughput:.2f} times" if base else NOT_MEASURED
        yield f"{BASE}'s, both at their knee", ratio
    yield f"p50 / p99 at batch {first.batch}", f"{_ms(first.p50_ms)} / {_ms(first.p99_ms)}"


def _memory(manifest: Manifest) -> Iterable[tuple[str, str]]:
    resident = peak = cold = copies = NOT_MEASURED
    if profile := measured(manifest.profile):
        resident, peak = _size(profile.resident_bytes), _size(profile.peak_bytes)
        cold = _ms(profile.cold_start_s * 1000)
        copies = f"{profile.instances} / {profile.threads}"
    reserved = manifest.memory_bytes
    yield "resident memory of a copy", resident
    yield "peak memory, loading and running", peak
    yield "reserved by a gateway", NOT_MEASURED if reserved is None else _size(reserved)
    yield "cold start from disk", cold
    yield "copies / threads of each", copies


def _plots(candidates: Sequence[Candidate]) -> Iterable[str]:
    metric = next((c.metric for c in candidates if c.metric), None)
    accuracy = {c.format: at for c in candidates if (at := _accuracy(c, metric))}
    shown = [c for c in candidates if measured(c.profile) or c.format in accuracy]
    colours = {c.format: number for number, c in enumerate(shown)}  # the same in each plot
    curves = {c.format: p for c in shown if (p := measured(c.profile))}
    for title, attribute, unit in (
        ("Median latency of a batch (ring: knee)", "p50_ms", "ms, p50"),
        ("Tail latency of a batch (ring: knee)", "p99_ms", "ms, p99"),
        ("Throughput (ring: knee)", "throughput", "inferences per second"),
    ):
        yield plot.lines(
            title,
            "batch size",
            unit,
            [_line(name, colours[name], p, attribute) for name, p in curves.items()],
            log_y=unit.startswith("ms"),
        )
    best = front(candidates)
    yield plot.scatter(
        "Accuracy against size (ring: no other beats it in everything)",
        "file, MB",
        metric.name if metric else "mean cosine to PyTorch",
        [
            Series(name, colours[name], [at], [at] if name in best else [])
            for name, at in accuracy.items()
        ],
    )


def _line(name: str, colour: int, profile: Profile, attribute: str) -> Series:
    points = [(float(p.batch), float(getattr(p, attribute))) for p in profile.curve]
    knee = profile.knee()
    return Series(name, colour, points, [(knee.batch, getattr(knee, attribute))])


def _accuracy(candidate: Candidate, metric: Metric | None) -> tuple[float, float] | None:
    """File size in MB and metric, or mean cosine where nobody has a metric; None: unknown."""
    value = worst_cosine(candidate)
    if metric:
        value = candidate.metric.value if candidate.metric else None
    if value is None or not isfinite(value) or candidate.size_bytes is None:
        return None
    return candidate.size_bytes / 1e6, value


def _candidates(candidates: Sequence[Candidate]) -> Iterable[str]:
    metric = next((c.metric for c in candidates if c.metric), None)
    best = front(candidates)
    yield _lead(
        "* no other is as good in throughput, memory, size and error together; the knee is the "
        "smallest batch with nine tenths of the highest throughput"
        + (f"; {metric.name}: {_allowed(metric)}" if metric else "")
    )
    figures = (*_FIGURES, *([metric.name] if metric else []))
    rows = (_candidate(each, each.format in best, metric is not None) for each in candidates)
    head = _row("th", ("format", "status", *figures), right=range(2, 2 + len(figures)))
    yield _framed(head, rows)


def _candidate(candidate: Candidate, on_front: bool, has_metric: bool) -> str:
    """A row of figures and, where there is a reason, one of words below them."""
    cells = cells_of(candidate)
    if has_metric:
        cells.append(f"{candidate.metric.value:.4g}" if candidate.metric else "-")
    chosen = candidate.status == "chosen"
    kind = ' class="chosen"' if chosen else ""
    name = f'<td class="name">{escape(candidate.format)}{" *" * on_front}</td>'
    name += f"<td>{candidate.status}</td>"
    if set(cells) == {"-"}:
        why = f": {candidate.why}" if candidate.why else ""
        said = f'<td class="none" colspan="{len(cells)}">{NOT_MEASURED}{escape(why)}</td>'
        return f"<tr{kind}>{name}{said}</tr>"
    figures = "".join(
        f'<td class="n none">{NOT_MEASURED.replace(" ", "<br>")}</td>'
        if cell == "-"
        else f'<td class="n">{escape(cell)}</td>'
        for cell in cells
    )
    row = f"<tr{kind}>{name}{figures}</tr>"
    if candidate.why:
        row += (
            f'<tr><td class="why"></td><td class="why" colspan="{len(cells) + 1}">'
            f"{escape(candidate.why)}</td></tr>"
        )
    return row


def _parity(manifest: Manifest) -> Iterable[str]:
    parity = manifest.parity
    sizes = "; ".join(", ".join(f"{k} {v}" for k, v in s.items()) or "fixed" for s in parity.sizes)
    yield _lead(
        f"{manifest.format}: {parity.checks} checks against PyTorch in float32, random values at "
        f"{sizes or 'no size'}; {parity.real_samples} real samples. Over all checks:"
    )
    verified = {c.format: c.parity for c in manifest.candidates if c.parity}
    verified = {manifest.format: parity, **verified}  # the published one comes first
    rows = [
        (name, output, error_figure(o.max_abs), error_figure(o.max_rel), *_cosines(o))
        for name, its in verified.items()
        for output, o in its.outputs.items()
    ]
    head = ("format", "output", "max |error|", "max relative error", "mean cosine", "least cosine")
    yield _table(head, rows, right=(2, 3, 4, 5))


def _cosines(output: OutputParity) -> Iterable[str]:
    yield f"{output.cosine:.7g}"
    yield f"{output.least_cosine:.7g}"


def _steps(steps: Iterable[StepFacts]) -> Iterable[tuple[str, ...]]:
    for step in steps:
        seconds = f"{step.seconds:.1f}" if step.seconds >= 0.1 else "< 0.1"
        if step.status == "skipped":
            seconds = "not run"
        yield step.name, step.status, "kept" if step.reused else seconds, step.why


def _files(manifest: Manifest) -> Iterable[str]:
    source = manifest.source
    yield _lead(f"Source: {source.kind} {source.model}")
    rows = [*_hashes("source", source.files), *_hashes("version", manifest.files)]
    yield _table(("of the", "file", "size", "sha256"), rows, right=(2,), hashes=(3,))


def _hashes(part: str, files: Mapping[str, FileFacts]) -> Iterable[tuple[str, ...]]:
    for name, file in files.items():
        yield part, name, _size(file.bytes), file.sha256


def _where(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    machine = manifest.machine
    yield "processor", f"{machine.cpu}, {machine.cores} cores, {_size(machine.memory_bytes)}"
    driver = f", driver {machine.driver}" if machine.driver else ""
    yield "GPU", f"{machine.gpu}{driver}" if machine.gpu else "none: nothing was measured on one"
    yield from manifest.tools.items()


def _lead(words: str) -> str:
    return f'<p class="lead">{escape(words)}</p>'


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[int] = (),
    hashes: Collection[int] = (),
) -> str:
    body = (_row("td", row, right=right, hashes=hashes) for row in rows)
    return _framed(_row("th", head, right=right), body)


def _framed(head: str, rows: Iterable[str]) -> str:
    body = "".join(rows)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _row(
    tag: str, cells: Iterable[str], *, right: Collection[int] = (), hashes: Collection[int] = ()
) -> str:
    made = []
    for column, cell in enumerate(cells):
        kind = ' class="n"' if column in right else ' class="hash"' if column in hashes else ""
        made.append(f"<{tag}{kind}>{escape(cell)}</{tag}>")
    return f"<tr>{''.join(made)}</tr>"


def _allowed(metric: Metric) -> str:
    return f"PyTorch {metric.reference:.4g}, may lose {metric.allowed_drop:.4g}"


def _ms(value: float) -> str:
    return f"{figure(value)} ms" if value < 10_000 else f"{figure(value / 1000)} s"


def _size(size: int) -> str:
    for least, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= least:
            return f"{figure(size / least)} {unit}"
    return f"{size} bytes"
