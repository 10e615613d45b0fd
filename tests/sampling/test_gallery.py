"""The page of samples, taken apart again."""

import base64
import html.parser
import io
import re
import urllib.parse

import numpy as np
import pytest
from etils import epath
from PIL import Image

from pf_jax.audio import AudioFormat, pictures
from pf_jax.errors import UserError
from pf_jax.formats import ImageFormat, TextFormat
from pf_jax.sampling import gallery
from pf_jax.sampling.gallery import Entry, write_gallery

SOUND = AudioFormat(8_000)
HOSTILE = "<script>alert('&quot;\" & ü #?%')"


class Page(html.parser.HTMLParser):
    """All elements of a page as (tag, attributes), and all of its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words, self.source = [], [], path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]

    @property
    def rows(self):
        return [a for a in self.all("tr") if "data-bits" in a]

    @property
    def text(self):
        return "".join(self.words)

    @property
    def images(self):
        head = "data:image/png;base64,"
        sources = [a["src"] for a in self.all("img")]
        assert all(s.startswith(head) for s in sources)
        return [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(s[len(head) :]))).convert("RGBA"))
            for s in sources
        ]


def sound(directory, name="a.wav", seconds=0.5, seed=0):
    path = epath.Path(directory) / name
    tokens = np.random.default_rng(seed).integers(0, 256, round(seconds * 8_000))
    SOUND.write(path, tokens)
    return path


def write(directory, entries, format=SOUND, title="Samples", facts=None):
    return Page(write_gallery(directory, entries, format, title=title, facts=facts or {}))


def test_a_row_for_each_sound(tmp_path):
    entries = [
        Entry(sound(tmp_path, "one.wav"), 2.25, 4_000),
        Entry(sound(tmp_path, "two.wav"), 1.5, 3_000, "song.flac", 1_000, "Drawn again."),
        Entry(sound(tmp_path, "three.wav"), float("nan"), 2_000, "other.wav"),
    ]
    page = write(tmp_path, entries, title="A title", facts={"temperature": "0.9"})
    assert (tmp_path / "index.html").exists()
    assert [r["data-name"] for r in page.rows] == ["one.wav", "two.wav", "three.wav"]
    assert [float(r["data-bits"]) for r in page.rows[:2]] == [2.25, 1.5]
    assert page.rows[2]["data-bits"] == ""
    assert [int(r["data-length"]) for r in page.rows] == [4_000, 3_000, 2_000]
    assert [b["data-key"] for b in page.all("button")] == ["name", "bits", "length"]
    assert len(page.all("th", **{"aria-sort": "none"})) == 3
    players = page.all("audio")
    assert [p["src"] for p in players] == ["one.wav", "two.wav", "three.wav"]
    assert all("controls" in p and p["preload"] == "none" for p in players)
    assert [float(p["data-seconds"]) for p in page.all("div", **{"class": "picture"})] == [0.5] * 3
    assert [image.shape for image in page.images] == [(204, 1056, 4)] * 3
    for said in (
        *("A title", "temperature", "0.9", "3 samples", "2.250", "unknown", "Drawn again."),
        *("Prompt: song.flac (the first 0.12 s)", "Prompt: other.wav (not in the file)"),
    ):
        assert said in page.text


def test_the_end_of_the_prompt_is_marked(tmp_path):
    path = sound(tmp_path)
    plain, marked, whole = (
        write(tmp_path, [Entry(path, 1.0, 4_000 - n, prompt_steps=n)]).images[0].astype(int)
        for n in (0, 1_000, 4_000)
    )
    (left, right), width = pictures.INSIDE, plain.shape[1]
    # Above the spectrogram, whose colours may move a little in the palette.
    changed = np.flatnonzero((np.abs(marked - plain)[5:80].max(axis=2) > 60).mean(axis=0) > 0.5)
    assert 1 <= len(changed) <= 5
    assert changed.mean() == pytest.approx(width * (left + (right - left) / 4), abs=2)
    np.testing.assert_array_equal(whole, plain)  # Nothing follows: no mark.


def test_all_sounds_have_one_scale(tmp_path):
    loud, soft = epath.Path(tmp_path / "loud.wav"), epath.Path(tmp_path / "soft.wav")
    wave = np.sin(np.arange(4_000))
    SOUND.write(loud, SOUND.encode(wave))
    SOUND.write(soft, SOUND.encode(0.1 * wave))
    both = write(tmp_path, [Entry(p, 1.0, 4_000) for p in (loud, soft)]).images
    solid = [image[:75, 100:900, 3] > 128 for image in both]  # Above the axis.
    heights = [np.ptp(np.flatnonzero(pixels.any(axis=1))) for pixels in solid]
    assert heights[0] > 60
    assert heights[1] == pytest.approx(heights[0] / 10, abs=3)


def test_names_and_notes_are_text(tmp_path):
    path = sound(tmp_path, f"{HOSTILE}.wav")
    page = write(
        tmp_path,
        [Entry(path, 1.0, 4_000, HOSTILE, 100, HOSTILE)],
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
    )
    assert len(page.all("script")) == 1
    assert "<script>alert" not in page.source
    assert page.text.count(HOSTILE) == 7
    assert page.rows[0]["data-name"] == path.name
    (player,) = page.all("audio")
    assert not set(player["src"]) & set("<>\"'& ü#?")
    assert urllib.parse.unquote(player["src"]) == path.name


def test_names_that_look_like_addresses_or_are_not_utf_8(tmp_path):
    names = ["javascript:alert(1).wav", "new/b c.wav", "\udcff.wav"]
    page = write(tmp_path, [Entry(sound(tmp_path, n), 1.0, 4_000) for n in names])
    links = [a["src"] for a in page.all("audio")]
    assert links == ["javascript%3Aalert%281%29.wav", "new/b%20c.wav", "%FF.wav"]
    assert [a["href"] for a in page.all("a")] == links


def test_nothing_comes_from_elsewhere(tmp_path):
    page = write(tmp_path, [Entry(sound(tmp_path), 1.0, 4_000)])
    without_data = re.sub(r"base64,[A-Za-z0-9+/=]*", "", page.source)
    assert "//" not in without_data
    assert "@import" not in page.source
    assert "url(" not in page.source
    for _, attributes in page.elements:
        for key in ("src", "href"):
            value = attributes.get(key, "data:")
            assert value.startswith("data:") or value == "a.wav"


def test_what_is_long_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "_MOST_SECONDS", 60)
    path = sound(tmp_path, seconds=61)
    page = write(tmp_path, [Entry(path, 1.0, 61 * 8_000)])
    assert page.all("div", **{"class": "picture"})[0]["data-seconds"] == "60.0"
    assert "only the first 1 minutes" in page.text


@pytest.mark.parametrize("format", [SOUND, TextFormat(), ImageFormat(2)], ids=lambda f: f.extension)
def test_only_the_first_are_shown(tmp_path, monkeypatch, format):
    monkeypatch.setattr(gallery, "_MOST_SHOWN", 2)
    path = epath.Path(tmp_path) / f"a{format.extension}"
    format.write(path, np.arange(12))
    page = write(tmp_path, [Entry(path, 1.0, 12)] * 3, format)
    assert len(page.rows) == 3
    assert len(page.all("img") + page.all("pre")) == 2
    assert len(page.all("audio")) == (3 if format is SOUND else 0)
    assert "Only the first 2 are shown in full." in page.text
    assert "Only the first" not in write(tmp_path, [Entry(path, 1.0, 12)] * 2, format).text


def test_no_samples(tmp_path):
    page = write(tmp_path, [])
    assert not page.rows
    assert "0 samples" in page.text


def test_texts(tmp_path):
    path = epath.Path(tmp_path) / "a.txt"
    text = "\n<pre> & </pre>" + "é" * 30_000
    TextFormat().write(path, np.frombuffer(text.encode(), np.uint8))
    page = write(tmp_path, [Entry(path, 1.0, 100, "b.txt", 6)], TextFormat())
    assert len(page.all("pre")) == 1
    assert page.all("span", **{"class": "prompt"})
    shown = page.source.split('<pre tabindex="0">\n')[1].split("</pre>")[0]
    assert html.unescape(re.sub("<.*?>", "", shown)) == text[:20_000]
    assert "only the first 20,000 characters" in page.text
    assert "Prompt: b.txt (the first 6 bytes)" in page.text
    assert "Bits per byte" in page.text


def test_pictures(tmp_path):
    format, path = ImageFormat(4), epath.Path(tmp_path) / "a.png"
    tokens = np.random.default_rng(0).integers(0, 256, 48)
    format.write(path, tokens)
    page = write(tmp_path, [Entry(path, 1.0, 24, None, 24), Entry(path, 1.0, 48)], format)
    for image in page.images:
        np.testing.assert_array_equal(image[..., :3], format.decode(tokens))
    assert [m["style"] for m in page.all("i", **{"class": "mark"})] == ["top:50.00%"]
    assert "Prompt (the first 24 bytes)" in page.text


def test_what_cannot_be_read_or_written(tmp_path):
    missing = epath.Path(tmp_path) / "missing"
    for format, name in ((SOUND, "a.wav"), (TextFormat(), "a.txt"), (ImageFormat(2), "a.png")):
        with pytest.raises(UserError, match=r"Cannot (use|read) .*missing") as caught:
            write(missing, [Entry(missing / name, 1.0, 4)], format)
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "taken" / "index.html").mkdir(parents=True)
    for directory in (missing, tmp_path / "file", tmp_path / "taken"):
        with pytest.raises(UserError, match=r"Cannot write .*index\.html: ") as caught:
            write(directory, [])
        assert "\n" not in str(caught.value)
    for outside in (sound(tmp_path), epath.Path(tmp_path) / "taken" / ".." / "a.wav"):
        with pytest.raises(UserError, match="inside the gallery's directory"):
            write(tmp_path / "taken", [Entry(outside, 1.0, 4_000)])
