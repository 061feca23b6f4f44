"""`report.html`: a version's manifest as one page to be read, light or dark, without network."""

from collections.abc import Iterable, Sequence
from html import escape

from export import plot
from export.manifest import Candidate, Manifest, Profile
from export.pareto import front
from export.table import NOT_MEASURED, cells_of

STYLE = """
:root{color-scheme:light dark;--ink:#1c2126;--dim:#5b6670;--line:#d5dbe0;--page:#fff;
--panel:#f5f7f8;--c0:#1f6fb2;--c1:#c4511d;--c2:#2b8a4b;--c3:#8a4fbf;--c4:#a87b00;--c5:#b3306e}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaee;--dim:#9aa6b1;--line:#39424b;--page:#14181c;
--panel:#1d2329;--c0:#6db3f2;--c1:#f2925f;--c2:#6fcf8e;--c3:#c39af0;--c4:#e3bd4f;--c5:#f07fb0}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1000px;
margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem;margin:0}
h2{font-size:1.1rem;margin:2rem 0 .5rem}.lead{color:var(--dim);margin:.3rem 0 1.2rem}
table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:.3rem .5rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums}th:first-child,td:first-child,.why{text-align:left}
.why{color:var(--dim)}tr.chosen{font-weight:600}.wide{overflow-x:auto}code{font-size:12px;
overflow-wrap:anywhere}.panel{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));
gap:.6rem}.panel div{background:var(--panel);border-radius:8px;padding:.6rem .8rem}
.panel b{display:block;font-size:1.15rem}.panel span{color:var(--dim);font-size:12px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:1rem}
figure{margin:0;background:var(--panel);border-radius:8px;padding:.6rem}
figcaption{font-weight:600;font-size:13px}svg{width:100%;height:auto}svg text{fill:var(--dim);
font-size:11px}.axis{stroke:var(--dim);fill:none}.grid{stroke:var(--line);fill:none}
.line{fill:none;stroke-width:2}.dashed{stroke-dasharray:4 4;stroke-width:1.3}.ring{fill:none;
stroke-width:1.5}.legend{font-size:12px;display:flex;flex-wrap:wrap;gap:.2rem 1rem}
.key i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.35em}
""" + "".join(
    f"svg .c{n}{{stroke:var(--c{n})}}svg .dot.c{n}{{fill:var(--c{n})}}"
    f".key .c{n}{{background:var(--c{n})}}"
    for n in range(plot.COLOURS)
)

_HEAD = (
    "format",
    "inferences/s at the knee",
    "batch",
    "p99 ms",
    "file MB",
    "resident MB",
    "cold start ms",
    "max |error|",
    "mean cosine",
    "metric",
    "why",
)


def render(manifest: Manifest) -> str:
    """The page."""
    title = f"{manifest.model} version {manifest.version}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_lead(manifest))}</p>',
        _panel(manifest),
        '<h2>Curves</h2><div class="plots">',
        *_plots(manifest.candidates),
        "</div>",
        "<h2>Formats</h2>",
        '<p class="lead">* no other is as good in throughput, memory, size and error together; '
        "the knee is the smallest batch with nine tenths of the highest throughput</p>",
        _candidates(manifest.candidates),
        "<h2>Parity with the trained model</h2>",
        _parity(manifest),
        "<h2>Steps</h2>",
        _table(("step", "status", "seconds", "what"), _steps(manifest)),
        "<h2>Made from, made of</h2>",
        _table(("file", "bytes", "sha256"), _files(manifest)),
        "<h2>Measured with, on</h2>",
        _table(("what", "which"), _where(manifest)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}"
        "</body></html>\n"
    )


def _lead(manifest: Manifest) -> str:
    chosen = next((c for c in manifest.candidates if c.status == "chosen"), None)
    why = f", {chosen.why}" if chosen and chosen.why else ""
    return f"{manifest.format}{why}; made {manifest.created}"


def _panel(manifest: Manifest) -> str:
    profile = manifest.profile
    size = sum(file.bytes for file in manifest.files.values())
    figures = [("size on disk", f"{size / 1e6:.3g} MB")]
    if profile:
        knee, first = profile.knee(), profile.curve[0]
        figures = [
            ("at the knee", f"{knee.throughput:,.0f}/s, batch {knee.batch}"),
            ("against onnx-fp32", _ratio(manifest)),
            ("p50 / p99 at batch 1", f"{first.p50_ms:.3g} / {first.p99_ms:.3g} ms"),
            *figures,
            ("resident / peak", f"{_mb(profile.resident_bytes)} / {_mb(profile.peak_bytes)} MB"),
            ("cold start from disk", f"{profile.cold_start_s * 1000:.3g} ms"),
        ]
    else:
        figures.append(("speed and memory", NOT_MEASURED))
    if manifest.metric:
        value, was = manifest.metric.value, manifest.metric.reference
        figures.append((f"{manifest.metric.name} (PyTorch {was:.4g})", f"{value:.4g}"))
    cells = (f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in figures)
    return f'<div class="panel">{"".join(cells)}</div>'


def _ratio(manifest: Manifest) -> str:
    base = next((c.profile for c in manifest.candidates if c.format == "onnx-fp32"), None)
    if base is None or manifest.profile is None:
        return NOT_MEASURED
    return f"{manifest.profile.knee().throughput / base.knee().throughput:.2f} times"


def _plots(candidates: Sequence[Candidate]) -> Iterable[str]:
    measured: dict[str, Profile] = {c.format: c.profile for c in candidates if c.profile}
    p50 = {f: [(p.batch, p.p50_ms) for p in m.curve] for f, m in measured.items()}
    p99 = {f: [(p.batch, p.p99_ms) for p in m.curve] for f, m in measured.items()}
    rate = {f: [(p.batch, p.throughput) for p in m.curve] for f, m in measured.items()}
    knees = {f: (float(m.knee().batch), m.knee().throughput) for f, m in measured.items()}
    yield plot.lines(
        "Latency of a batch (line p50, dashed p99)", "batch size", "ms", p50, dashed=p99
    )
    yield plot.lines(
        "Throughput (ring: knee)", "batch size", "inferences per second", rate, marked=knees
    )
    verified = [c for c in candidates if c.parity and c.size_bytes is not None]
    by_metric = bool(verified) and all(c.metric for c in verified)
    points = {}
    for c in verified:
        assert c.parity, "only what was verified is drawn: this is a bug"
        cosine = min((o.cosine for o in c.parity.outputs.values()), default=1.0)
        points[c.format] = (
            (c.size_bytes or 0) / 1e6,
            c.metric.value if c.metric and by_metric else cosine,
        )
    name = verified[0].metric.name if by_metric and verified[0].metric else "mean cosine to PyTorch"
    yield plot.scatter(
        "Accuracy against size (ring: not beaten)",
        "file, MB",
        name,
        points,
        sorted(front(candidates)),
    )


def _candidates(candidates: Sequence[Candidate]) -> str:
    best = front(candidates)
    rows = []
    for each in candidates:
        mark = " *" if each.format in best else ""
        cells = [f"{each.format}{mark}", *cells_of(each)]
        cells.append(f"{each.metric.value:.4g}" if each.metric else "-")
        why = each.why if each.status in ("ok", "chosen") else f"{each.status}: {each.why}"
        chosen = ' class="chosen"' if each.status == "chosen" else ""
        row = "".join(f"<td>{escape(_said(cell))}</td>" for cell in cells)
        rows.append(f'<tr{chosen}>{row}<td class="why">{escape(why)}</td></tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in _HEAD)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _said(cell: str) -> str:
    return NOT_MEASURED if cell == "-" else cell


def _parity(manifest: Manifest) -> str:
    parity = manifest.parity
    sizes = "; ".join(", ".join(f"{k} {v}" for k, v in s.items()) or "fixed" for s in parity.sizes)
    rows = [
        (name, f"{o.max_abs:.3g}", f"{o.max_rel:.3g}", f"{o.cosine:.6f}", f"{o.least_cosine:.6f}")
        for name, o in parity.outputs.items()
    ]
    words = f"{parity.checks} checks; random values at {sizes}; {parity.real_samples} real samples"
    return f'<p class="lead">{escape(words)}</p>' + _table(
        ("output", "max |error|", "max relative", "mean cosine", "least cosine"), rows
    )


def _steps(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    for step in manifest.steps:
        seconds = "kept" if step.reused else f"{step.seconds:.1f}"
        yield step.name, step.status, seconds if step.status != "skipped" else "-", step.why


def _files(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    yield f"source: {manifest.source.kind} {manifest.source.model}", "", ""
    for name, file in (*manifest.source.files.items(), *manifest.files.items()):
        yield name, f"{file.bytes:,}", file.sha256


def _where(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    machine = manifest.machine
    yield "processor", f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 1e9:.3g} GB"
    yield "GPU", machine.gpu or "none: nothing was measured on one"
    yield from manifest.tools.items()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _mb(size: int) -> str:
    return f"{size / 1e6:.3g}"
