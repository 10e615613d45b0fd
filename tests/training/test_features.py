"""What users of a trainer expect: warm start, early stop, samples, profiles, parts of a batch."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from pf_jax.data import eval_batches, open_dataset
from pf_jax.errors import UserError
from pf_jax.sampling import generate
from pf_jax.training import checkpoint, hosts, loop, summary, train
from pf_jax.training.state import abstract_model, merge_model, split_model
from pf_jax.training.step import DATA_AXIS, eval_step


def test_a_warm_start_begins_with_the_weights(finished, tmp_path, capsys):
    config = dataclasses.replace(
        finished.config, init_from=str(finished.workdir), num_steps=1, seed=7, keep_best=0
    )
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-12)
    )
    state = train(config, tmp_path / "run")
    meta = checkpoint.find(finished.workdir)
    _, weights = checkpoint.load_weights(meta)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(weights), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    assert state.step == 1
    assert f"Starts from the weights of {finished.workdir}." in capsys.readouterr().err

    # A run that goes on takes its own, and the other checkpoint may be gone.
    more = dataclasses.replace(config, init_from=str(tmp_path / "gone"), num_steps=2)
    assert train(more, tmp_path / "run").step == 2


def test_a_warm_start_from_another_model(finished, tmp_path):
    model = dataclasses.replace(finished.config.model, widths=(8, 32))
    config = dataclasses.replace(finished.config, model=model, init_from=str(finished.workdir))
    with pytest.raises(UserError, match=r"another shape: widths is \(8, 16\) there and \(8, 32\)"):
        train(config, tmp_path)
    config = dataclasses.replace(finished.config, init_from=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="No such checkpoint directory"):
        train(config, tmp_path)


def test_training_ends_when_validation_no_longer_falls(finished, tmp_path, monkeypatch, capsys):
    bits = iter([3.0, 2.0, 2.5, 2.1, 1.0, 0.9])
    monkeypatch.setattr(loop, "_evaluate", lambda *args: next(bits))
    config = dataclasses.replace(finished.config, eval_every=2, patience=2, num_steps=12)
    state = train(config, tmp_path)
    assert state.step == 8
    assert "No better for 2 evaluations: training ends." in capsys.readouterr().err
    assert checkpoint.find(tmp_path).validation_bits_per_sample == 2.0
    assert train(config, tmp_path).step == 8, "the same command does not begin again"
    assert train(dataclasses.replace(config, patience=0), tmp_path).step == 12


def test_an_evaluation_that_was_interrupted_is_made_up_for(
    finished, tmp_path, monkeypatch, metrics_of
):
    """The request to stop comes in the midst of the evaluation of step 6."""
    evaluate = loop._evaluate

    def interrupted(eval_fn, params, batches, stop_request):
        stop_request._is_asked = True
        return evaluate(eval_fn, params, batches, stop_request)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_evaluate", interrupted)
        assert train(finished.config, tmp_path).step == 6
    assert checkpoint.find(tmp_path).evaluations == {}
    state = train(finished.config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, state, finished.state)
    assert metrics_of(tmp_path) == metrics_of(finished.workdir)
    assert checkpoint.find(tmp_path).evaluations == checkpoint.find(finished.workdir).evaluations


def test_samples_on_the_way(finished, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        loop.RunLog, "samples", lambda log, step, tokens, fmt: seen.append((step, tokens, fmt))
    )
    config = dataclasses.replace(
        finished.config, sample_every=6, num_samples=2, sample_length=50, keep_latest=9
    )
    train(config, tmp_path)
    assert [step for step, _, _ in seen] == [6, 12]
    for step, tokens, format_ in seen:
        assert tokens.shape == (2, 50)
        assert format_ == config.data.format
        model, _ = checkpoint.load(tmp_path / "checkpoints" / str(step))
        key = jax.random.fold_in(jax.random.key(0), step)
        expected, _ = generate(model, key, num_samples=2, num_steps=50)
        np.testing.assert_array_equal(tokens, expected)


def test_utilization_is_logged_where_the_peak_is_known(finished, tmp_path, monkeypatch, metrics_of):
    monkeypatch.setattr(summary, "peak_flops", lambda kind: 1e12 if kind == "cpu" else None)
    train(finished.config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    third = json.loads(lines[2])
    expected = third["samples_per_second"] * summary.flops_per_sample(finished.config.model) / 1e12
    assert third["model_flops_utilization"] == pytest.approx(expected)
    assert not any("model_flops_utilization" in line for line in metrics_of(finished.workdir))


def test_a_profile_of_some_steps(finished, tmp_path):
    train(dataclasses.replace(finished.config, profile=(2, 3)), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_gradient_accumulation_in_a_run(finished, tmp_path, metrics_of):
    """In four parts, and resumed in the middle of an epoch; without dropout, as in one part."""
    model = dataclasses.replace(finished.config.model, dropout=0.0)
    whole = dataclasses.replace(finished.config, model=model, num_steps=6)
    parts = dataclasses.replace(whole, accumulation_steps=4)
    train(whole, tmp_path / "whole")
    state = train(parts, tmp_path / "parts")
    losses = [
        [line["loss"] for line in metrics_of(tmp_path / name) if "loss" in line]
        for name in ("whole", "parts")
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=2e-3)
    np.testing.assert_allclose(losses[0][:3], losses[1][:3], rtol=1e-4)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    again = train(parts, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_parts_that_do_not_divide_a_share(finished, tmp_path):
    config = dataclasses.replace(finished.config, accumulation_steps=3)
    with pytest.raises(UserError, match="accumulation_steps=3 does not divide the 8 windows"):
        train(config, tmp_path)


@pytest.mark.parametrize("profile", [(1,), (0, 3), (5, 4), (1, 2, 3)])
def test_profiles_that_cannot_be(finished, profile):
    with pytest.raises(UserError, match="profile must be a first and a last step"):
        dataclasses.replace(finished.config, profile=profile)


def test_the_reported_bits_do_not_depend_on_the_batch_size(finished):
    graphdef, _ = split_model(abstract_model(finished.config.model))
    dataset = open_dataset(finished.config.data)

    # Window by window and exactly, in float64; padding comes last, and changes nothing before it.
    model = merge_model(graphdef, finished.state.ema_params)
    score = nnx.jit(lambda model, tokens: model(tokens))
    nats, count = 0.0, 0
    for batch in eval_batches(dataset, "train", finished.config.data, batch_size=1):
        length = int(batch["length"][0, 0])
        tokens = batch["tokens"][0].astype(np.int32)
        logits = np.asarray(score(model, tokens), np.float64)[0, :length]
        chosen = logits[np.arange(length), tokens[0, :length]]
        nats += (np.log(np.exp(logits).sum(axis=-1)) - chosen).sum()
        count += length
    assert count == dataset.split("train").num_samples

    eval_fn = jax.pmap(lambda p, b, s: eval_step(p, b, s, graphdef=graphdef), axis_name=DATA_AXIS)
    params = hosts.replicate(finished.state.ema_params)
    for batch_size in (1, 7, 64):
        batches = eval_batches(dataset, "train", finished.config.data, batch_size=batch_size)
        bits = loop._evaluate(eval_fn, params, batches, hosts.StopRequest())
        assert bits == pytest.approx(nats / count / np.log(2), rel=2e-6), batch_size


def test_the_introduction_and_what_the_log_keeps(finished, tmp_path, capsys):
    train(finished.config, tmp_path)
    said = capsys.readouterr().err
    assert "memory at initialisation" in said
    size = sum(leaf.size for leaf in jax.tree.leaves(finished.state.params))
    assert f"{size:,}" in said
    events = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"memory at initialisation" in events
    assert json.dumps("learning_rate").encode() in events
