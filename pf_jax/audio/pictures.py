"""Pictures of what a model makes: waveforms with their mel spectrograms, and grids of images.

Nothing here needs a display. SciPy, Matplotlib and Pillow are imported where they are used, so that
importing this module costs nothing.
"""

import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, Float32, Float64, UInt8

from pf_jax.errors import UserError

_BLOCK = 2**22  # Short-time spectrum values held at once.
_DPI = 120
_WIDTH = 12.0  # Inches.
_ROW_PIXELS = 204
_MOST_PIXELS = 65_000  # Matplotlib draws less than 2^16 pixels high.
_COLUMNS = 1_500  # Above this many samples a waveform is drawn as an envelope of so many columns.
_TITLE_LETTERS = 150  # What fits over a row.
_HOP_SECONDS = 0.008
_FLOOR_DB = -80.0
_GAP = 2  # White pixels between images.
_GREY = "#7b7f85"  # Can be read on white and on black.
INSIDE = (0.05, 0.995)  # Where time begins and ends in `waveform_png`, as fractions of its width.


def mel_spectrogram(
    waveform: Float[np.ndarray, "time"],
    sample_rate: int,
    *,
    num_bands: int = 80,
    window_seconds: float = 0.032,
    hop_seconds: float = _HOP_SECONDS,
    floor_db: float = _FLOOR_DB,
) -> Float32[np.ndarray, "bands frames"]:
    """Returns the power in mel bands over time, in dB relative to a full-scale sine.

    Power spectra of Hann windows go through triangular filters whose `num_bands` centres are
    equally spaced in mel strictly between 0 Hz and half the sample rate; each filter reaches from
    its lower neighbour's centre to its upper one's. The scale is that of the HTK Book (Young et
    al., "Filterbank Analysis", after O'Shaughnessy, 1987):

        mel(f) = 2595 log10(1 + f / 700)

    Triangles have a peak of 1 (not an area of 1), and each band is then scaled so that a sine of
    amplitude 1 at the band's centre reads 0 dB, however wide the band is. Between two centres the
    louder of both bands reads at most about 3 dB less. Bands nearer to 0 Hz or to half the sample
    rate than `2 / window_seconds` cannot tell a sine from its mirror image, and waver around that.

    Windows are centred on samples 0, hop, 2 hop and so on, all inside the waveform, which is taken
    as zero outside. They are padded with zeros to the least power of two that has two FFT bins
    between the closest centres, so that no band is empty.

    Args:
        waveform: Finite samples; full scale is [-1, 1], and nothing is clipped. May be shorter than
            a window, or empty, which is silence.
        sample_rate: Samples per second, 1,000 or more.
        num_bands: Number of mel bands.
        window_seconds: Length of a window.
        hop_seconds: Time from the centre of a window to that of the next.
        floor_db: What quieter bands, and silence, read.

    Returns:
        Decibels, band 0 being the lowest; `max(1, ceil(time / hop))` frames.

    Raises:
        UserError: The waveform is not one row of finite samples.
    """
    import scipy.signal

    waveform = _checked(waveform, "the waveform")
    size, hop = (max(1, round(s * sample_rate)) for s in (window_seconds, hop_seconds))
    num_frames = max(1, -(-len(waveform) // hop))
    waveform = np.pad(waveform, (0, max(0, size - len(waveform))))  # SciPy wants half a window.
    window = scipy.signal.windows.hann(size, sym=False) if size > 1 else np.ones(1)
    edges = _mel_edges(sample_rate, num_bands)
    fft_size = 2
    while fft_size < max(size, 2 * sample_rate / np.diff(edges).min()):
        fft_size *= 2

    filters = _filters(window, fft_size, sample_rate, edges)
    stft = scipy.signal.ShortTimeFFT(
        window, hop, sample_rate, mfft=fft_size, scale_to="magnitude", phase_shift=None
    )
    step = max(1, _BLOCK // stft.f_pts)
    power = [
        filters @ np.square(np.abs(stft.stft(waveform, start, min(start + step, num_frames))))
        for start in range(0, num_frames, step)
    ]
    floor = 10 ** (floor_db / 10)
    return (10 * np.log10(np.maximum(np.concatenate(power, axis=1), floor))).astype(np.float32)


def draw_waveforms(
    path: epath.PathLike,
    waveforms: Sequence[Float[np.ndarray, "time"]],
    sample_rate: int,
    titles: Sequence[str],
    *,
    marks: Sequence[float | None] | None = None,
) -> None:
    """Draws a PNG with one row per waveform: the waveform, and its mel spectrogram.

    All waveforms have one scale of amplitude and all spectrograms one scale of loudness, so rows
    can be compared. Each has its own time axis.

    Args:
        path: The file to write, local or anything that `etils.epath` opens; its directories are
            made.
        waveforms: Finite samples, at least one in each; full scale is [-1, 1].
        sample_rate: Samples per second, 1,000 or more.
        titles: What to write above each waveform.
        marks: Seconds at which to draw a vertical line, such as where a prompt ends, one for each
            waveform; None draws none.

    Raises:
        UserError: There are no waveforms, or too many for one picture; a waveform is not one row of
            finite samples; the numbers of waveforms, titles and marks differ; or the file cannot be
            written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if marks is None:
        marks = [None] * len(waveforms)
    if not len(waveforms) == len(titles) == len(marks):
        raise UserError(
            "Each waveform needs one title and one mark, got "
            f"{len(waveforms)} waveforms, {len(titles)} titles and {len(marks)} marks."
        )
    if not 1 <= len(waveforms) <= _MOST_PIXELS // _ROW_PIXELS:
        raise UserError(
            f"Cannot draw {len(waveforms)} waveforms in one picture ({path}): "
            f"give 1 to {_MOST_PIXELS // _ROW_PIXELS}."
        )
    waveforms = [_checked(w, f"waveform {i} ({titles[i]})", 1) for i, w in enumerate(waveforms)]
    limit = 1.05 * (max(np.abs(w).max() for w in waveforms) or 1.0)

    figure = Figure(figsize=(_WIDTH, len(waveforms) * _ROW_PIXELS / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(waveforms), 2, squeeze=False, gridspec_kw=_margins(figure))
    for (left, right), waveform, title, mark in zip(axes, waveforms, titles, marks, strict=True):
        _draw_waveform(left, waveform, sample_rate, limit)
        left.set_title(_shortened(title), loc="left", fontsize=9, pad=5, parse_math=False)
        _draw_spectrogram(right, waveform, sample_rate)
        if mark is not None:
            left.axvline(mark, color="#d1495b", linewidth=1.2)
            right.axvline(mark, color="white", linewidth=1.2, linestyle="--")
    for axis in axes[-1]:
        axis.set_xlabel("time (s)", fontsize=8, labelpad=1)
    png = io.BytesIO()
    canvas.print_png(png)
    _write(path, png)


def waveform_png(
    waveform: Float[np.ndarray, "time"],
    sample_rate: int,
    *,
    limit: float = 1.0,
    mark: float | None = None,
) -> bytes:
    """Returns a PNG of one waveform above its mel spectrogram, on one time axis.

    It is for pages: the ground is transparent, what is written can be read on white and on black,
    and time goes from the first to the second fraction in `INSIDE` of the width. The scale of
    loudness is that of `draw_waveforms`, -80 to 0 dB.

    Args:
        waveform: Finite samples, at least one.
        sample_rate: Samples per second, 1,000 or more.
        limit: The amplitude at the upper edge, more than 0.
        mark: Seconds at which to draw a vertical line, such as where a prompt ends.

    Raises:
        UserError: The waveform is not one row of finite samples.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    waveform = _checked(waveform, "the waveform", 1)
    figure = Figure(figsize=(8.8, 1.7), dpi=_DPI, facecolor="none")
    canvas = FigureCanvasAgg(figure)
    margins = {"left": INSIDE[0], "right": INSIDE[1], "bottom": 0.12, "top": 0.96, "hspace": 0.08}
    ratios = {"height_ratios": (4, 5)}
    upper, lower = figure.subplots(2, gridspec_kw=margins | ratios)
    _draw_waveform(upper, waveform, sample_rate, limit, "#4c8fbd")
    # A frame or more for each pixel is enough, as long as no sound falls between the windows.
    hop_seconds = min(max(_HOP_SECONDS, len(waveform) / sample_rate / 2_000), 4 * _HOP_SECONDS)
    _draw_spectrogram(lower, waveform, sample_rate, bar=False, hop_seconds=hop_seconds)
    upper.set_facecolor("none")
    upper.tick_params(labelbottom=False)
    for axes in (upper, lower):
        axes.tick_params(colors=_GREY)
        axes.spines[:].set_color(_GREY)
        axes.yaxis.label.set_color(_GREY)
    lower.get_xticklabels()[-1].set_horizontalalignment("right")
    if mark is not None:
        upper.axvline(mark, color="#d1495b", linewidth=1.6)
        lower.axvline(mark, color="white", linewidth=1.4, linestyle="--")
    canvas.draw()
    png = io.BytesIO()
    # With a palette it takes a fifth of the space, and looks the same.
    image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(png, format="PNG")
    return png.getvalue()


def draw_images(
    path: epath.PathLike,
    images: UInt8[np.ndarray, "n height width 3"],
    *,
    columns: int = 8,
    scale: int = 4,
) -> None:
    """Draws a PNG with a grid of RGB images, row by row, each pixel enlarged to a square.

    Images are two white pixels apart; places left over in the last row are white.

    Args:
        path: The file to write, local or anything that `etils.epath` opens; its directories are
            made.
        images: At least one RGB image, 0 to 255.
        columns: Most images in one row.
        scale: Side of the square that a pixel becomes.

    Raises:
        UserError: The images have another type or shape, `columns` or `scale` is less than 1, or
            the file cannot be written.
    """
    from PIL import Image

    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise UserError(
            "Images must be uint8 with the shape (n, height, width, 3) and not empty, "
            f"got {images.dtype} {images.shape} for {path}."
        )
    if columns < 1 or scale < 1:
        raise UserError(f"columns and scale must be 1 or more, got {columns} and {scale}.")
    count, height, width, _ = images.shape
    height, width, columns = height * scale, width * scale, min(columns, count)
    size = (
        columns * (width + _GAP) - _GAP,
        -(-count // columns) * (height + _GAP) - _GAP,
    )
    grid = Image.new("RGB", size, "white")
    for i, pixels in enumerate(images):
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        row, column = divmod(i, columns)
        grid.paste(image, (column * (width + _GAP), row * (height + _GAP)))
    png = io.BytesIO()
    grid.save(png, format="PNG")
    _write(path, png)


def _mel(hertz: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def _mel_edges(sample_rate: int, num_bands: int) -> Float64[np.ndarray, "bands+2"]:
    """Returns 0 Hz, the centres of the bands in Hz, and half the sample rate."""
    mels = np.linspace(0, _mel(sample_rate / 2), num_bands + 2)
    return 700 * (10 ** (mels / 2595) - 1)


def _filters(
    window: np.ndarray, fft_size: int, sample_rate: int, edges: np.ndarray
) -> Float64[np.ndarray, "bands bins"]:
    """Returns triangular filters, scaled so that a full-scale sine at a band's centre gives 1."""
    bins = np.arange(fft_size // 2 + 1) * (sample_rate / fft_size)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    triangles = np.maximum(0, np.minimum(rising, falling))
    # A sine's spectrum is the window's, moved to its frequency and, the other half of its power
    # being at the negative one, half as large.
    fine = 8 * fft_size  # Fine enough to interpolate.
    spectrum = np.square(np.abs(np.fft.rfft(window, fine)) / window.sum() / 2)
    frequencies = np.arange(len(spectrum)) * (sample_rate / fine)
    response = np.interp(np.abs(bins - centre), frequencies, spectrum)
    return triangles / np.sum(triangles * response, axis=1, keepdims=True)


def _margins(figure) -> dict[str, float]:
    """Returns where Matplotlib places axes, so that rows look the same however many there are."""
    width, height = figure.get_size_inches()
    row, axes, below = _ROW_PIXELS / _DPI, 1.02, 0.4  # Inches; above the axes there is a title.
    return {
        "left": 0.55 / width,
        "right": 1 - 0.75 / width,
        "bottom": below / height,
        "top": 1 - (row - axes - below) / height,
        "wspace": 0.13,
        "hspace": (row - axes) / axes,
    }


def _draw_waveform(
    axes, waveform: np.ndarray, sample_rate: int, limit: float, color: str = "#31688e"
) -> None:
    """Draws amplitude over time on Matplotlib's `axes`."""
    seconds = np.arange(len(waveform)) / sample_rate
    style = {"color": color, "linewidth": 0.8}
    if len(waveform) > 2 * _COLUMNS:  # Lines this dense take long, and can be too much for Agg.
        starts = np.linspace(0, len(waveform), _COLUMNS, endpoint=False).astype(int)
        low, high = np.minimum.reduceat(waveform, starts), np.maximum.reduceat(waveform, starts)
        axes.fill_between(seconds[starts], low, high, **style)
    else:
        # So few samples that one by one they can be seen.
        axes.plot(seconds, waveform, marker="." if len(waveform) < 100 else "", **style)
    axes.axhline(0, color="black", linewidth=0.4, alpha=0.4, zorder=0)
    axes.set_ylim(-limit, limit)
    axes.locator_params(axis="y", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    _finish(axes, len(waveform) / sample_rate)


def _draw_spectrogram(
    axes,
    waveform: np.ndarray,
    sample_rate: int,
    *,
    bar: bool = True,
    hop_seconds: float = _HOP_SECONDS,
) -> None:
    """Draws a mel spectrogram, and its colour bar if wanted, on Matplotlib's `axes`."""
    decibels = mel_spectrogram(waveform, sample_rate, hop_seconds=hop_seconds)
    mels = _mel(_mel_edges(sample_rate, len(decibels)))
    bottom, top = (mels[0] + mels[1]) / 2, (mels[-2] + mels[-1]) / 2
    hop = max(1, round(hop_seconds * sample_rate)) / sample_rate
    image = axes.imshow(
        decibels,
        origin="lower",
        aspect="auto",
        extent=(-hop / 2, (decibels.shape[1] - 0.5) * hop, bottom, top),  # Frames are centred.
        cmap="magma",
        vmin=_FLOOR_DB,
        vmax=0,
    )
    axes.set_facecolor(image.cmap(0))  # After the last frame, if it ends early.
    ticks = _frequency_ticks(bottom, top)
    axes.set_yticks(_mel(ticks), [f"{f / 1000:g}k" if f >= 1000 else f"{f:g}" for f in ticks])
    axes.set_ylabel("Hz", fontsize=8, labelpad=1)
    _finish(axes, len(waveform) / sample_rate)
    if bar:
        scale = axes.inset_axes((1.015, 0, 0.015, 1))
        axes.figure.colorbar(image, cax=scale, ticks=[0, -20, -40, -60, -80])
        scale.set_ylabel("dB", fontsize=8, labelpad=3)
        scale.tick_params(labelsize=7, length=2)


def _shortened(title: str) -> str:
    title = " ".join(title.split())
    return title if len(title) <= _TITLE_LETTERS else title[: _TITLE_LETTERS - 1] + "…"


def _finish(axes, seconds: float) -> None:
    axes.set_xlim(0, seconds)
    axes.tick_params(labelsize=7, length=2)
    axes.xaxis.get_offset_text().set_fontsize(7)


def _frequency_ticks(bottom: float, top: float) -> Float64[np.ndarray, "ticks"]:
    """Returns round frequencies in Hz between two mels, from the top down and not too close."""
    chosen, last = [], np.inf
    for hertz in sorted((m * 10**e for e in range(1, 6) for m in (1, 2, 5)), reverse=True):
        mel = _mel(hertz)
        if bottom <= mel <= min(top, last - (top - bottom) / 9):
            chosen.append(float(hertz))
            last = mel
    return np.array(chosen)


def _checked(waveform: np.ndarray, name: str, shortest: int = 0) -> Float64[np.ndarray, "time"]:
    """Returns one row of finite samples as float64."""
    waveform = np.asarray(waveform, np.float64)
    if waveform.ndim != 1 or len(waveform) < shortest:
        wanted = "(time,)" + (f" with {shortest} or more samples" if shortest else "")
        raise UserError(f"The shape must be {wanted}, got {waveform.shape} for {name}.")
    if not np.isfinite(waveform).all():
        raise UserError(f"There are samples that are NaN or infinite in {name}.")
    return waveform


def _write(path: epath.PathLike, png: io.BytesIO) -> None:
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png.getvalue())
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
