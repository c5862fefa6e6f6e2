"""A page to keep or to send: sections of plots, tables and pictures as one HTML file that loads nothing from anywhere.

Every figure is in the page twice, light and dark; the page draws the one that the reader's system asks for, and the
light one on paper. plotly.js is in the file once. Text is escaped by Jinja, text inside figures by `plain`.
"""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from backend.domain.errors import BadInput
from dashboard.theme import SCHEMES, Scheme

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CLICKS = re.compile(r"(; )?click (opens|looks)[^<]*")


@dataclass(frozen=True)
class Plot:
    """One figure in both themes; `wide` takes the whole line."""

    title: str
    caption: str
    light: str
    dark: str
    wide: bool = False
    height: int = 380
    kind: Literal["plot"] = "plot"


@dataclass(frozen=True)
class Table:
    """Cells as shown. Columns from `words` on are numbers and stand to the right; a link is (text, address)."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Picture:
    """A sample: what it is, what each model said, and its thumbnail as a data URI where one was packed."""

    title: str
    lines: Sequence[str]
    image: str | None


@dataclass(frozen=True)
class Gallery:
    title: str
    pictures: Sequence[Picture]
    kind: Literal["gallery"] = "gallery"


@dataclass(frozen=True)
class Text:
    """A paragraph, or with `code` a text that keeps its lines; `folded` opens on a click."""

    text: str
    code: bool = False
    folded: str = ""
    kind: Literal["text"] = "text"


Block = Plot | Table | Gallery | Text


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]
    intro: str = ""


@dataclass(frozen=True)
class Fact:
    """One of the few numbers at the top."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    facts: Sequence[Fact]
    sections: Sequence[Section]
    footer: str


def plot(
    title: str, caption: str, draw: Callable[[Scheme], go.Figure], *, wide: bool = False, height: int = 380
) -> Plot:
    """A figure for the page: drawn for both themes, without the words about clicks, which a page cannot follow."""
    return Plot(title, caption, *(_figure_json(draw(scheme)) for scheme in SCHEMES), wide=wide, height=height)


def plain(text: str) -> str:
    """A text for a figure, where plotly reads `<b>` or `<a href>` as markup: shown as it is."""
    return html.escape(text, quote=False)


def render(page: Page) -> str:
    """The whole HTML file."""
    from plotly.offline import get_plotlyjs

    return _template().render(page=page, plotly_js=get_plotlyjs())


def write(page: Page, output: Path) -> None:
    """Write the page whole or not at all.

    Raises:
        BadInput: the file cannot be written.
    """
    text = render(page)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=output.parent, prefix=f".{output.name}.", delete=False
        ) as sink:
            partial = Path(sink.name)
            sink.write(text)
        partial.chmod(0o644)
        partial.replace(output)
    except OSError as error:
        raise BadInput("--output", str(output), f"a file that can be written ({error.strerror})") from None


def _figure_json(figure: go.Figure) -> str:
    content = json.loads(figure.to_json())
    for trace in content["data"]:
        template = trace.get("hovertemplate")
        if isinstance(template, str):
            trace["hovertemplate"] = _CLICKS.sub("", template)
    return _in_script(content)


def _in_script(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("backend.cli", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")
