import io
import json
import os
import re
import struct
import sys

import numpy as np
import pytest
from etils import epath
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from pf_jax.errors import UserError
from pf_jax.training import logging
from pf_jax.training.logging import RunLog


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(path):
    """The events of a file, each checked as TensorBoard checks it."""
    data, found = path.read_bytes(), []
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
    monkeypatch.setattr(logging, "_is_remote", lambda path: True)
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
