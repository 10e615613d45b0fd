import collections
import contextlib
import shutil
import signal
import sys
import tempfile

import numpy as np
import pytest
import soundfile
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from pf_jax.audio import AudioFormat
from pf_jax.errors import UserError
from pf_jax.formats import ImageFormat, TextFormat
from pf_jax.sampling import files
from pf_jax.sampling.files import SampleFile, check_space
from tests import processes

FORMATS = {
    "mu_law": AudioFormat(16_000),
    "linear": AudioFormat(44_100, "linear"),
    "text": TextFormat(),
    "pictures": ImageFormat(3),
}
SOUND = FORMATS["mu_law"]
Usage = collections.namedtuple("Usage", ["total", "used", "free"])


def random_tokens(length, seed=0):
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


@given(
    name=st.sampled_from(sorted(FORMATS)),
    chunks=st.lists(st.lists(st.integers(0, 255), max_size=20), max_size=8),
    dtype=st.sampled_from([np.uint8, np.int32]),
)
def test_any_chunks_make_the_file_that_the_format_writes(name, chunks, dtype):
    chunks = [np.array(chunk, dtype) for chunk in chunks]
    with tempfile.TemporaryDirectory() as directory:
        grown, whole = epath.Path(directory) / "new" / "grown", epath.Path(directory) / "whole"
        with SampleFile(grown, FORMATS[name]) as file:
            for chunk in chunks:
                file.append(chunk)
        FORMATS[name].write(whole, np.concatenate([np.zeros(0, dtype), *chunks]))
        assert grown.read_bytes() == whole.read_bytes()


def test_a_sound_is_whole_after_each_piece(tmp_path):
    """As another program reads it, at its rate, while it grows."""
    path, tokens = tmp_path / "x.wav", random_tokens(5_000)
    path.write_bytes(b"an older and longer file" * 10_000)
    file = SampleFile(str(path), SOUND)
    assert soundfile.info(path).frames == 0
    for start in range(0, 5_000, 1_250):
        file.append(tokens[start : start + 1_250])
        pcm, rate = soundfile.read(path, dtype="int16")
        assert rate == 16_000
        np.testing.assert_array_equal(
            SOUND.encode_stored(pcm), tokens[: start + 1_250].astype(np.uint8)
        )
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.append(tokens)


def test_an_error_keeps_what_was_drawn(tmp_path):
    for name, any_format in FORMATS.items():
        with contextlib.suppress(KeyboardInterrupt), SampleFile(tmp_path / name, any_format) as f:
            f.append(np.arange(9))
            raise KeyboardInterrupt
        any_format.write(tmp_path / "expected", np.arange(9))
        assert (tmp_path / name).read_bytes() == (tmp_path / "expected").read_bytes()


def test_what_cannot_be_appended(tmp_path, monkeypatch):
    path = tmp_path / "x.wav"
    with SampleFile(path, SOUND) as file:
        with pytest.raises(ValueError, match=r"\(time,\), got \(2, 3\)"):
            file.append(np.zeros((2, 3), np.int32))
        with pytest.raises(UserError, match="0 to 255"):
            file.append(np.array([3, 256]))
        monkeypatch.setattr(files, "MAX_SOUND_TOKENS", 10)
        file.append(np.arange(10))
        with pytest.raises(UserError, match=r"Cannot write .*x\.wav: a WAV file holds at most 10"):
            file.append(np.arange(1))
    assert soundfile.info(path).frames == 10


def run(script, *arguments):
    return processes.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120
    )


def test_a_killed_process_leaves_all_that_was_appended(tmp_path):
    done = run(
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from pf_jax.audio import AudioFormat\n"
        "from pf_jax.sampling.files import SampleFile\n"
        "file = SampleFile(sys.argv[1], AudioFormat(16_000))\n"
        "file.append(np.arange(256))\n"
        "file.append(np.arange(100))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        str(tmp_path / "x.wav"),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pcm, _ = soundfile.read(tmp_path / "x.wav", dtype="int16")
    np.testing.assert_array_equal(SOUND.encode_stored(pcm), [*range(256), *range(100)])


FULL_DISK = """
import resource, signal, sys
import numpy as np
from pf_jax.audio import AudioFormat
from pf_jax.errors import UserError
from pf_jax.formats import TextFormat
from pf_jax.sampling.files import SampleFile

limit = int(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
kind = {"sound": AudioFormat(16_000), "text": TextFormat()}[sys.argv[2]]
try:
    with SampleFile(sys.argv[1], kind) as file:
        for _ in range(10):
            file.append(np.arange(200))
except UserError as error:
    sys.exit(f"one clear line: {error}")
"""


@pytest.mark.parametrize(("kind", "limit"), [("sound", 1_501), ("sound", 20), ("text", 1_000)])
def test_a_full_disk(tmp_path, kind, limit):
    """Of a sound, all that found room is there to be heard: here 728 samples and half of one."""
    path = tmp_path / "x"
    done = run(FULL_DISK, str(path), kind, str(limit))
    lines = done.stderr.strip().splitlines()
    assert lines == [f"one clear line: Cannot write {path}: File too large."]
    if limit == 1_501:
        pcm, _ = soundfile.read(path, dtype="int16")
        np.testing.assert_array_equal(SOUND.encode_stored(pcm), np.tile(np.arange(200), 4)[:728])
        assert path.stat().st_size == 44 + 2 * 728


def test_a_text_that_could_not_be_written_is_not_lost(tmp_path):
    path = tmp_path / "x.txt"
    path.mkdir()
    file = SampleFile(path, FORMATS["text"])
    file.append(np.arange(97, 100))
    with pytest.raises(UserError, match=r"Cannot write .*x\.txt: Is a directory\."):
        file.close()
    path.rmdir()
    file.close()
    assert path.read_text() == "abc"


@pytest.mark.parametrize("name", FORMATS)
def test_a_place_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^Cannot write .*file/x: [^\n]*\.$"):
        SampleFile(tmp_path / "file" / "x", FORMATS[name])


def test_a_sound_where_a_directory_is(tmp_path):
    with pytest.raises(UserError, match=r"Cannot write .*: Is a directory\."):
        SampleFile(tmp_path, SOUND)


def test_a_sound_in_an_object_store_is_written_at_the_end(tmp_path, monkeypatch):
    """The store is a directory here; only what is asked of the path is another."""
    monkeypatch.setattr(files, "is_remote", lambda path: True)
    file = SampleFile(tmp_path / "bucket" / "x.wav", SOUND)
    file.append(np.arange(100))
    file.append(np.arange(100, 256))
    assert not (tmp_path / "bucket" / "x.wav").exists()
    file.close()
    SOUND.write(tmp_path / "expected.wav", np.arange(256))
    assert (tmp_path / "bucket" / "x.wav").read_bytes() == (tmp_path / "expected.wav").read_bytes()


@pytest.mark.parametrize(
    ("name", "num_files", "num_tokens", "need"),
    [
        ("mu_law", 10, 1_000_000, 10 * (44 + 2_000_000)),
        ("text", 3, 1_000_000, 3_000_000),
        ("pictures", 1_000, 27, 27_000),
    ],
)
def test_space_is_enough_to_the_byte(tmp_path, monkeypatch, name, num_files, num_tokens, need):
    asked = []

    def disk_usage(path):
        asked.append(str(path))
        return Usage(10**12, 10**12 - free, free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    arguments = (tmp_path / "new" / "er", num_files, num_tokens, FORMATS[name])
    free = need
    check_space(*arguments)
    free = need - 1
    with pytest.raises(UserError, match=r"--seconds.*--num_samples.*--output") as raised:
        check_space(*arguments)
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "new" / "er") in str(raised.value)
    assert asked == [str(tmp_path)] * 2, "the nearest that exists"


def test_space_in_the_units_of_people(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 31_400_000))
    with pytest.raises(UserError, match=r"4 x 10\.0 h need 4\.7 GB, but .* has 31\.4 MB free"):
        check_space(tmp_path, 4, 36_000 * 16_000, SOUND)


def test_space_of_what_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    check_space(tmp_path, 4, 10**6, SOUND)  # Some file systems do not know.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6, 0))
    check_space("gs://bucket/out", 4, 10**6, SOUND)
    with pytest.raises(UserError, match="need"):
        check_space("relative", 1, 1, SOUND)


def test_a_sound_that_no_wav_file_holds(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**60, 0, 2**60))
    check_space("out", 1, 2**31 - 65, SOUND)
    check_space("out", 1, 2**31, FORMATS["text"])
    for place in ("out", "gs://bucket/out"):
        with pytest.raises(UserError, match=r"2,147,483,584 samples .*too long.*--seconds"):
            check_space(place, 1, 2**31 - 64, SOUND)
