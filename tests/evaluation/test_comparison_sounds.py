import io

import numpy as np
import pytest
import soundfile

from pf_jax.errors import UserError
from pf_jax.evaluation import comparison_sounds
from pf_jax.evaluation.comparison import read_run
from pf_jax.evaluation.comparison_sounds import Clip, collect_sounds, find_clips, make_players
from tests.evaluation import runs

RATE = 8_000


def tone(path, seconds=0.5, level=0.5, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, level * np.sin(np.arange(round(seconds * rate))), rate)


def a_run(tmp_path, name="run", config=None):
    runs.write_log(tmp_path / name, (1, "train", {"loss": 1.0}))
    if config is not None:
        runs.write_checkpoint(tmp_path / name, 1, {}, config)
    return read_run(tmp_path / name, name)


def test_sounds_are_found_in_turn(tmp_path):
    run = a_run(tmp_path)
    for place in ("evaluation/validation/generated", "evaluation/test/generated", "samples"):
        for number in range(2):
            tone(run.path / place / f"{number}.wav")
    tone(run.path / "samples" / "deeper" / "0.wav")
    runs.write_evaluation(run.path, {})
    runs.write_evaluation(run.path, {}, "validation")
    clips, passed_over = find_clips(read_run(run.path, ""), num_samples=5, most_seconds=10)
    assert [clip.source for clip in clips] == [
        "evaluation/test/generated/0.wav",
        "evaluation/validation/generated/0.wav",
        "samples/0.wav",
        "evaluation/test/generated/1.wav",
        "evaluation/validation/generated/1.wav",
    ]
    assert passed_over == []


def test_only_the_beginning_is_kept_and_what_is_no_sound_is_passed_over(tmp_path):
    run = a_run(tmp_path)
    tone(run.path / "samples" / "a.wav", seconds=0.75, rate=16_000)
    (run.path / "samples" / "b.wav").touch()
    tone(run.path / "samples" / "c.wav", seconds=0.25)
    clips, passed_over = find_clips(run, num_samples=2, most_seconds=0.5)
    assert [(clip.sample_rate, len(clip.waveform)) for clip in clips] == [
        (16_000, 8_000),
        (8_000, 2_000),
    ]
    assert [(clip.seconds, clip.whole_seconds) for clip in clips] == [(0.5, 0.75), (0.25, 0.25)]
    written, _ = soundfile.read(run.path / "samples" / "a.wav", dtype="float32")
    np.testing.assert_array_equal(clips[0].waveform, written[:8_000])
    assert passed_over == ["Passed over samples/b.wav: the file is empty."]


def test_players_hold_the_clips(tmp_path):
    rng = np.random.default_rng(0)
    clips = [Clip("x", rng.uniform(-1, 1, 1_000).astype(np.float32), RATE, 9.0) for _ in range(2)]
    (of_run, of_none), left_out = make_players([clips, []], most_bytes=1e9)
    assert (of_none, left_out) == ([], [0, 0])
    for clip, player in zip(clips, of_run, strict=True):
        waveform, rate = soundfile.read(io.BytesIO(player.wav))
        assert rate == RATE
        np.testing.assert_allclose(waveform, clip.waveform, atol=1 / 32_768)
        assert player.png.startswith(b"\x89PNG")


def test_room_is_shared(tmp_path):
    def clip(seconds):
        return Clip("x", np.zeros(round(seconds * RATE), np.float32), RATE, seconds)

    clips = [[clip(0.1)] * 3, [clip(0.1)], [clip(10)]]
    sizes = [[p.size for p in players] for players in make_players(clips, most_bytes=1e9)[0]]
    room = sizes[0][0] + sizes[0][1] + sizes[1][0]
    for most_bytes, expected in ((room, [2, 1, 0]), (room - 1, [1, 1, 0]), (0, [0, 0, 0])):
        players, left_out = make_players(clips, most_bytes=most_bytes)
        assert [len(p) for p in players] == expected
        assert [len(p) + n for p, n in zip(players, left_out, strict=True)] == [3, 1, 1]
        assert sum(p.size for of_run in players for p in of_run) <= most_bytes


def test_why_there_are_no_sounds(tmp_path, monkeypatch):
    def draw(run, **arguments):
        assert arguments == {"num_samples": 2, "seconds": 0.5}
        return [Clip("drawn", np.zeros(10, np.float32), RATE, 0.5)]

    monkeypatch.setattr(comparison_sounds, "draw_clips", draw)
    text = runs.config(modality="text")
    found = [a_run(tmp_path, "log"), a_run(tmp_path, "text", text)]
    found.append(a_run(tmp_path, "audio", runs.config()))
    told = []
    arguments = {"seconds": 0.5, "most_seconds": 1.0, "tell": told.append}
    sounds = collect_sounds(found, num_samples=2, most_bytes=1e9, **arguments)
    assert [s.remarks for s in sounds] == [
        ["There are no sounds, and no checkpoint to draw some from."],
        ["It is a model of text, not of sound."],
        [],
    ]
    assert [[p.clip.source for p in s.players] for s in sounds] == [[], [], ["drawn"]]
    assert len(told) == 1
    assert "audio/checkpoints/1" in told[0]
    sounds = collect_sounds(found[2:], num_samples=2, most_bytes=1e3, **arguments)
    assert sounds[0].remarks == [
        "Left out 1 more: all sounds and their pictures may take 0.001 MB."
    ]
    (none,) = collect_sounds(found[2:], num_samples=0, most_bytes=1e9, **arguments)
    assert not none.players
    assert not none.remarks
    assert len(told) == 2


def test_a_damaged_checkpoint_is_named(tmp_path):
    run = a_run(tmp_path, "audio", runs.config())
    with pytest.raises(UserError, match="audio/checkpoints/1 is damaged"):  # It has no arrays.
        comparison_sounds.draw_clips(run, num_samples=1, seconds=0.01)
