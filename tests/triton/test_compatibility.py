"""docs/compatibility.md promises nothing that no test shows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.triton.alike import COMPATIBILITY, GATEWAYS, TRITON

TESTS = Path(__file__).parents[1]
VERDICTS = ("same", "better", "different", "by the book", "not yet")


class Row(NamedTuple):
    feature: str
    verdict: str
    test: str


def _rows() -> list[Row]:
    """Return the rows of the tables of features."""
    rows, within = [], False
    for line in COMPATIBILITY.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            within = False
        elif cells == ["feature", "is", "shown by"]:
            within = True
        elif within and not cells[0].startswith("---"):
            rows.append(Row(*cells))
    return rows


ROWS = _rows()


@pytest.fixture(scope="module")
def collected() -> dict[str, list[str]]:
    """What is run of each test that is named: its parameters, "" where it has none."""
    files = sorted({row.test.partition("::")[0] for row in ROWS if row.test})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly", *files]
    listed = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False).stdout
    found = defaultdict(list)
    for line in listed.splitlines():
        name, _, parameters = line.removeprefix("tests/").partition("[")
        if "::" in name:
            found[name].append(parameters.removesuffix("]"))
    return found


def test_every_row_has_a_verdict_and_a_test() -> None:
    assert len(ROWS) > 100
    assert len({row.feature for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.verdict in VERDICTS, row
        assert bool(row.test) == (row.verdict != "not yet"), row


def test_every_test_that_is_named_exists(collected: dict[str, list[str]]) -> None:
    assert [row for row in ROWS if row.test and row.test not in collected] == []


def test_same_is_shown_by_a_test_that_asks_triton_and_a_gateway(
    collected: dict[str, list[str]],
) -> None:
    for row in ROWS:
        if row.verdict == "same":
            servers = {part for each in collected[row.test] for part in each.split("-")}
            assert TRITON in servers, row
            assert servers & set(GATEWAYS), row
