"""Pages that need no network and no server: one HTML file, with its style and pictures inside."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from pf_jax.errors import UserError


def page(
    title: str,
    body: str,
    *,
    facts: Mapping[str, str] | None = None,
    about: str = "",
    style: str = "",
    script: str = "",
) -> str:
    """Returns a page.

    Args:
        title: The heading.
        body: The HTML of the main part.
        facts: Pairs to show below the heading.
        about: HTML of what to say below them.
        style: CSS for this page, besides what all share.
        script: JavaScript.
    """
    pairs = "".join(
        f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in (facts or {}).items()
    )
    pairs = f"<dl>{pairs}</dl>\n" if pairs else ""
    about = f"<p>{about}</p>\n" if about else ""
    script = f"<script>{script}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # Otherwise browsers ask a server for one.
        f"<title>{text(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{text(title)}</h1>\n{pairs}{about}</header>\n"
        f"<main>\n{body}</main>\n{script}</body>\n</html>\n"
    )


def write_page(path: epath.PathLike, content: str) -> epath.Path:
    """Writes a page into a directory that exists, and returns its path.

    Raises:
        UserError: It cannot be written.
    """
    path = epath.Path(path)
    try:
        path.write_bytes(content.encode(errors="replace"))  # Names of files need not be UTF-8.
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    return path


def text(content: Any) -> str:
    """Returns a text as HTML that shows it."""
    return html.escape(str(content))


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Returns a file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def figure(png: bytes, caption: str) -> str:
    """Returns a picture with what it shows below it, both for people and for screen readers."""
    words = text(caption)
    return (
        f'<figure><img alt="{words}" src="{data_uri(png)}"><figcaption>{words}</figcaption>'
        "</figure>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "") -> str:
    """Returns a table of texts; the first of each row is its heading, numbers stand at the right.

    Args:
        header: What the columns are called.
        rows: Their entries; a float is shown as Python shows it, so round it or make it a text.
        caption: What the table shows.
    """
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    lines = []
    for first, *rest in rows:
        cells = "".join(
            f'<td class="number">{text(cell)}</td>'
            if isinstance(cell, int | float)
            else f"<td>{text(cell)}</td>"
            for cell in rest
        )
        lines.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>\n')
    caption = f"<caption>{text(caption)}</caption>\n" if caption else ""
    return (
        f'<div class="scroll"><table>\n{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody>\n</table></div>\n"
    )


def figure_png(figure: Any, *, dpi: int = 120) -> bytes:
    """Returns a Matplotlib figure as PNG; it needs no display.

    Args:
        figure: A `matplotlib.figure.Figure`, made without pyplot.
        dpi: Pixels in an inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # Only pictures need it.

    figure.set_dpi(dpi)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5d646e; --paper: #fff; --line: #dde1e6;
  --band: #f5f6f8; --link: #1f5f99; --mark: #c9364b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a3aab4; --paper: #15171b;
  --line: #333840; --band: #1d2025; --link: #86bdf0; --mark: #ff7b8c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 90rem; color: var(--ink);
  background: var(--paper); font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 .6rem; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .6rem; font-size: 1.2rem; }
main > p { max-width: 75ch; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 0 0 .6rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
header p { margin: 0 0 1rem; color: var(--soft); max-width: 75ch; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: -2px; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; }
figcaption, caption { color: var(--soft); font-size: .9rem; text-align: left; max-width: 75ch; }
.scroll { overflow-x: auto; }
.scroll table { border-collapse: collapse; margin: .6rem 0 1rem; }
.scroll th, .scroll td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.warning { border-left: 4px solid var(--mark); padding: .3rem .8rem; }
"""
