import cmath
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pf_jax.audio import pictures
from pf_jax.errors import UserError


def sine(frequency, sample_rate, seconds=0.2, amplitude=1.0):
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return amplitude * np.sin(2 * np.pi * frequency * time)


def centres(sample_rate, num_bands=80):
    """Returns the centres of the mel bands in Hz."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    return [700 * (10 ** (top * b / (num_bands + 1) / 2595) - 1) for b in range(1, num_bands + 1)]


def read_png(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def dft(samples, cycles):
    """Returns the Fourier transform at one frequency, in cycles per sample."""
    return sum(x * cmath.exp(-2j * math.pi * cycles * i) for i, x in enumerate(samples))


def test_mel_spectrogram_is_the_sum_written_out():
    rate, size, hop, bands, fft = 2_000, 24, 10, 5, 64
    waveform = np.random.default_rng(0).uniform(-1, 1, 57)
    window = [0.5 - 0.5 * math.cos(2 * math.pi * i / size) for i in range(size)]
    edges = [0, *centres(rate, bands), rate / 2]
    assert fft / 2 < 2 * rate / min(np.diff(edges)) <= fft  # Padded from 24 to 64 samples.
    expected = np.zeros((bands, 6))
    for frame in range(6):
        cut = [
            w * (waveform[k] if 0 <= k < len(waveform) else 0)
            for w, k in zip(
                window, range(frame * hop - size // 2, frame * hop + size), strict=False
            )
        ]
        for band, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
            power = full_scale = 0
            for hertz in (rate / fft * k for k in range(fft // 2 + 1)):
                weight = max(
                    0, min((hertz - low) / (centre - low), (high - hertz) / (high - centre))
                )
                power += weight * abs(dft(cut, hertz / rate)) ** 2
                full_scale += weight * abs(dft(window, (hertz - centre) / rate) / 2) ** 2
            expected[band, frame] = 10 * math.log10(power / full_scale)
    actual = pictures.mel_spectrogram(
        waveform, rate, num_bands=bands, window_seconds=size / rate, hop_seconds=hop / rate
    )
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=0.02)  # It interpolates the full scale.


@pytest.mark.parametrize("rate", [1_000, 8_000, 16_000, 48_000])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.85])
def test_a_full_scale_sine_is_loudest_in_its_band_at_0_db(rate, fraction):
    frequency = fraction * rate / 2
    spectrum = pictures.mel_spectrogram(sine(frequency, rate), rate)[:, 5:-5].mean(axis=1)
    nearest = np.argmin(np.abs(np.array(centres(rate)) - frequency))
    assert abs(int(np.argmax(spectrum)) - nearest) <= 1
    assert -3.2 < spectrum.max() < 0.2


@pytest.mark.parametrize("band", [10, 40, 70])
def test_a_full_scale_sine_at_a_centre_reads_0_db(band):
    spectrum = pictures.mel_spectrogram(sine(centres(16_000)[band], 16_000), 16_000)
    np.testing.assert_allclose(spectrum[band, 5:-5], 0, atol=0.1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3_000), st.floats(1e-2, 10))
def test_gain_adds_decibels(seed, length, gain):
    waveform = np.random.default_rng(seed).uniform(-1, 1, length)
    plain = pictures.mel_spectrogram(waveform, 8_000, floor_db=-300)
    loud = pictures.mel_spectrogram(gain * waveform, 8_000, floor_db=-300)
    assert plain.shape == (80, -(-length // 64))
    heard = plain > -200
    np.testing.assert_allclose((loud - plain)[heard], 20 * np.log10(gain), atol=1e-3)


def test_half_the_amplitude_is_6_db_less():
    loud, soft = (
        pictures.mel_spectrogram(sine(1_000, 8_000, amplitude=a), 8_000) for a in (1, 0.5)
    )
    assert loud.max() - soft.max() == pytest.approx(6.0206, abs=1e-3)


@pytest.mark.parametrize("length", [0, 1, 7, 5_000])
def test_silence_is_the_floor(length):
    spectrum = pictures.mel_spectrogram(np.zeros(length, np.float32), 16_000, floor_db=-60)
    assert spectrum.shape == (80, max(1, -(-length // 128)))
    assert (spectrum == -60).all()


@pytest.mark.parametrize("rate", [1_000, 16_000, 96_000])
@pytest.mark.parametrize("num_bands", [1, 80, 200])
def test_no_band_is_empty(rate, num_bands):
    impulse = np.zeros(rate // 10)
    impulse[rate // 20] = 1
    spectrum = pictures.mel_spectrogram(impulse, rate, num_bands=num_bands, floor_db=-200)
    assert len(spectrum) == num_bands
    assert np.isfinite(spectrum).all()
    assert (spectrum.max(axis=1) > -100).all()  # An impulse has all frequencies.


def test_blocks_do_not_change_the_spectrogram(monkeypatch):
    waveform = np.random.default_rng(0).uniform(-1, 1, 5_000)
    whole = pictures.mel_spectrogram(waveform, 8_000)
    monkeypatch.setattr(pictures, "_BLOCK", 3_000)
    np.testing.assert_allclose(pictures.mel_spectrogram(waveform, 8_000), whole, atol=1e-4)


@pytest.mark.parametrize("length", [1, 500, 9_000])
def test_waveforms_are_drawn_in_rows(tmp_path, length):
    heights = []
    for rows in (1, 3):
        path = tmp_path / "new" / f"{rows}.png"
        waveforms = [sine(440, 8_000, 2)[:length]] * rows
        pictures.draw_waveforms(path, waveforms, 8_000, ["$a_{title"] * rows)
        image = read_png(path)
        heights.append(len(image))
        for row in np.split(image, rows):
            assert row.std() > 10
            assert (row[0] == 255).all()  # Nothing is cut off at the top, nor drawn over another.
    assert heights[1] == 3 * heights[0]


def test_each_waveform_is_drawn_on_its_left_and_its_spectrogram_on_the_right(tmp_path):
    path = tmp_path / "rows.png"
    pictures.draw_waveforms(path, [sine(440, 8_000, 1), np.zeros(8_000)], 8_000, ["", ""])
    loud, silent = np.split(read_png(path).astype(float), 2)
    left, right = (slice(100, 600), slice(800, 1300))
    assert (loud[:, left] < 200).sum() > 5 * (silent[:, left] < 200).sum()
    middle = slice(50, 140)
    assert silent[middle, right].max() < 10  # All at the floor.
    assert loud[middle, right].max() > 200


def test_marks_are_vertical_lines(tmp_path):
    waveforms, images = [np.zeros(800)] * 2, []
    for marks in (None, [None, 0.05]):
        pictures.draw_waveforms(tmp_path / "a.png", waveforms, 8_000, ["", ""], marks=marks)
        images.append(read_png(tmp_path / "a.png").astype(int))
    first, second = np.split(np.abs(images[1] - images[0]).max(axis=2) > 50, 2)
    assert not first.any()
    lines = np.flatnonzero(second.any(axis=0))
    assert len(lines) <= 8
    left, right = lines[lines < 720], lines[lines > 720]
    # At the middle of the axes, which are half a picture apart but for the margins.
    assert left.mean() == pytest.approx(0.25 * 1440, abs=80)
    assert right.mean() == pytest.approx(0.72 * 1440, abs=80)


def test_what_cannot_be_drawn(tmp_path):
    path = tmp_path / "bad.png"
    good = np.zeros(100)
    for bad in ([0.0, np.nan], [np.inf, 0.0]):
        with pytest.raises(UserError, match=r"NaN or infinite in waveform 1 \(two\)"):
            pictures.draw_waveforms(path, [good, bad], 8_000, ["one", "two"])
        with pytest.raises(UserError, match="NaN or infinite"):
            pictures.mel_spectrogram(bad, 8_000)
    with pytest.raises(UserError, match="shape"):
        pictures.draw_waveforms(path, [np.zeros((2, 100))], 8_000, ["one"])
    with pytest.raises(UserError, match="1 or more samples"):
        pictures.draw_waveforms(path, [[]], 8_000, ["one"])
    with pytest.raises(UserError, match="2 waveforms, 1 titles and 2 marks"):
        pictures.draw_waveforms(path, [good] * 2, 8_000, ["one"])
    for count in (0, 1_000):
        with pytest.raises(UserError, match=f"Cannot draw {count} waveforms"):
            pictures.draw_waveforms(path, [good] * count, 8_000, [""] * count)
    assert not path.exists()


def test_pictures_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "a.png", tmp_path):
        with pytest.raises(UserError, match=r"Cannot write .*: ") as caught:
            pictures.draw_images(path, np.zeros((1, 2, 2, 3), np.uint8))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"Cannot write .*a\.png: "):
        pictures.draw_waveforms(tmp_path / "file" / "a.png", [np.zeros(10)], 8_000, [""])


@pytest.mark.parametrize("length", [1, 500, 200_000])
def test_one_waveform_above_its_spectrogram(tmp_path, length):
    (tmp_path / "a.png").write_bytes(pictures.waveform_png(sine(440, 8_000, 25)[:length], 8_000))
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGBA"))
    assert pixels.shape == (204, 1056, 4)
    assert (pixels[0] == pixels[0, 0]).all()  # Nothing is cut off at the top.
    assert pixels[0, 0, 3] == 0
    left, right = (round(fraction * 1056) for fraction in pictures.INSIDE)
    assert (pixels[90:175, left + 2 : right - 2, 3] > 250).all()  # Of a palette.
    for bad in ([], [np.nan], np.zeros((2, 9))):
        with pytest.raises(UserError, match="the waveform"):
            pictures.waveform_png(bad, 8_000)


@settings(max_examples=20, deadline=None)
@given(*[st.integers(1, 5)] * 5)
def test_images_are_exact_in_their_grid(tmp_path_factory, count, height, width, columns, scale):
    path = tmp_path_factory.mktemp("images") / "grid.png"
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    pictures.draw_images(str(path), images, columns=columns, scale=scale)
    across, down = min(columns, count), math.ceil(count / columns)
    expected = np.full((down * (height * scale + 2) - 2, across * (width * scale + 2) - 2, 3), 255)
    for i, image in enumerate(images):
        top, left = i // across * (height * scale + 2), i % across * (width * scale + 2)
        for y in range(height * scale):
            for x in range(width * scale):
                expected[top + y, left + x] = image[y // scale, x // scale]
    np.testing.assert_array_equal(read_png(path), expected)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((1, 2, 2, 3)), {}, "float64"),
        (np.zeros((2, 2, 3), np.uint8), {}, "shape"),
        (np.zeros((1, 2, 2, 1), np.uint8), {}, "shape"),
        (np.zeros((0, 2, 2, 3), np.uint8), {}, "empty"),
        (np.zeros((1, 2, 2, 3), np.uint8), {"columns": 0}, "1 or more"),
        (np.zeros((1, 2, 2, 3), np.uint8), {"scale": 0}, "1 or more"),
    ],
)
def test_images_that_cannot_be_drawn(tmp_path, images, options, message):
    with pytest.raises(UserError, match=message):
        pictures.draw_images(tmp_path / "grid.png", images, **options)


def test_drawing_leaves_matplotlib_alone(tmp_path):
    # In a process of its own: other tests may have imported pyplot.
    code = (
        "import sys, numpy as np\n"
        "from pf_jax.audio import pictures\n"
        "assert not any(m in sys.modules for m in ('matplotlib', 'scipy.signal'))\n"
        f"pictures.draw_waveforms({str(tmp_path / 'a.png')!r}, [np.zeros(9)], 8000, ['a'])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
