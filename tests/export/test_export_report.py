import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from export.manifest import Candidate, FileFacts, Manifest, OutputParity, Parity, StepFacts
from export.plot import COLOURS
from export.report import render
from tests.export.example_manifest import FAILED, FP16, FP32, INT8, SKIPPED, manifest, profile

VOID = {"meta", "br"}
SCATTER = 3  # after p50, p99 and throughput


class Page(HTMLParser):
    """Fails on tags that do not match; remembers tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "


def plots(page: str) -> list[ElementTree.Element]:
    """The page's figures; the drawings in them are XML."""
    return [ElementTree.fromstring(each) for each in re.findall(r"<figure>.*?</figure>", page)]


def drawn(plot: ElementTree.Element, kind: str) -> list[dict[str, str]]:
    return [each.attrib for each in plot.iter() if kind in each.get("class", "").split()]


def legend(plot: ElementTree.Element) -> dict[str, str]:
    """Format -> class of its colour."""
    keys = [each for each in plot.iter("span") if each.get("class") == "key"]
    return {"".join(key.itertext()): key[0].get("class", "") for key in keys}


def points(plot: ElementTree.Element) -> dict[str, int]:
    """Format -> how many points of it are drawn."""
    names = [
        (title.text or "").partition(":")[0]
        for each in plot.iter()
        if "dot" in each.get("class", "")
        for title in each
    ]
    return {name: names.count(name) for name in names}


def cells(page: str, format: str) -> list[str]:
    """The row of a format in the table of formats."""
    table = page.partition("<h2>Formats</h2>")[2].partition("<h2>")[0]
    row = re.search(rf"<tr[^>]*><td[^>]*>{re.escape(format)}(?: \*)?</td>.*?</tr>", table)
    assert row
    return [re.sub(r"<.*?>", " ", each).strip() for each in re.findall(r"<td.*?</td>", row.group())]


def test_every_format_is_in_every_plot_where_it_has_data() -> None:
    *curves, scatter = plots(render(manifest()))

    assert len(curves) == SCATTER
    for plot in curves:
        assert points(plot) == {"onnx-fp32": 6, "onnx-fp16": 5, "onnx-int8": 7}
        assert len(drawn(plot, "line")) == 3
        assert len(drawn(plot, "ring")) == 3  # a knee each
    assert points(scatter) == {"onnx-fp32": 1, "onnx-fp16": 1, "onnx-int8": 1}
    assert "accuracy" in "".join(scatter.itertext())


def test_a_format_has_one_colour_in_all_plots() -> None:
    slow = FP32.model_copy(update={"format": "onnx-bf16", "metric": None, "parity": None})
    unmeasured = FP16.model_copy(update={"profile": None})
    page = render(manifest(candidates=(unmeasured, slow, INT8)))

    assert legend(plots(page)[0]) == {"onnx-bf16": "c1", "onnx-int8": "c2"}
    assert legend(plots(page)[SCATTER]) == {"onnx-fp16": "c0", "onnx-int8": "c2"}


def test_more_formats_than_colours_differ_by_their_marks() -> None:
    many = [FP32.model_copy(update={"format": f"format-{n}"}) for n in range(COLOURS + 1)]
    keys = legend(plots(render(manifest(candidates=tuple(many))))[0])

    assert len(set(keys.values())) == COLOURS + 1


def test_without_a_metric_accuracy_is_the_cosine_of_the_worst_output() -> None:
    bare = [each.model_copy(update={"metric": None}) for each in (FP32, INT8, FAILED)]
    scatter = plots(render(manifest(candidates=tuple(bare), metric=None)))[SCATTER]

    assert set(points(scatter)) == {"onnx-fp32", "onnx-int8", "onnx-int8-dynamic"}
    assert "mean cosine" in "".join(scatter.itertext())
    assert len(drawn(scatter, "ring")) == 2  # what failed is not on the front


def test_what_is_drawn_lies_inside_its_axes() -> None:
    page = render(manifest())

    for plot in plots(page):
        for mark in drawn(plot, "dot"):
            assert 62 <= float(mark["cx"]) <= 444
            assert 34 <= float(mark["cy"]) <= 234
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower()


@pytest.mark.parametrize("values", [(1.0, 0.9999999999), (1.0, 1.0), (0.99, 0.5)])
def test_ticks_are_short_and_differ_and_no_file_is_smaller_than_nothing(
    values: tuple[float, float],
) -> None:
    alike = [
        each.model_copy(update={"metric": None, "parity": of_cosine(value)})
        for each, value in zip((FP32, INT8), values, strict=True)
    ]
    scatter = plots(render(manifest(candidates=tuple(alike), metric=None)))[SCATTER]
    ticks: dict[str | None, list[str]] = {}
    for each in scatter.iter("text"):
        ticks.setdefault(each.get("text-anchor"), []).append(each.text or "")

    for texts in ticks.values():
        assert len(set(texts)) == len(texts)
        assert not any(text.startswith("-") for text in texts)
        assert all(len(text) <= 8 for text in texts if text[0].isdecimal())


def of_cosine(value: float) -> Parity:
    outputs = {"y": OutputParity(max_abs=0.1, max_rel=0.1, cosine=value)}
    return Parity(checks=1, sizes=(), real_samples=0, outputs=outputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_make_a_page_all_the_same(bad: float) -> None:
    broken = FAILED.model_copy(update={"parity": of_cosine(bad)})
    page = render(manifest(candidates=(INT8.model_copy(update={"metric": None}), broken)))

    assert set(points(plots(page)[SCATTER])) == {"onnx-int8"}


def test_what_was_not_measured_says_so() -> None:
    alone = FP32.model_copy(update={"profile": None, "metric": None, "status": "chosen"})
    page = render(
        manifest(
            format="onnx-fp32",
            profile=None,
            metric=None,
            memory_bytes=None,
            candidates=(alone, *SKIPPED),
        )
    )
    panel = page.partition('<div class="panel">')[2].partition("<h2>")[0]

    assert panel.count("<b>not measured</b>") == 7
    assert [len(points(plot)) for plot in plots(page)] == [0, 0, 0, 1]
    assert all("not measured" in "".join(plot.itertext()) for plot in plots(page)[:SCATTER])
    assert cells(page, "onnx-fp32")[2:5] == ["not measured"] * 3
    assert cells(page, "tensorrt-fp16")[1:] == ["skipped", f"not measured: {SKIPPED[0].why}"]


def test_a_profile_without_a_curve_was_not_measured() -> None:
    empty = INT8.model_copy(update={"profile": profile(resident=1, cold_ms=1)})
    page = render(manifest(candidates=(empty,), profile=empty.profile))

    assert [len(points(plot)) for plot in plots(page)] == [0, 0, 0, 1]
    assert "not measured" in cells(page, "onnx-int8")


def test_a_curve_of_one_point_is_a_point_and_its_knee() -> None:
    lone = INT8.model_copy(update={"profile": profile((1, 1.0, 1.2), resident=9, cold_ms=5)})
    page = render(manifest(candidates=(lone,), profile=lone.profile))

    for plot in plots(page):
        assert points(plot) == {"onnx-int8": 1}
        assert len(drawn(plot, "ring")) == 1


def test_the_sentence_and_the_panel_have_the_figures_of_the_knee() -> None:
    text = Page(render(manifest())).text

    assert "digits version 3" in text
    assert "Published as onnx-int8: best for throughput: 2.41 times onnx-fp32." in text
    assert "batch 8, it gives 4,444 inferences/s, and a batch takes 1.8 ms (p50) to 2.2 ms" in text
    for figure in ("4,444/s", "2.28 times", "0.43 ms / 0.52 ms", "447 kB", "12.6 MB", "17.6 MB"):
        assert figure in text


def test_great_and_small_figures_are_readable() -> None:
    slow = profile((1, 12_345.6, 23_456.7), resident=12_345, cold_ms=45_678)
    page = render(manifest(candidates=(INT8.model_copy(update={"profile": slow}),), profile=slow))

    assert "12.3 s / 23.5 s" in page
    assert "12.3 GB" in page
    assert cells(page, "onnx-int8")[2:7] == ["0.081", "1", "23,457", "0.447", "12,345"]
    assert not re.search(r"\de\+\d", page)


def test_the_table_of_formats_says_what_became_of_each() -> None:
    page = render(manifest())

    assert cells(page, "onnx-int8") == [
        "onnx-int8 *", "chosen", "4,444", "8", "2.2", "0.447", "12.6", "17", "0.41", "0.9981",
        "0.9889",
    ]  # fmt: skip
    assert cells(page, "onnx-int8-dynamic")[:3] == ["onnx-int8-dynamic", "failed", "not measured"]
    assert FAILED.why in Page(page).text


def test_steps_files_tools_and_machine_are_on_the_page() -> None:
    text = Page(render(manifest())).text

    assert "callable model.py:build" in text
    for words in ("cd" * 32, "ab" * 32, "digits.safetensors", "2.13.0", "AMD EPYC 7B13, 2 cores"):
        assert words in text
    assert "none: nothing was measured on one" in text
    for words in ("opset 20, 41 nodes", "kept", "not run", "cosine 0.9420"):
        assert words in text


def test_a_hostile_name_is_text() -> None:
    evil = "</title><script>alert(\"x\")</script><b onclick='y'>&amp;"
    everywhere = INT8.model_copy(update={"format": evil, "why": evil})
    assert everywhere.metric
    page = Page(
        render(
            manifest(
                model=evil,
                format=evil,
                created=evil,
                tools={evil: evil},
                files={evil: FileFacts(sha256=evil, bytes=1)},
                candidates=(
                    everywhere.model_copy(
                        update={"metric": everywhere.metric.model_copy(update={"name": evil})}
                    ),
                    Candidate(format=evil, status="skipped", why=evil),
                ),
                steps=(StepFacts(name=evil, status="failed", why=evil),),
            )
        )
    )

    assert not any(tag == "script" or "onclick" in attrs for tag, attrs in page.tags)
    assert page.text.count(evil) >= 20


def test_the_page_needs_no_network_and_reads_in_light_dark_and_print() -> None:
    page = render(manifest())
    style = page.partition("<style>")[2].partition("</style>")[0]
    light, _, rest = style.partition("@media screen and (prefers-color-scheme:dark){")
    dark = rest.partition("}}")[0]

    assert "color-scheme:light dark" in light
    assert "@media print" in style
    assert set(re.findall(r"--\w+", light)) == set(re.findall(r"--\w+", dark))
    assert not re.search(r"https?://|<script|src=|href=|@import|url\(", page)
    assert not any(tag in ("script", "img", "link", "iframe") for tag, _ in Page(page).tags)


def test_a_manifest_survives_its_file() -> None:
    before = manifest()

    assert Manifest.model_validate_json(before.model_dump_json()) == before


def test_parity_has_a_row_for_each_output_of_each_verified_format() -> None:
    table = render(manifest()).partition("<h2>Parity")[2].partition("<h2>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]

    assert rows[0] == ["onnx-int8", "logits", "0.41", "16", "0.9981", "0.9962"]  # the published one
    assert [row[:2] for row in rows[2:]] == [
        [name, output]
        for name in ("onnx-fp32", "onnx-fp16", "onnx-int8-dynamic")
        for output in ("logits", "label")
    ]
