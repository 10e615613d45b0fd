"""What a step does besides training: parts of a batch, steps that are skipped, requests to stop."""

import functools
import pathlib
import re
import sys
import textwrap

import jax
import numpy as np
import pytest

from pf_jax.training import hosts
from pf_jax.training.state import init_train_state, make_optimizer
from pf_jax.training.step import DATA_AXIS, train_step
from tests import processes
from tests.training.test_step import CONFIG, global_batch, go_on, make_step, named, shared_out


def step_in_parts(parts):
    optimizer, schedule = make_optimizer(CONFIG)
    _, graphdef, state = make_step()
    step = functools.partial(
        train_step,
        graphdef=graphdef,
        optimizer=optimizer,
        schedule=schedule,
        ema_decay=CONFIG.ema_decay,
        accumulation_steps=parts,
    )
    step = jax.pmap(step, axis_name=DATA_AXIS, donate_argnums=0)
    state, metrics = hosts.replicate(state), []
    for number in range(3):
        state, m = step(state, shared_out(global_batch(number)), go_on())
        metrics.append(m)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize("parts", [2, 16])
def test_parts_of_a_batch_give_what_the_whole_gives(parts):
    whole, whole_metrics = step_in_parts(1)
    state, metrics = step_in_parts(parts)
    for (name, a), (_, b) in zip(named(metrics), named(whole_metrics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=str(name))
    for (name, a), (_, b) in zip(named(state.params), named(whole.params), strict=True):
        # Adam divides by the size of a gradient: where that is next to nothing, rounding is much.
        np.testing.assert_allclose(a, b, atol=2e-3, err_msg=str(name))
    differences = [
        np.abs(a - b).mean()
        for (_, a), (_, b) in zip(named(state.params), named(whole.params), strict=True)
    ]
    assert np.mean(differences) < 1e-6


def broken(state, value=np.nan):
    """A state with one weight that is no number."""
    leaves, structure = jax.tree.flatten(state.params)
    leaves[0] = np.full_like(leaves[0], value)
    return state._replace(params=jax.tree.unflatten(structure, leaves))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_its_counts(value):
    step, _, state = make_step()
    state, _ = step(hosts.replicate(state), shared_out(global_batch(0)), go_on())
    state = hosts.first_replica(state)
    bad = broken(state, value)
    for number in (1, 2):
        after, metrics = jax.device_get(
            step(hosts.replicate(bad), shared_out(global_batch(number)), go_on())
        )
        after, metrics = jax.tree.map(lambda x: x[0], (after, metrics))
        assert not np.isfinite(metrics["loss"] + metrics["gradient_norm"])
        assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (number, number)
        assert (after.skipped, after.skipped_in_a_row) == (number, number)
        assert after.step == 1 + number
        for part in ("params", "ema_params", "optimizer", "key"):
            jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(bad, part))
        bad = after

    mended = bad._replace(params=state.params)
    after, metrics = jax.device_get(
        step(hosts.replicate(mended), shared_out(global_batch(3)), go_on())
    )
    assert (after.skipped[0], after.skipped_in_a_row[0]) == (2, 0)
    assert any(
        (a != b[0]).any()
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True)
    )


ON_FOUR_DEVICES = """
    import functools, json, sys
    import jax, numpy as np
    from pf_jax.training import hosts
    from tests.training.test_step import global_batch, make_step, shared_out

    step, graphdef, initial = make_step()
    assert jax.local_device_count() == 4
    counts = []
    for asked in ([0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]):
        state, metrics = step(
            hosts.replicate(initial), shared_out(global_batch(0)), np.array(asked, bool)
        )
        counts.append(np.asarray(metrics["stop"]).tolist())
    print(json.dumps(counts))
    arguments = hosts.replicate(initial), shared_out(global_batch(0)), np.zeros(4, bool)
    print(step.lower(*arguments).compile().as_text())
"""


def test_devices_talk_once_in_a_step():
    """Of the gradients' size and a few numbers more; and all hear of a request to stop."""
    done = processes.run(
        [sys.executable, "-c", textwrap.dedent(ON_FOUR_DEVICES)],
        env=processes.with_devices(4),
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    counts, _, program = done.stdout.partition("\n")
    assert counts == "[[0, 0, 0, 0], [1, 1, 1, 1], [4, 4, 4, 4]]"
    assert not re.findall(r"(?:all-gather|all-to-all|collective-permute|reduce-scatter)", program)
    # `x, y = (f32[3,4], s32[]) all-reduce(...)`, or one shape alone.
    results = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program)
    shapes = [shape for result in results for shape in re.findall(r"([fs]32)\[([\d,]*)\]", result)]
    sizes = {kind: 0 for kind in ("f32", "s32")}
    for kind, dimensions in shapes:
        sizes[kind] += int(np.prod([int(d) for d in dimensions.split(",") if d] or [1]))
    optimizer, _ = make_optimizer(CONFIG)
    _, state = init_train_state(CONFIG, optimizer)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sizes["f32"] == parameters + 1, "the gradients and the loss"
    assert sizes["s32"] == 2, "how many positions are real, and who asks to stop"
    assert len(results) <= 2, "one exchange for each type of number"
