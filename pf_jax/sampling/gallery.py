"""A page to look at samples and listen to them: `index.html` next to their files.

The page needs no network and no server: styles, script and pictures are inside, and only the sounds
themselves are files beside it.
"""

import dataclasses
import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from pf_jax.audio import AudioFormat, io, pictures
from pf_jax.errors import UserError
from pf_jax.formats import Format, ImageFormat, TextFormat
from pf_jax.pages import data_uri, page, text, write_page

_MOST_SHOWN = 200  # Samples with a picture; a page with more of them would be slow to open.
_MOST_SECONDS = 600  # Of a sound's picture.
_MOST_LETTERS = 20_000  # Of a text.


@dataclasses.dataclass(frozen=True)
class Entry:
    """One sample.

    Attributes:
        path: Its file, inside the gallery's directory.
        bits_per_sample: Of the new part, under the model. One that is not finite is shown as
            unknown, and comes last when sorted.
        num_steps: New tokens.
        prompt: The prompt's name, or None.
        prompt_steps: Tokens of the prompt at the beginning of the file; 0 if there are none.
        notes: Anything else to be said, such as that a part was drawn again.
    """

    path: epath.Path
    bits_per_sample: float
    num_steps: int
    prompt: str | None = None
    prompt_steps: int = 0
    notes: str = ""


def write_gallery(
    directory: epath.PathLike,
    entries: Sequence[Entry],
    format: Format,
    *,
    title: str,
    facts: Mapping[str, str],
) -> epath.Path:
    """Writes `index.html`, a page with one row per sample, and returns its path.

    Samples are read back from their files. Rows can be sorted by name, likelihood and length. A
    sound has a player, and its waveform (all with one scale of amplitude) above its mel
    spectrogram, of at most the first 10 minutes; of a text there are the first 20,000 characters.
    Only the first 200 samples are shown so, the others just have a player or a link; the page says
    what was left out. Where a prompt ends there is a mark.

    Args:
        directory: Where the page goes; it exists, and the samples are inside.
        entries: The samples, in their first order.
        format: What the samples are: sound, text or pictures.
        title: The heading.
        facts: Pairs to show below it, such as the checkpoint and the temperature.

    Raises:
        UserError: A sample is outside the directory or cannot be read, or the page cannot be
            written.
    """
    directory = epath.Path(directory)
    shown = entries[:_MOST_SHOWN]
    limit = _loudest(shown) if isinstance(format, AudioFormat) else 1.0
    rows = [
        _row(directory, entry, format, limit if i < len(shown) else None)
        for i, entry in enumerate(entries)
    ]
    return write_page(directory / "index.html", _page(title, facts, rows, format))


def _page(title: str, facts: Mapping[str, str], rows: Sequence[str], format: Format) -> str:
    unit = "Bits per sample" if isinstance(format, AudioFormat) else "Bits per byte"
    about = [f"{len(rows):,} {'sample' if len(rows) == 1 else 'samples'}."]
    about += [f"{unit}, and length, of what is new; fewer bits are likelier under the model."]
    if isinstance(format, AudioFormat):
        about.append(
            "Pictures: the waveform, all with one scale, above its mel spectrogram, from "
            "&minus;80&nbsp;dB (black) to 0&nbsp;dB (bright); click to play from there."
        )
    if len(rows) > _MOST_SHOWN:
        about.append(f"<strong>Only the first {_MOST_SHOWN} are shown in full.</strong>")
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button" data-key="{key}">{label}'
        '<span class="arrow" aria-hidden="true"></span></button></th>'
        for key, label in (("name", "Name"), ("bits", unit), ("length", "Length"))
    )
    body = (
        f'<table>\n<thead><tr>{head}<th scope="col" class="wide">Sample</th></tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>\n"
    )
    return page(title, body, facts=facts, about=" ".join(about), style=_STYLE, script=_SCRIPT)


def _row(directory: epath.Path, entry: Entry, format: Format, limit: float | None) -> str:
    """Returns a row of the table. Without a `limit`, of amplitude, the sample is not shown."""
    name = _relative(directory, entry.path)
    # As bytes: names of files need not be UTF-8.
    link = text(urllib.parse.quote(os.fsencode(name)))
    remarks = [_prompt(entry, format)]
    sample = f'<audio controls preload="none" src="{link}" aria-label="{text(name)}"></audio>'
    if not isinstance(format, AudioFormat):
        sample = ""
    if limit is None:
        sample = sample or f'<a href="{link}">open the file</a>'
    elif isinstance(format, AudioFormat):
        picture, remark = _sound(entry, limit)
        sample += picture
        remarks.append(remark)
    elif isinstance(format, TextFormat):
        picture, remark = _letters(entry, format)
        sample += picture
        remarks.append(remark)
    elif isinstance(format, ImageFormat):
        sample += _image(entry, format, name)
    remarks.append(entry.notes)
    remarks = "".join(f'<p class="remark">{text(r)}</p>' for r in remarks if r)
    known = math.isfinite(entry.bits_per_sample)
    bits = f"{entry.bits_per_sample:.6f}" if known else ""
    return (
        f'<tr data-name="{text(name)}" data-bits="{bits}" data-length="{entry.num_steps}">'
        f'<th scope="row"><a href="{link}">{text(name)}</a>{remarks}</th>'
        f'<td class="number">{f"{entry.bits_per_sample:.3f}" if known else "unknown"}</td>'
        f'<td class="number">{_length(entry.num_steps, format)}</td>'
        f'<td class="sample">{sample}</td></tr>\n'
    )


def _sound(entry: Entry, limit: float) -> tuple[str, str]:
    """Returns the picture of a sound, and what to say of it."""
    waveform, rate = io.read(entry.path)
    drawn = waveform[: _MOST_SECONDS * rate]
    mark = entry.prompt_steps / rate if 0 < entry.prompt_steps < len(drawn) else None
    png = pictures.waveform_png(drawn, rate, limit=limit, mark=mark)
    left, right = pictures.INSIDE
    picture = (
        f'<div class="picture" data-seconds="{len(drawn) / rate}" data-left="{left}" '
        f'data-right="{right}"><img alt="Waveform and mel spectrogram" src="{data_uri(png)}">'
        '<i class="playhead" hidden></i></div>'
    )
    minutes = f"Drawn: only the first {_MOST_SECONDS // 60} minutes."
    return picture, minutes if len(drawn) < len(waveform) else ""


def _letters(entry: Entry, format: TextFormat) -> tuple[str, str]:
    """Returns the beginning of a text, its prompt set apart, and what to say of it."""
    tokens = np.frombuffer(_read(entry.path), np.uint8)
    parts = (tokens[: entry.prompt_steps], tokens[entry.prompt_steps :])
    prompt, new = map(format.decode, parts)
    room = max(0, _MOST_LETTERS - len(prompt))
    inside = f'<span class="prompt">{text(prompt[:_MOST_LETTERS])}</span>' if prompt else ""
    # HTML takes a line break after <pre> away: it gets one that may go.
    picture = f'<pre tabindex="0">\n{inside}{text(new[:room])}</pre>'
    cut = len(prompt) + len(new) > _MOST_LETTERS
    return picture, f"Shown: only the first {_MOST_LETTERS:,} characters." if cut else ""


def _image(entry: Entry, format: ImageFormat, name: str) -> str:
    mark = ""
    if 0 < entry.prompt_steps < 3 * format.side**2:
        percent = 100 * (entry.prompt_steps // (3 * format.side)) / format.side
        mark = f'<i class="mark" style="top:{percent:.2f}%"></i>'
    picture = f'<img alt="{text(name)}" src="{data_uri(_read(entry.path))}">'
    return f'<div class="pixels">{picture}{mark}</div>'


def _prompt(entry: Entry, format: Format) -> str:
    """Returns what to say of the prompt, if there is one."""
    if entry.prompt is None and not entry.prompt_steps:
        return ""
    named = "Prompt" if entry.prompt is None else f"Prompt: {entry.prompt}"
    if not entry.prompt_steps:
        return f"{named} (not in the file)"
    return f"{named} (the first {_length(entry.prompt_steps, format)})"


def _length(num_steps: int, format: Format) -> str:
    if not isinstance(format, AudioFormat):
        return f"{num_steps:,} bytes"
    seconds = num_steps / format.sample_rate
    return f"{seconds:.2f} s" if seconds < 120 else format.describe(num_steps)


def _loudest(entries: Sequence[Entry]) -> float:
    """Returns the amplitude to draw up to: a little above the largest there is."""
    # Read twice, rather than held in memory all at once.
    peaks = []
    for entry in entries:
        waveform, rate = io.read(entry.path)
        peaks.append(float(np.abs(waveform[: _MOST_SECONDS * rate]).max()))
    return 1.05 * (max(peaks, default=0) or 1.0)


def _relative(directory: epath.Path, path: epath.PathLike) -> str:
    try:
        relative = epath.Path(path).relative_to(directory)
    except ValueError:
        relative = None
    if relative is None or ".." in relative.parts:
        raise UserError(f"Samples must be inside the gallery's directory {directory}, got {path}.")
    return relative.as_posix()


def _read(path: epath.PathLike) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


_STYLE = """
table { width: 100%; border-collapse: collapse; }
thead th { position: sticky; top: 0; z-index: 2; text-align: left; font-weight: 600;
  background: var(--band); border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th.wide { padding: .5rem .7rem; width: 100%; }
thead button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: .5rem .7rem; width: 100%; text-align: left; cursor: pointer; }
thead button:hover { color: var(--link); }
.arrow::after { content: "\\2195"; margin-left: .35em; opacity: .45; }
[aria-sort=ascending] .arrow::after { content: "\\2191"; opacity: 1; }
[aria-sort=descending] .arrow::after { content: "\\2193"; opacity: 1; }
tbody th, td { padding: .7rem; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody th { text-align: left; font-weight: 600; min-width: 13rem; overflow-wrap: anywhere; }
.remark { margin: .2rem 0 0; font-weight: 400; font-size: .85rem; color: var(--soft); }
audio { display: block; width: 100%; height: 2.4rem; margin-bottom: .4rem; }
.picture { position: relative; cursor: pointer; }
.picture img { display: block; width: 100%; height: auto; aspect-ratio: 1056 / 204; }
.playhead { position: absolute; top: 4%; bottom: 12%; width: 2px; margin-left: -1px;
  background: #19b35a; pointer-events: none; }
.pixels { position: relative; display: inline-block; }
.pixels img { display: block; width: 12rem; image-rendering: pixelated; }
.mark { position: absolute; left: -.4rem; right: -.4rem; border-top: 2px dashed var(--mark); }
pre { margin: 0; padding: .6rem; max-height: 22rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--band); border: 1px solid var(--line); }
pre .prompt { color: var(--soft); border-right: 2px solid var(--mark); }
@media (max-width: 48rem) {
  body { padding: .8rem; }
  table, tbody { display: block; }
  thead { display: block; position: sticky; top: 0; z-index: 2; background: var(--band); }
  thead tr { display: flex; flex-wrap: wrap; }
  thead th { border: 0; }
  thead th.wide { display: none; }
  tbody tr { display: flex; flex-wrap: wrap; border-bottom: 1px solid var(--line); }
  tbody th, td { border: 0; padding: .4rem .2rem; }
  tbody th, .sample { width: 100%; }
  [data-bits]:not([data-bits=""]) > th + .number::after { content: " bits,"; }
}
"""

# Comments of two slashes would look like addresses to whoever searches the page for them.
_SCRIPT = """
"use strict";
const body = document.querySelector("tbody");
const buttons = [...document.querySelectorAll("thead button")];

function compare(a, b, key, sign) {
  if (key === "name") {
    return sign * a.dataset.name.localeCompare(b.dataset.name, undefined, {numeric: true});
  }
  const [x, y] = [parseFloat(a.dataset[key]), parseFloat(b.dataset[key])];
  if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);  /* What is unknown is last. */
  return sign * (x - y);
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const b of buttons) b.parentElement.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    /* Moving a row would stop its sound: order the others around it. */
    const rows = [...body.rows].sort((a, b) => compare(a, b, button.dataset.key, down ? -1 : 1));
    const still = rows.findIndex(r => r.querySelector("audio")?.paused === false);
    if (still < 0) return body.append(...rows);
    rows[still].before(...rows.slice(0, still));
    rows[still].after(...rows.slice(still + 1));
  });
}

for (const audio of document.querySelectorAll("audio")) {
  const picture = audio.parentElement.querySelector(".picture");
  const playhead = picture?.querySelector(".playhead");
  const [seconds, left, right] =
    picture ? ["seconds", "left", "right"].map(k => parseFloat(picture.dataset[k])) : [];
  const move = () => {
    if (!picture) return;
    const part = audio.currentTime / seconds;
    playhead.hidden = part > 1;
    playhead.style.left = 100 * (left + (right - left) * part) + "%";
  };
  const follow = () => { move(); if (!audio.paused) requestAnimationFrame(follow); };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    follow();
  });
  audio.addEventListener("seeked", move);
  picture?.addEventListener("click", event => {
    const box = picture.getBoundingClientRect();
    const part = ((event.clientX - box.left) / box.width - left) / (right - left);
    audio.currentTime = seconds * Math.min(Math.max(part, 0), 1);
    move();
    audio.play();
  });
}
"""
