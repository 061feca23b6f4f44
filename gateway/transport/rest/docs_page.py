"""The OpenAPI document as a page of plain HTML, which needs nothing from elsewhere. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
summary {{ cursor: pointer }}
code, pre {{ font-family: ui-monospace, monospace; font-size: 13px }}
pre {{ background: #8881; padding: .8em; overflow-x: auto }}
b {{ display: inline-block; min-width: 3.5em }}
</style>
<h1>{title} {version}</h1>
<p>{description} The same as a document: <a href="openapi.json">openapi.json</a>.</p>
{operations}
<h2>Schemas</h2>
{schemas}
</html>
"""


def render(document: Mapping[str, Any]) -> str:
    """Return the page of a document."""
    operations = [
        _details(
            f"<b>{escape(method.upper())}</b> <code>{escape(path)}</code> "
            f"{escape(about['summary'])}",
            {key: value for key, value in about.items() if key not in ("summary", "tags")},
        )
        for path, methods in document["paths"].items()
        for method, about in methods.items()
    ]
    schemas = [
        _details(f"<code>{escape(name)}</code>", schema)
        for name, schema in sorted(document["components"]["schemas"].items())
    ]
    info = {key: escape(text) for key, text in document["info"].items()}
    return _PAGE.format(**info, operations="\n".join(operations), schemas="\n".join(schemas))


def _details(summary: str, content: Any) -> str:
    text = escape(json.dumps(content, indent=2))
    return f"<details><summary>{summary}</summary><pre>{text}</pre></details>"
