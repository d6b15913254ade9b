"""A page as one HTML file: no script, nothing loaded, everything escaped."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from reembed.evaluation.page.model import Page, pieces
from reembed.redact import harmless


def html(page: Page) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reembed"),
        autoescape=True,
        finalize=_plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pieces"] = pieces
    return environment.get_template("report.html").render(page=page)


def _plain(value: Any) -> Any:
    """Make every value plain; what a macro of the template returns has its values so already."""
    return value if isinstance(value, Markup) else harmless(value)
