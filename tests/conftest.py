"""What all tests share."""

import dataclasses
import functools
import gc
import importlib.metadata
import os
import pathlib
import tempfile

import pytest

# Several processes compile the same small programs: once is enough. Set before jax is imported.
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"pf_jax_tests_{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Which line of Python an operation comes from need not be written into each.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# To compile takes far longer than to run. What the README shows is run as users run it.
_QUICK = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib") < "0.11":  # Later ones have no other emitters.
    _QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _QUICK)
# All that is compiled stays: to look again and again for garbage in it takes a tenth of the time.
gc.set_threshold(50_000, 20, 50)

# What takes long comes first, so that no process is left alone with it; each takes whole files.
_LONG = (
    "test_speech.py",
    "test_hosts.py",
    "/training/",
    "/experiments/",
    "/docs/",
    "test_notebooks.py",
    "test_causality.py",
    "test_poolformer.py",
    "test_mixers.py",
    "/sampling/",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: [part not in item.path.as_posix() for part in _LONG])


# Each compiled program takes some of the 65,530 mappings of memory that Linux gives to a process;
# past them, XLA crashes.
_MOST_MAPPINGS = 15_000


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Before a file, lets go of what others have compiled, if that is a lot."""
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MOST_MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


# What the programs of a run do not depend on. Fields that come to be are taken to matter.
_OF_NO_PROGRAM = {
    **{"init_from": "", "patience": 0, "profile": (), "num_samples": 4, "sample_length": 0},
    **{"log_every": 1, "eval_every": 1, "checkpoint_every": 1, "sample_every": 0},
    **{"keep_latest": 2, "keep_best": 1},
}


@pytest.fixture(autouse=True, scope="session")
def _runs_of_one_config_share_their_programs():
    """Many tests train the same tiny model: its steps and its first state are compiled once.

    Where a test puts another function in the place of a step, they are compiled anew.
    """
    from pf_jax.training import loop, parallel, state, step

    @functools.cache
    def programs(config, *functions):
        optimizer, schedule = state.make_optimizer(config)
        graphdef, _ = state.split_model(state.abstract_model(config.step_model))
        train = parallel.parallel_train_step(config, graphdef, optimizer, schedule)
        return train, parallel.parallel_eval_step(config, graphdef)

    def programs_of(config):
        config = dataclasses.replace(config, seed=0, **_OF_NO_PROGRAM)
        functions = parallel.train_step, parallel.eval_step, step.negative_log_likelihood
        return programs(config, *functions)

    @functools.cache
    def first_state(config):
        optimizer, _ = state.make_optimizer(config)
        return state.init_train_state(config, optimizer)

    def init_train_state(config, _):
        return first_state(dataclasses.replace(config, **_OF_NO_PROGRAM))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "init_train_state", init_train_state)
        patch.setattr(loop, "parallel_train_step", lambda config, *_: programs_of(config)[0])
        patch.setattr(loop, "parallel_eval_step", lambda config, _: programs_of(config)[1])
        yield
