import io
import json
import os
import re
import struct
import sys

import numpy as np
import pytest
import soundfile
from etils import epath
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from pf_jax.audio import AudioFormat
from pf_jax.errors import UserError
from pf_jax.formats import ImageFormat, TextFormat
from pf_jax.training import logging, tensorboard
from pf_jax.training.logging import RunLog


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(path):
    """The events of a file, each checked as TensorBoard checks it."""
    return parsed(path.read_bytes())


def parsed(data):
    found = []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
        body, data = data[12 : 12 + size], data[12 + size :]
        assert struct.unpack("<I", data[:4]) == (masked_crc32c(body),)
        data = data[4:]
        found.append(event_pb2.Event.FromString(body))
    return found


def event_files(workdir):
    return sorted((workdir / "tensorboard").iterdir())


def shown(workdir):
    """What TensorBoard shows: values by tag and step."""
    found = [event for path in event_files(workdir) for event in events(path)]
    return {(value.tag, event.step): value for event in found for value in event.summary.value}


def text_of(value):
    """The text in a value, found as TensorBoard's Markdown finds what is in a fence."""
    assert value.metadata.plugin_data.plugin_name == "text"
    assert value.tensor.dtype == 7  # DT_STRING
    assert not value.tensor.tensor_shape.dim  # An array would become a table.
    (text,) = value.tensor.string_val
    fenced = re.match(r"(?ms)^(?P<fence>~{3,})\n(?P<code>.*?)(?<=\n)(?P=fence)[ ]*$", text.decode())
    assert fenced.end() == len(text.decode())
    return fenced["code"].removesuffix("\n")


def test_writes_the_same_numbers_as_json_lines_and_events(tmp_path):
    workdir = tmp_path / "new" / "run"
    with RunLog(workdir, num_steps=20) as log:
        log.train(10, {"loss": np.float32(1.5), "samples_per_second": 100})
        assert lines(workdir)[0]["step"] == 10  # Already there, before the log is closed.
        log.evaluation(10, {"bits_per_sample": 2.25})
    assert lines(workdir) == [
        {"step": 10, "split": "train", "loss": 1.5, "samples_per_second": 100.0},
        {"step": 10, "split": "validation", "bits_per_sample": 2.25},
    ]
    version, start, *rest = events(event_files(workdir)[0])
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == event_pb2.SessionLog.START
    scalars = {(v.tag, e.step): v.simple_value for e in rest for v in e.summary.value}
    assert scalars == {
        ("train/loss", 10): 1.5,
        ("train/samples_per_second", 10): 100.0,
        ("validation/bits_per_sample", 10): 2.25,
    }


def test_a_json_reader_survives_nan(tmp_path):
    with RunLog(tmp_path, num_steps=1) as log:
        log.train(1, {"loss": float("nan"), "gradient_norm": float("inf")})
    text = (tmp_path / "metrics.jsonl").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert lines(tmp_path)[0]["loss"] is None


def test_resuming_drops_later_lines_and_a_torn_one(tmp_path):
    with RunLog(tmp_path, num_steps=40) as log:
        log.evaluation(0, {"loss": 9.0})
        for step in (10, 20, 30):
            log.train(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "split": "tra')
    with RunLog(tmp_path, num_steps=40, resume_step=20) as log:
        log.train(30, {"loss": 33.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (0, 9.0),
        (10, 10.0),
        (20, 20.0),
        (30, 33.0),
    ]
    first, second = event_files(tmp_path)  # In the order of time, which TensorBoard relies on.
    assert len(events(first)) > len(events(second))
    purge = next(e for e in events(second) if e.HasField("session_log"))
    assert purge.step == 21
    assert sorted(os.listdir(tmp_path)) == ["metrics.jsonl", "tensorboard"]


def test_a_new_run_starts_an_empty_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "split": "validation"}\n{"step": 5}\n')
    with RunLog(tmp_path, num_steps=10, resume_step=0):
        pass
    assert lines(tmp_path) == []


@pytest.mark.parametrize(
    "junk", [b"", b"\n\n", b"\xff\xfe\n", b"[1]\n", b"{}\n", b'{"step": "x"}\n']
)
def test_junk_in_the_log_is_dropped(tmp_path, junk):
    good = b'{"step": 1, "split": "train"}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + junk + good)
    with RunLog(tmp_path, num_steps=10, resume_step=5):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == good + good


def test_other_processes_write_nothing(tmp_path, capsys):
    with RunLog(tmp_path / "run", num_steps=10, resume_step=0, write=False) as log:
        log.train(1, {"loss": 1.0})
        log.evaluation(1, {"loss": 1.0})
        log.samples(1, np.zeros((1, 3), np.uint8), TextFormat())
        log.text("config", "{}")
        log.message("hello")
        log.advance(2)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_plain_lines_now_and_then_without_a_terminal(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: clock[0])
    with RunLog(tmp_path, num_steps=100) as log:
        for step in range(1, 101):
            clock[0] += 1.0
            log.train(step, {"loss": 2.0, "bits_per_sample": 3.0, "samples_per_second": 12345.6})
            log.advance(step)
        log.evaluation(100, {"bits_per_sample": 2.5})
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert out == ""
    assert said[0] == (
        "step 1 of 100, loss 2.0000, 3.0000 bits/sample, 12,346 samples/s, 01:39 left"
    )
    assert [int(line.split()[1]) for line in said[:-1]] == [1, *range(11, 100, 10), 100]
    assert "left" not in said[-2]
    assert said[-1] == "step 100, validation, 2.5000 bits/sample"


def test_progress_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with RunLog(tmp_path, num_steps=100, resume_step=40) as log:
        log.train(50, {"loss": 2.0, "bits_per_sample": 3.0, "samples_per_second": 5000.0})
        log.message("checkpoint 50 saved")
        log.advance(60)
    shown = re.split(r"[\r\n]+", terminal.getvalue().strip())
    assert shown[0].startswith("step 40/100 |")
    assert any("loss 2.0000, 3.0000 bits/sample, 5,000 samples/s" in s for s in shown)
    assert "checkpoint 50 saved" in shown
    assert any(s.startswith("step 60/100") and " left, loss 2.0000" in s for s in shown)


def test_a_full_disk_is_one_line_that_names_the_file():
    full = logging._Appender(epath.Path("/dev/full"))
    with pytest.raises(UserError, match=r"Cannot write /dev/full: No space left on device\."):
        full.append(b"x")
    with pytest.raises(UserError, match="No space left"):
        full.close()


def test_a_full_disk_during_a_run(tmp_path):
    log = RunLog(tmp_path, num_steps=2)
    log._metrics = logging._Appender(epath.Path("/dev/full"))
    with pytest.raises(UserError, match=r"Cannot write /dev/full"), log:
        log.train(1, {"loss": 1.0})


def test_the_error_of_the_run_outlives_that_of_closing(tmp_path):
    log = RunLog(tmp_path, num_steps=2)
    log._metrics = logging._Appender(epath.Path("/dev/full"))
    log._metrics._file.write(b"still in memory")
    with pytest.raises(ZeroDivisionError), log:
        raise ZeroDivisionError


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_workdir_that_is_a_file(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=rf"Cannot write {tmp_path}/{place}.*Not a directory|File e"
    ):
        RunLog(tmp_path / place, num_steps=1)


def test_an_object_store_gets_whole_files(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(logging, "is_remote", lambda path: True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 3}\n')
    with RunLog(tmp_path, num_steps=9, resume_step=2) as log:
        log.train(3, {"loss": 1.0})
        assert [line["step"] for line in lines(tmp_path)] == [1]
        clock[0] += 31
        log.train(4, {"loss": 1.0})
        assert [line["step"] for line in lines(tmp_path)] == [1, 3, 4]
        log.train(5, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 4, 5]
    assert len(events(event_files(tmp_path)[0])) == 5


@pytest.mark.parametrize("quantization", ["mu_law", "linear"])
def test_sounds_are_logged_as_sound_and_spectrograms(tmp_path, quantization):
    format = AudioFormat(11_025, quantization)
    tokens = np.random.default_rng(0).integers(0, 256, (3, 2_000), np.int32)
    with RunLog(tmp_path, num_steps=9) as log:
        log.samples(7, tokens, format)
    values = shown(tmp_path)
    spectrograms = values.pop(("samples/spectrograms", 7))
    assert [tag for tag, _ in values] == ["samples/000", "samples/001", "samples/002"]
    for row, value in zip(tokens, values.values(), strict=True):
        audio = value.audio
        assert audio.content_type == "audio/wav"
        assert (audio.sample_rate, audio.num_channels, audio.length_frames) == (11_025, 1, 2_000)
        with soundfile.SoundFile(io.BytesIO(audio.encoded_audio_string)) as wav:
            assert (wav.format, wav.subtype, wav.channels) == ("WAV", "PCM_16", 1)
            assert wav.samplerate == 11_025
            np.testing.assert_allclose(wav.read(), format.decode(row), atol=2**-15)
    check_picture(spectrograms.image)
    assert lines(tmp_path) == []


def test_images_are_logged_as_one_picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    with RunLog(tmp_path, num_steps=9) as log:
        log.samples(7, pixels.reshape(10, -1), ImageFormat(4))
    ((tag, value),) = shown(tmp_path).items()
    assert tag == ("samples/images", 7)
    picture = check_picture(value.image)
    assert picture.shape == (2 * 16 + 2, 8 * 16 + 7 * 2, 3)
    np.testing.assert_array_equal(picture[2:16:4, 2:16:4], pixels[0])
    np.testing.assert_array_equal(picture[20::4, 20:34:4], pixels[9])


def check_picture(image):
    """The pixels of an image, which is what it says that it is."""
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert pixels.shape == (image.height, image.width, image.colorspace)
    assert pixels.std() > 10
    return pixels


def test_text_is_logged_as_text(tmp_path):
    tokens = np.stack(
        [np.frombuffer(text, np.uint8) for text in (b"''A'' \n& b", b"\xff\0\x1b~~~~\ncd")]
    )
    with RunLog(tmp_path, num_steps=9) as log:
        log.samples(7, tokens, TextFormat())
    values = shown(tmp_path)
    assert text_of(values.pop(("samples/000", 7))) == "''A'' \n& b"
    assert text_of(values.pop(("samples/001", 7))) == "�␀␛~~~~\ncd"
    assert not values


@example("~~~")
@example("a\n~~~~\n")
@given(st.text(st.sampled_from("~\n` <&") | st.characters(exclude_categories=["Cc", "Cs"])))
def test_no_text_ends_its_own_fence(text):
    (event,) = parsed(tensorboard.text_record(3, "tag", text))
    (value,) = event.summary.value
    assert (event.step, value.tag, text_of(value)) == (3, "tag", text)


def test_texts_about_the_run_stand_where_it_starts(tmp_path):
    for step in (0, 5):
        with RunLog(tmp_path, num_steps=9, resume_step=step) as log:
            log.text("config", json.dumps({"step": step}))
    values = shown(tmp_path)
    assert {key: text_of(value) for key, value in values.items()} == {
        ("config", 0): '{"step": 0}',
        ("config", 5): '{"step": 5}',
    }


def test_a_long_log_goes_on_in_another_file(tmp_path, monkeypatch):
    monkeypatch.setattr(logging, "_MOST_EVENT_BYTES", 300)
    with RunLog(tmp_path, num_steps=99) as log:
        for step in range(1, 21):
            log.train(step, {"loss": float(step)})
        log.text("long", "x" * 1000)
    files = event_files(tmp_path)
    assert all(events(path)[0].file_version == "brain.Event:2" for path in files)
    assert all(path.stat().st_size <= 300 for path in files[:-1])
    assert len(files) > 3
    steps = [e.step for path in files for e in events(path) if e.HasField("summary")]
    assert steps == [*range(1, 21), 0]  # In the order of the files.


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("samples", (1, np.zeros((1, 3), np.uint8), TextFormat())), ("text", ("config", "{}"))],
)
def test_a_full_disk_while_logging_more_than_numbers(tmp_path, method, arguments):
    log = RunLog(tmp_path, num_steps=2)
    log._events = logging._Appender(epath.Path("/dev/full"))
    with pytest.raises(UserError, match=r"Cannot write /dev/full: No space left on device\."), log:
        getattr(log, method)(*arguments)


def test_no_room_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard.tempfile, "tempdir", str(tmp_path / "missing"))
    with (
        pytest.raises(UserError, match=rf"Cannot write {tmp_path}/missing/.*: No such file"),
        RunLog(tmp_path, num_steps=2) as log,
    ):
        log.samples(1, np.zeros((1, 3), np.uint8), AudioFormat(16_000))
