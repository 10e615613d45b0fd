import numpy as np
import pytest
from PIL import Image

from pf_jax.data import DataConfig
from pf_jax.errors import UserError
from pf_jax.formats import ImageFormat, TextFormat


def test_text_is_written_byte_for_byte(tmp_path):
    data = "Ærøskøbing, 東京".encode() + b"\xff\xfe"
    tokens = np.frombuffer(data, np.uint8).astype(np.int32)
    TextFormat().write(tmp_path / "new" / "x.txt", tokens)
    assert (tmp_path / "new" / "x.txt").read_bytes() == data
    assert TextFormat().decode(tokens) == "Ærøskøbing, 東京\ufffd\ufffd"
    np.testing.assert_array_equal(TextFormat().encode_stored(np.frombuffer(data, np.uint8)), tokens)
    assert TextFormat().describe(90_000_000) == "90 MB"


def test_pictures_are_written_pixel_for_pixel(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    image_format = ImageFormat.of_length(75)
    image_format.write(tmp_path / "x.png", picture.ravel().astype(np.int32))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), picture)
    np.testing.assert_array_equal(image_format.decode(picture.ravel()), picture)
    image_format.write(tmp_path / "part.png", picture.ravel()[:31])
    part = np.asarray(Image.open(tmp_path / "part.png")).ravel()
    np.testing.assert_array_equal(part, [*picture.ravel()[:31], *[0] * 44])
    assert image_format.describe(75 * 1_200) == "1,200 images"


@pytest.mark.parametrize("window", [1, 3_071, 3_073, 2 * 3_072])
def test_a_window_that_is_no_picture(window):
    with pytest.raises(UserError, match=rf"window=.*{window}|{window}"):
        DataConfig("cifar10", window, modality="image")


def test_formats_of_a_config():
    assert DataConfig("x", 3_072, modality="image").format == ImageFormat(32)
    assert DataConfig("x", 10, modality="text").format == TextFormat()


@pytest.mark.parametrize("any_format", [TextFormat(), ImageFormat(2)])
def test_a_place_that_cannot_be_written(tmp_path, any_format):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"Cannot write .*file/x"):
        any_format.write(tmp_path / "file" / "x", np.zeros(12, np.int32))
