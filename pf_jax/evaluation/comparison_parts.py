"""What pages that compare have in common: names with their looks, charts, tables, sounds, style."""

import math
import re
from collections.abc import Sequence

from pf_jax.config import PoolformerConfig
from pf_jax.evaluation.comparison_charts import Style
from pf_jax.evaluation.comparison_sounds import Player, Sounds
from pf_jax.pages import data_uri, text

UNKNOWN = "&ndash;"
"""What stands where there is no number."""

_BREAKS = re.compile("[/_:=-]")  # Where a name may go on in the next line.


def named(number: int, name: str) -> str:
    """Returns a name beside the look that what has this number has in charts."""
    name = _BREAKS.sub(r"\g<0><wbr>", text(name))
    return f'<span class="name">{_swatch(number)}<span>{name}</span></span>'


def shape(model: PoolformerConfig) -> str:
    """Returns the levels of a model."""
    widths = ", ".join(map(str, model.widths))
    levels = f"{model.num_levels} {'level' if model.num_levels == 1 else 'levels'}"
    pools = ", ".join(map(str, model.pool_factors)) or "none"
    return f"{levels}<br>widths {widths}<br>pools {pools}"


def rows_table(first: str, names: Sequence[str], columns: dict[str, list[str]]) -> str:
    """Returns a table with a row for each name; a column that all leave empty is left out.

    Args:
        first: The title of the names, in HTML as all that follows.
        names: One for each row.
        columns: By title, the cells; empty ones are unknown.
    """
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    head = "".join(f'<th scope="col">{title}</th>' for title in (first, *columns))
    rows = []
    for number, name in enumerate(names):
        cells = "".join(
            f'<td class="number">{cells[number] or UNKNOWN}</td>' for cells in columns.values()
        )
        rows.append(f'<tr><th scope="row">{named(number, name)}</th>{cells}</tr>\n')
    return (
        f'<div class="scroll" tabindex="0"><table class="runs">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n"
    )


def section(title: str, names: Sequence[str], charts: str, kind: str = "") -> str:
    """Returns charts below one legend, which stays in sight as long as they are."""
    legend = "".join(f"<li>{named(number, name)}</li>" for number, name in enumerate(names))
    return (
        f'<section>\n<h2>{title}</h2>\n<ul class="legend">{legend}</ul>\n'
        f'<div class="{kind}charts">\n{charts}</div>\n</section>\n'
    )


def sounds_section(names: Sequence[str], sounds: Sequence[Sounds]) -> str:
    """Returns the players of each name, and what there is to say of them."""
    parts = []
    for number, (name, of_name) in enumerate(zip(names, sounds, strict=False)):
        players = "".join(map(_player, of_name.players))
        remarks = "".join(f"<p>{text(remark)}</p>\n" for remark in of_name.remarks)
        if players or remarks:
            parts.append(
                f'<h3>{named(number, name)}</h3>\n<div class="players">\n{players}</div>\n{remarks}'
            )
    if not parts:
        return ""
    about = (
        "Waveforms, all with one scale, above their mel spectrograms, from &minus;80&nbsp;dB "
        "(black) to 0&nbsp;dB (bright)."
    )
    return f"<h2>Sounds</h2>\n<p>{about}</p>\n{''.join(parts)}"


def _swatch(number: int) -> str:
    """How a run looks in charts."""
    style = Style.of(number)
    dash = " ".join(f"{2 * length:g}" for length in style.dash)
    corners = " ".join(f"{14 + 4.5 * x:.1f},{6 - 4.5 * y:.1f}" for x, y in style.shape)
    return (
        '<svg class="swatch" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">'
        f'<line x1="0" y1="6" x2="28" y2="6" stroke="{style.color}" stroke-width="2" '
        f'stroke-dasharray="{dash or "none"}"/><polygon points="{corners}" fill="{style.color}"/>'
        "</svg>"
    )


def _player(player: Player) -> str:
    clip = player.clip
    length = f"{clip.seconds:.2f} s"
    if not math.isclose(clip.seconds, clip.whole_seconds):
        length = f"the first {length} of {clip.whole_seconds:.2f} s"
    words = text(f"{clip.source}, {length}")
    return (
        f'<figure><audio controls preload="metadata" src="{data_uri(player.wav, "audio/wav")}" '
        f'aria-label="{words}"></audio><img alt="Waveform and mel spectrogram of {words}" '
        f'src="{data_uri(player.png)}"><figcaption>{words}</figcaption></figure>\n'
    )


STYLE = """
h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; overflow-wrap: anywhere; }
.runs thead th { vertical-align: bottom; font-size: .85rem; max-width: 9rem;
  min-width: 4.5rem; }
.runs th[scope=row], .runs thead th:first-child { position: sticky; left: 0; z-index: 1;
  background: var(--paper); min-width: min(13rem, 40vw); max-width: 45vw; overflow-wrap: anywhere; }
.runs td { line-height: 1.3; }
.name { display: inline-flex; gap: .5em; overflow-wrap: anywhere; }
.swatch { flex: none; margin-top: .3em; }
.mark, .mark a { color: var(--mark); text-decoration: none; font-size: .95em; }
.notes { margin-top: 0; max-width: 90ch; font-size: .9rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 0; padding: .4rem 0;
  list-style: none; position: sticky; top: 0; z-index: 2; background: var(--paper);
  max-height: 30vh; overflow-y: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr));
  gap: .6rem 2rem; align-items: start; }
.small.charts { grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.charts figure { margin: .4rem 0; max-width: 42rem; }
.players { display: grid; gap: .6rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
.players figure { margin: 0; }
.players audio { display: block; width: 100%; height: 2.4rem; margin-bottom: .4rem; }
figure img { background: none; width: 100%; }
@media (max-width: 48rem) { body { padding: .8rem; } }
"""

# No two sounds at once.
SCRIPT = """
"use strict";
const players = [...document.querySelectorAll("audio")];
for (const player of players) {
  player.addEventListener("play", () => players.forEach(p => p === player || p.pause()));
}
"""
