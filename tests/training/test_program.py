"""What is read from compiled programs, of programs whose needs are known; what is made of it."""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pf_jax import UserError
from pf_jax.training import planning
from pf_jax.training.chips import CHIPS
from pf_jax.training.planning import Attempt, largest
from pf_jax.training.program import Program, analyze
from pf_jax.training.topology import topology_devices

has_compiler = importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")
needs_compiler = pytest.mark.skipif(not has_compiler, reason="libtpu is not installed")


def test_a_product_of_matrices_needs_what_it_must():
    a, b = (
        jax.ShapeDtypeStruct((64, 128), jnp.float32),
        jax.ShapeDtypeStruct((128, 32), jnp.float32),
    )
    program = analyze(jax.jit(jnp.dot).lower(a, b).compile())
    assert program.flops == 2 * 64 * 128 * 32
    assert (program.arguments, program.outputs) == (4 * (64 * 128 + 128 * 32), 4 * 64 * 32)
    assert program.collectives == program.loops == ()


def test_donated_memory_is_counted_once():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    kept = analyze(jax.jit(lambda x: x + 1).lower(x).compile())
    given = analyze(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert given.aliased == 4000
    assert kept.memory - given.memory == 4000


@needs_compiler
def test_exchanges_of_a_slice_are_counted():
    mesh = Mesh(np.array(topology_devices("v5e:2x2")), ("x",))

    def run(x):
        return jax.lax.all_gather(jax.lax.psum(x, "x") * x, "x")

    shape = jax.ShapeDtypeStruct((4 * 2048,), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    mapped = jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
    program = analyze(jax.jit(mapped).lower(shape).compile())
    collectives = {c.kind: c for c in program.collectives}
    reduced, gathered = collectives["all-reduce"], collectives["all-gather"]
    assert (reduced.count, reduced.bytes, reduced.sent) == (1, 8192, 8192 * 2 * 3 // 4)
    assert (gathered.count, gathered.bytes, gathered.sent) == (1, 4 * 8192, 3 * 8192)


def test_how_often_a_loop_runs_is_told_where_the_compiler_knows():
    def run(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, None, length=7)[0]

    x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    assert analyze(jax.jit(run).lower(x).compile()).loops == (7,)


def test_bounds_divide_by_what_the_chip_has():
    chip, program = CHIPS["TPU v5e"], Program(0, 0, 0, 0, 0, 197e12, 819e9 / 2, (), ())
    assert planning.bounds(program, chip) == (1.0, 0.5, 0.0)


@pytest.mark.parametrize("first", [1, 8, 100])
@pytest.mark.parametrize("capacity", [0, 1, 13, 64])
def test_the_largest_is_found_in_few_attempts(first, capacity):
    """Memory that is a little off the line, as a compiler's is."""

    def compile_for(number):
        memory = 1000 + 100 * number + number % 3
        return Attempt(None, "program" if number <= capacity else None, memory)

    attempts = largest(compile_for, first, 1000 + 100 * capacity + 50, most=5)
    fitting = [n for n, attempt in attempts.items() if attempt.program]
    assert max(fitting, default=0) == capacity
    assert len(attempts) <= 6


@needs_compiler
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5litepod-16", "is v5e:4x4 here"),
        ("v5e-16", "try v5e: and one of .*4x4"),
        ("h100:2x2", "v5e:4x4 or v5p:4x4x8"),
        ("v5e:3x7", "v5e:3x7"),
    ],
)
def test_unknown_slices_are_answered_with_known_ones(name, says):
    with pytest.raises(UserError, match=says):
        topology_devices(name)


def test_without_the_compiler_says_how_to_get_it(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", functools.partial(lambda name: None))
    with pytest.raises(UserError, match=r"not installed.*\[tpu\]"):
        topology_devices("v5e:2x2")
