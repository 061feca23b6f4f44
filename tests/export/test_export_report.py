import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from export.manifest import (
    Candidate,
    FileFacts,
    Machine,
    Manifest,
    Metric,
    Profile,
    Source,
    StepFacts,
)
from export.report import render
from export.table import table
from tests.export.test_export_choose import FP32, INT8, curve

VOID = {"meta", "br", "hr", "link"}


class Page(HTMLParser):
    """Fails on tags that do not match; remembers tags, text and attributes."""

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
        self.text += data

    def count(self, tag: str, name: str = "") -> int:
        return sum(t == tag and name in (a.get("class") or "") for t, a in self.tags)


def manifest(**fields: Any) -> Manifest:
    chosen = INT8.model_copy(update={"status": "chosen", "why": "2.00 times onnx-fp32"})
    skipped = Candidate(format="tensorrt-fp16", status="skipped", why="there is no GPU here")
    assert chosen.parity
    return Manifest.model_validate(
        {
            "model": "digits",
            "version": 3,
            "created": "2026-11-23T10:00:00+00:00",
            "format": "onnx-int8",
            "objective": "throughput",
            "source": Source(kind="callable", model="model.py:build"),
            "files": {"model.onnx": FileFacts(sha256="ab" * 32, bytes=2_500_000)},
            "tools": {"onnxruntime": "1.32.0"},
            "machine": Machine(cpu="Some CPU", cores=2, memory_bytes=8 * 10**9),
            "parity": chosen.parity,
            "profile": chosen.profile,
            "candidates": (FP32, chosen, skipped),
            "steps": (StepFacts(name="capture", status="ok", why="6 nodes", seconds=2.5),),
            **fields,
        }
    )


def test_every_measured_format_is_in_every_plot() -> None:
    page = Page(render(manifest()))

    assert page.count("svg") == 3
    assert page.count("polyline", "line") == 6  # p50, p99 and throughput of two formats
    assert page.count("polyline", "dashed") == 2
    points = (
        len(FP32.profile.curve) + len(INT8.profile.curve) if FP32.profile and INT8.profile else 0
    )
    assert page.count("circle", "dot") == 2 * points + 2
    assert page.count("circle", "ring") == 4  # two knees, two on the front
    assert "NaN" not in render(manifest())


def test_the_page_needs_no_network_and_reads_in_light_and_dark() -> None:
    text = render(manifest())

    assert "prefers-color-scheme:dark" in text
    assert not re.search(r"https?://|<script|src=|@import|url\(", text)


def test_what_was_not_measured_says_so() -> None:
    bare = manifest(
        profile=None,
        candidates=(FP32.model_copy(update={"profile": None, "status": "chosen"}),),
    )
    page = Page(render(bare))

    assert page.text.count("not measured") >= 3
    assert page.count("polyline") == 0


def test_one_point_and_a_metric_make_a_page() -> None:
    metric = Metric(name="accuracy", reference=0.99, value=0.985, allowed_drop=0.01)
    lone = INT8.model_copy(
        update={"profile": curve((1, 1.0)), "metric": metric, "status": "chosen"}
    )
    page = Page(render(manifest(candidates=(lone,), profile=lone.profile, metric=metric)))

    assert "accuracy (PyTorch 0.99)" in page.text
    assert "0.985" in page.text


def test_a_hostile_name_is_text() -> None:
    evil = '<script>alert("x")</script>'
    page = Page(
        render(
            manifest(
                model=evil,
                candidates=(FP32.model_copy(update={"format": evil, "why": evil}),),
                steps=(StepFacts(name=evil, status="failed", why=evil),),
            )
        )
    )

    assert page.count("script") == 0
    assert evil in page.text


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    chosen = INT8.model_copy(update={"status": "chosen"})
    console.print(table([FP32, chosen, *[Candidate(format="x", status="failed")]], "throughput"))
    said = console.export_text()

    assert "…" not in said
    assert [line.split()[0] for line in said.splitlines()[2:]] == ["onnx-fp32", "onnx-int8"]


def test_a_manifest_survives_its_file() -> None:
    before = manifest()

    assert Manifest.model_validate_json(before.model_dump_json()) == before
    assert isinstance(before.profile, Profile)
