"""The parts of a self-contained HTML page: text, tables, figures, structures, sections.

Everything that callers hand in is text and is escaped here; only figures that this module renders
itself become markup. A page needs no network: styles, scripts, SVG and pixels are inside.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

import matplotlib
from matplotlib.figure import Figure

from clebsch.evaluation.plots import INK
from clebsch.evaluation.viewer import SCRIPT


class Part(Protocol):
    """Something that a section can hold."""

    def html(self) -> str:
        """Its markup, escaped and complete."""


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str

    def html(self) -> str:
        """The paragraph."""
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Heading:
    """A title inside of a section."""

    text: str

    def html(self) -> str:
        """The heading."""
        return f"<h3>{escape(self.text)}</h3>"


@dataclass(frozen=True)
class Table:
    """A table whose cells are plain text; the first ``left`` columns are set left, others right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    left: int = 1

    def html(self) -> str:
        """The table, scrolling sideways on narrow screens."""
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        head = self._row(self.headers, "th")
        body = "".join(self._row(row, "td") for row in self.rows)
        return (
            f'<div class="scroll"><table>{caption}<thead>{head}</thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def _row(self, cells: Sequence[str], tag: str) -> str:
        classes = ["" if k < self.left else ' class="number"' for k in range(len(cells))]
        inner = "".join(
            f"<{tag}{kind}>{escape(str(cell))}</{tag}>"
            for kind, cell in zip(classes, cells, strict=True)
        )
        return f"<tr>{inner}</tr>"


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure with its caption."""

    figure: Figure
    caption: str

    def html(self) -> str:
        """The figure as inline SVG."""
        caption = escape(self.caption)
        width = 100 * self.figure.get_size_inches()[0]  # CSS pixels at which the text is 12 px high
        return (
            f'<figure class="plot" role="img" aria-label="{caption}" '
            f'style="max-width: {width:.0f}px">'
            f"<figcaption>{caption}</figcaption>{svg(self.figure)}</figure>"
        )


@dataclass(frozen=True)
class Grid:
    """Parts side by side, as many as the page is wide enough for."""

    parts: Sequence[Part]

    def html(self) -> str:
        """The parts in a grid."""
        return f'<div class="grid">{"".join(part.html() for part in self.parts)}</div>'


@dataclass(frozen=True)
class Section:
    """A titled piece of a report."""

    title: str
    parts: Sequence[Part]


def svg(figure: Figure) -> str:
    """A figure as an ``<svg>`` element in the page's font and text colour."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(
            buffer,
            format="svg",
            dpi=160,
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The group names of matplotlib repeat from figure to figure; nothing refers to them.
    text = re.sub(r' id="(figure|axes|patch|matplotlib|xtick|ytick|text|line2d)[._]\w*"', "", text)
    return text.replace(INK, "currentColor")


def render_page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: heading and window title.
        facts: shown under the heading, name and value.
        sections: in order, with a table of contents.
    """
    terms = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
    )
    links = "".join(f'<a href="#s{k}">{escape(s.title)}</a>' for k, s in enumerate(sections))
    bodies = "".join(
        f'<section id="s{k}"><h2>{escape(section.title)}</h2>'
        f"{''.join(part.html() for part in section.parts)}</section>"
        for k, section in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><dl>{terms}</dl></header><nav>{links}</nav>"
        f"<main>{bodies}</main><script>{SCRIPT}</script></body></html>\n"
    )


_STYLE = """
:root { --page: #f5f6f8; --card: #ffffff; --ink: #1c2128; --soft: #5b6672; --line: #dde1e6;
  --accent: #2f7ebc; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12151a; --card: #1a1f26; --ink: #e3e7ec; --soft: #98a3af; --line: #323a44;
    --accent: #6db3e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1180px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Liberation Sans", sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.2rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr));
  gap: .6rem 1.5rem; margin: 0; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
h3 { margin: 1.4rem 0 .8rem; padding-top: .9rem; font-size: 1.02rem; overflow-wrap: anywhere;
  border-top: 1px solid var(--line); }
h2 + h3 { margin-top: 0; padding-top: 0; border-top: none; }
nav { position: sticky; top: 0; z-index: 1; display: flex; gap: 1.4rem; overflow-x: auto;
  margin: 1.25rem 0; padding: .6rem 0; background: var(--page); white-space: nowrap;
  border-bottom: 1px solid var(--line); }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { margin: 0 0 1.25rem; padding: 1.25rem 1.4rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; scroll-margin-top: 4rem; }
p { margin: 0 0 .8rem; max-width: 46rem; color: var(--soft); }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .35rem; }
th, td { padding: .32rem .9rem .32rem 0; text-align: left; vertical-align: bottom;
  border-bottom: 1px solid var(--line); }
td:first-child { overflow-wrap: anywhere; min-width: 9rem; }
th { color: var(--soft); font-size: .82rem; font-weight: 600; white-space: pre-line; }
.number { text-align: right; padding-left: .9rem; }
td.number { white-space: nowrap; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr));
  gap: 1.2rem; margin: 0 0 1rem; align-items: start; }
figure { margin: 0; min-width: 0; color: var(--ink); }
figcaption { font-weight: 600; margin-bottom: .3rem; overflow-wrap: anywhere; }
.plot svg { display: block; width: 100%; height: auto; }
.plot svg text { font-family: inherit !important; }
.structure figcaption { font-weight: 400; font-size: .85rem; color: var(--soft); }
canvas { display: block; width: 100%; height: auto; cursor: grab; touch-action: pan-y;
  border: 1px solid var(--line); border-radius: 8px; }
canvas:active { cursor: grabbing; }
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""
