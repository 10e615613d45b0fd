import io

import numpy as np
import pytest
from PIL import Image

from pf_jax.evaluation import comparison_charts as charts
from pf_jax.evaluation.comparison_charts import Dot, Line, Style, curves_png, dots_png


def pixels(png):
    image = Image.open(io.BytesIO(png))
    assert image.mode == "RGBA"
    return np.asarray(image).astype(int)


def places(image, style):
    """Rows and columns of what is drawn in a colour, from the top left, as fractions."""
    color = [int(style.color[i : i + 2], 16) for i in (1, 3, 5)]
    near = (np.abs(image[..., :3] - color).max(axis=2) < 12) & (image[..., 3] > 200)
    return np.argwhere(near) / image.shape[:2]


def curves(*ys, x=None):
    lines = [
        Line(np.arange(len(y)) if x is None else x, np.asarray(y, float), Style.of(i))
        for i, y in enumerate(ys)
    ]
    return curves_png(lines, x_label="step", y_label="bits")


def test_styles_differ_as_far_as_they_say():
    assert len({Style.of(number) for number in range(105)}) == 105
    assert len({Style.of(number).color for number in range(7)}) == 7
    assert Style.of(105) == Style.of(0)


def test_curves_go_where_they_should():
    png, is_cut = curves([1, 2, 3, 4], [4, 3, 2, 1])
    image = pixels(png)
    assert image[2, 2, 3] == 0  # The ground is transparent.
    assert not is_cut
    for number, sign in ((0, -1), (1, 1)):  # Rows are counted downwards.
        drawn = places(image, Style.of(number))
        assert np.ptp(drawn, axis=0) == pytest.approx(0.8, abs=0.15)
        assert sign * np.corrcoef(drawn.T)[0, 1] > 0.95


def test_the_scale_is_made_for_the_end_of_a_curve():
    falling = 2 + 6 * np.exp(-np.arange(100) / 3)
    png, is_cut = curves(falling)
    assert is_cut
    drawn = places(pixels(png), Style.of(0))
    assert np.ptp(drawn[:, 0]) > 0.7
    assert not curves(np.linspace(3, 2, 100))[1]


def test_long_curves_are_means():
    rng = np.random.default_rng(0)
    y = 3 + rng.normal(size=1_600) * 0.1
    y[100:140] = np.nan
    x, means = charts._average(Line(np.arange(1_600) * 5, y, Style.of(0)))
    size = 11  # The least that gives 150 or fewer.
    for i, mean in enumerate(means):
        group = slice(i * size, min((i + 1) * size, 1_600))
        assert x[i] == pytest.approx(np.mean(np.arange(1_600)[group] * 5))
        if np.isnan(y[group]).all():
            assert np.isnan(mean)
        else:
            assert mean == pytest.approx(np.nanmean(y[group]))
    assert np.isnan(means).sum() == 2
    assert len(means) == 146
    curves(y)


@pytest.mark.parametrize("y", [[2.0], [2.0, 2.0], [np.nan, 2.0, np.nan], [0.0, 0.0]])
def test_curves_of_few_points_are_seen(y):
    png, _ = curves(y, [3.0] * len(y))
    assert len(places(pixels(png), Style.of(0)))


def test_dots_stand_in_order():
    dots = [Dot(1.0, Style.of(0), 0.5, 1.5), Dot(3.0, Style.of(1)), Dot(2.0, Style.of(2))]
    image = pixels(dots_png(dots))
    rows, columns = np.transpose([places(image, dot.style).mean(axis=0) for dot in dots])
    assert rows[0] < rows[1] < rows[2]
    assert columns[0] < columns[2] < columns[1]
    interval = places(image, dots[0].style)[:, 1]
    assert np.ptp(interval) == pytest.approx((columns[1] - columns[0]) / 2, abs=0.05)


def test_a_doubted_dot_is_hollow():
    full, hollow = (
        len(places(pixels(dots_png([Dot(1.0, Style.of(0), doubted=doubted)])), Style.of(0)))
        for doubted in (False, True)
    )
    assert 0 < hollow < 0.8 * full
