"""A folder of sounds to new sounds, by the commands; and what they say to each mistake."""

import contextlib
import io
import json
import os
import pathlib
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import soundfile

from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
RATE = 22_050
STEPS = 6
SMALL = (
    "--config.model.widths=8,16",
    "--config.model.depths=(0,1),1",
    "--config.model.pool_factors=(4,)",
    "--config.model.num_heads=2",
    f"--config.data.sample_rate={RATE}",
    "--config.data.window=512",
    "--config.batch_size=8",
    f"--config.num_steps={STEPS}",
    "--config.log_every=2",
    "--config.eval_every=3",
    "--config.checkpoint_every=3",
    "--config.keep_latest=2",
)


SERVER = "import sys; from tests.experiments.test_train_and_sample import serve; serve(sys.argv[1])"


def run(module, *command_lines, **env):
    """Runs a command for each of the command lines, all in one process.

    Returns:
        For each its exit status, stdout and stderr.
    """
    done = processes.run(
        [sys.executable, "-c", SERVER, module],
        input=json.dumps(command_lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def serve(module):
    """In the subprocess: each command line runs as if it were the process's own."""
    from absl import flags

    answers = []
    for arguments in json.load(sys.stdin):
        # The module is made anew for each, and so must its flags be.
        flags.FLAGS.unparse_flags()
        for name in set(flags.FLAGS) & OWN_FLAGS:
            delattr(flags.FLAGS, name)
        sys.argv = [module, *arguments]
        out, err, status = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                status = stop.code or 0
        answers.append((status, out.getvalue(), err.getvalue()))
    json.dump(answers, sys.stdout)


OWN_FLAGS = {
    *("config", "workdir", "checkpoint", "output"),
    *("num_samples", "seconds", "temperature", "top_p", "seed", "guard", "num_steps"),
    *("prompt", "prompt_seconds", "continuations", "num_candidates", "band", "stream"),
    *("split", "num_windows", "num_positions", "data_path", "data_dir", "manual_dir"),
    *("coordinator", "num_processes", "process_id"),
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Tones as people keep them: of many formats, rates and channels, among files of no use."""
    root = tmp_path_factory.mktemp("sounds")
    rng, time = np.random.default_rng(0), np.arange(RATE // 2) / RATE

    def tone():
        return 0.5 * np.sin(2 * np.pi * rng.uniform(100, 1_000) * time)

    for number in range(10):
        soundfile.write(root / f"{number}.wav", tone(), RATE)
    (root / "odd").mkdir()
    soundfile.write(root / "odd" / "stereo.wav", np.stack([tone(), 0.1 * tone()], axis=1), RATE)
    soundfile.write(root / "odd" / "8khz.wav", tone(), 8_000)
    for extension in ("flac", "ogg", "mp3"):
        soundfile.write(root / "odd" / f"other.{extension}", tone(), RATE)
    (root / "odd" / "empty.wav").touch()
    (root / "odd" / "text.wav").write_text("This is no sound.")
    soundfile.write(root / "odd" / "short.wav", tone()[: RATE // 100], RATE)
    (root / "odd" / "notes.txt").write_text("Neither is this, and it does not say it were.")
    return root


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def trained(sounds, data_dir, tmp_path_factory):
    """The work directory of a run, and what the command said."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    done = processes.run(
        [
            *(sys.executable, "-m", "experiments.train", "--config=folder", *SMALL),
            *(f"--config.data.path={sounds}", f"--config.data.data_dir={data_dir}"),
            f"--workdir={workdir}",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_training_says_what_it_leaves_out_and_what_comes_next(trained):
    workdir, done = trained
    left_out = dict(re.findall(r"^  (odd/\S+): (.*)$", done.stderr, re.MULTILINE))
    assert left_out.keys() == {"odd/empty.wav", "odd/text.wav", "odd/short.wav"}
    assert left_out["odd/empty.wav"] == "the file is empty"
    assert left_out["odd/text.wav"].startswith("not a WAV, FLAC, OGG or MP3 file")
    assert left_out["odd/short.wav"].startswith("too short (0.010 s")
    assert "Left out 3 files" in done.stderr
    assert f"python -m experiments.sample --checkpoint={workdir}" in done.stderr
    assert done.stdout == ""
    for noise in ("Warning", "WARNING", "Traceback"):
        assert noise not in done.stderr


def test_training_leaves_metrics_events_and_checkpoints(trained):
    workdir, _ = trained
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if "loss" in line]
    assert [line["step"] for line in train] == [2, 4, 6]
    validation = [line for line in lines if line not in train]
    assert [line["step"] for line in validation] == [3, 6]
    assert all(
        np.isfinite(list(v for v in line.values() if isinstance(v, float))).all() for line in lines
    )
    events = [path for path in workdir.rglob("*tfevents*") if path.stat().st_size > 100]
    assert len(events) == 1
    steps = {path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    assert steps == {"3", "6"}


@pytest.fixture(scope="module")
def sampled(trained, tmp_path_factory):
    """The directories of some sample runs, and what the command said in each."""
    workdir, _ = trained
    root = tmp_path_factory.mktemp("samples")
    runs = {
        "first": [],
        "again": [],
        "seed": ["--seed=1"],
        "step": ["--num_samples=2", f"--checkpoint={workdir / 'checkpoints' / '3'}"],
        "cold": ["--temperature=0.5", "--top_p=0.9"],
    }
    common = [f"--checkpoint={workdir}", "--num_samples=3", "--seconds=0.05"]
    answers = run(
        "experiments.sample",
        *([*common, f"--output={root / 'deep' / name}", *flags] for name, flags in runs.items()),
    )
    assert [(status, err) for status, _, err in answers] == [(0, "")] * len(runs)
    return {
        name: (root / "deep" / name, out) for name, (_, out, _) in zip(runs, answers, strict=True)
    }


def bytes_of(directory):
    return [path.read_bytes() for path in sorted(directory.glob("*.wav"))]


def test_samples_are_sounds_of_the_right_kind(sampled):
    directory, out = sampled["first"]
    names = [path.name for path in sorted(directory.iterdir())]
    assert names == ["index.html", *(f"sample_00{number}.wav" for number in range(3))]
    assert f"Look and listen: {directory / 'index.html'}" in out
    for path in directory.glob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
        assert info.frames == 1_103  # 0.05 s, rounded up.
        assert re.search(rf"{path}  \d+\.\d{{3}} bits per sample", out)
    assert len(list(sampled["step"][0].glob("*.wav"))) == 2
    assert "checkpoints/3" in sampled["step"][1]


def test_samples_are_those_of_the_seed(sampled):
    first = bytes_of(sampled["first"][0])
    assert len(set(first)) == 3
    assert bytes_of(sampled["again"][0]) == first
    for other in ("seed", "cold"):
        assert not set(bytes_of(sampled[other][0])) & set(first)


def check_errors(module, cases, **env):
    """Each command line must fail with one line that has all of the words."""
    answers = run(module, *(arguments for arguments, _ in cases), **env)
    for (arguments, words), (status, out, err) in zip(cases, answers, strict=True):
        assert isinstance(status, int), arguments
        assert status != 0, arguments
        assert out == ""
        assert re.fullmatch(r"error: [^\n]+\n", err), (arguments, err)
        for word in words:
            assert word in err, (arguments, err)
        print(err, end="")  # For those who want to read them: pytest -s.


def test_mistakes_in_training(sounds, data_dir, trained, tmp_path):
    workdir = f"--workdir={tmp_path / 'never'}"
    data = [f"--config.data.path={sounds}", f"--config.data.data_dir={data_dir}"]
    folder = ["--config=folder", *SMALL, workdir]
    (tmp_path / "empty").mkdir()
    (tmp_path / "useless").mkdir()
    (tmp_path / "useless" / "text.wav").write_text("This is no sound.")
    (tmp_path / "file").write_text("in the way")
    here = f"--config.data.data_dir={tmp_path / 'data'}"

    def at(path):
        return [*folder, here, f"--config.data.path={path}"]

    check_errors(
        "experiments.train",
        [
            (["--config=foldr", workdir], ["'foldr'", "did you mean folder?"]),
            (["--config=x/y.py", workdir], ["x/y.py"]),
            (["--config=demo", "--config.batchsize=3", workdir], ["--config.batch_size"]),
            (["--config=demo", "--config.lr=3", workdir], ["--config.lr"]),
            (
                ["--config=demo", "--config.optimizer.learn_rate=1", workdir],
                ["--config.optimizer.learning_rate"],
            ),
            (["--config=demo"], ["--workdir is missing"]),
            ([workdir], ["--config is missing", "demo"]),
            (["--config=demo", "--worksdir=x"], ["--worksdir", "--workdir"]),
            (folder, ["data.path"]),
            (at(tmp_path / "nowhere"), ["nowhere does not exist"]),
            (at(tmp_path / "file"), ["file is not a directory"]),
            (at(tmp_path / "empty"), ["empty holds no sound files"]),
            (at(tmp_path / "useless"), ["useless", "text.wav: not a WAV"]),
            (
                [*folder[:-1], *data, f"--workdir={tmp_path / 'file'}"],
                [f"Cannot write {tmp_path / 'file'}"],
            ),
            (
                [*folder[:-1], *data, f"--workdir={trained[0]}", "--config.batch_size=4"],
                ["another config", "batch_size was 8 and is now 4"],
            ),
        ],
    )
    assert not (tmp_path / "never").exists()
    two = "--xla_force_host_platform_device_count=2"
    check_errors(
        "experiments.train",
        [([*folder, *data, "--config.batch_size=3"], ["batch_size=3", "2"])],
        XLA_FLAGS=two,
    )


def test_mistakes_in_sampling(trained, tmp_path):
    workdir, _ = trained
    newer = tmp_path / "newer"
    shutil.copytree(workdir / "checkpoints" / "6", newer)
    meta = newer / "meta" / "metadata"
    fields = json.loads(meta.read_text())
    meta.write_text(json.dumps(fields | {"format_version": fields["format_version"] + 1}))
    damaged = shutil.copytree(workdir / "checkpoints" / "6", tmp_path / "damaged")
    (damaged / "meta" / "metadata").write_text("{")
    headless = shutil.copytree(workdir / "checkpoints" / "6", tmp_path / "headless")
    shutil.rmtree(headless / "params")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(RATE), RATE)
    output = tmp_path / "never"
    good = [f"--checkpoint={workdir}", "--seconds=0.01", f"--output={output}"]

    def of(path):
        return [f"--checkpoint={path}", *good[1:]]

    check_errors(
        "experiments.sample",
        [
            ([], ["--checkpoint is missing"]),
            (of(tmp_path / "nowhere"), ["nowhere"]),
            (of(tmp_path / "empty"), ["holds no pf_jax checkpoint"]),
            (of(tmp_path / "file"), ["file"]),
            (of(newer), ["newer", "format version 3", "Upgrade"]),
            (of(damaged), ["damaged"]),
            (of(headless), ["headless", "damaged"]),
            ([*good, "--seconds=0"], ["--seconds must be above 0, got 0"]),
            ([*good, "--seconds=-1"], ["--seconds", "-1"]),
            ([*good, "--seconds=nan"], ["--seconds", "nan"]),
            ([*good, "--seconds=inf"], ["--seconds", "inf"]),
            ([*good, "--seconds=1e9"], ["--seconds"]),
            ([*good, "--seconds=four"], ["--seconds must be a number", "four"]),
            ([*good, "--num_samples=-2"], ["num_samples", "-2"]),
            ([*good, "--num_samples=0"], ["num_samples", "0"]),
            ([*good, "--temperature=-1"], ["temperature", "-1"]),
            ([*good, "--temperature=nan"], ["temperature", "nan"]),
            ([*good, "--top_p=0"], ["top_p", "0"]),
            ([*good, "--top_p=1.5"], ["top_p", "1.5"]),
            ([*good, "--seed=-1"], ["--seed", "-1"]),
            ([*good, f"--output={tmp_path / 'file'}"], ["Cannot write", "file"]),
            ([*good, f"--output={tmp_path / 'file' / 'below'}"], ["Cannot write", "file"]),
            ([*good, "--second=1"], ["--second", "--seconds"]),
            ([*good, "--prompt=/no/where.wav"], ["/no/where.wav", "No such file"]),
            ([*good, f"--prompt={tmp_path / 'file'}"], ["file", "not a WAV"]),
            ([*good, f"--prompt={silence}"], ["silence.wav", "silent"]),
            ([*good, f"--prompt={silence}", "--prompt_seconds=0"], ["0"]),
            ([*good, "--continuations=0"], ["--continuations", "0"]),
            ([*good, "--num_candidates=0"], ["--num_candidates", "0"]),
            ([*good, "--num_candidates=5"], ["leaves 3", "4 are asked for", "more candidates"]),
            ([*good, "--num_candidates=50", "--band=0.9,0.4"], ["0 <= low < high <= 1", "0.9"]),
            ([*good, "--num_candidates=50", "--band=best"], ["--band", "best"]),
            ([*good, "--num_candidates=50", "--stream"], ["--stream", "--num_candidates"]),
            ([*good, "--continuations=2"], ["--continuations", "--prompt", "missing"]),
            ([*good, "--prompt_seconds=2"], ["--prompt_seconds", "--prompt", "missing"]),
            ([*good, "--band=0.1,0.9"], ["--band", "--num_candidates", "missing"]),
            ([*good, "--prompt=a.wav", "--num_samples=2"], ["--continuations", "--num_samples"]),
            ([*good, "--guard=-1"], ["--guard", "-1"]),
            ([*good, "--num_samples=100000000", "--seconds=90000"], ["free", "--seconds"]),
        ],
    )
    assert not output.exists()  # A mistake leaves nothing behind.
