"""The implementations of the recurrence, and which of them runs where."""

import concurrent.futures
import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.interpreters import batching, mlir

from pf_jax.errors import UserError
from pf_jax.recurrence import portable
from pf_jax.recurrence.associative import associative
from pf_jax.recurrence.coefficients import Coefficients
from pf_jax.recurrence.gates import CGLRU, RGLRU
from pf_jax.recurrence.sequential import sequential


class Implementation(NamedTuple):
    """The functions that `pf_jax.recurrence.portable` describes.

    Attributes:
        forward: All states, and the last.
        gradient: Of a function of these.
        carry: The map from the state before a sequence to that after it.
        adjoint_carry: The same for the adjoint.
        platform: The only one that it runs on; None for all.
    """

    forward: Callable
    gradient: Callable
    carry: Callable
    adjoint_carry: Callable
    platform: str | None = None


_FUNCTIONS = Implementation._fields[:4]


def _around(scan: portable.Scan) -> Implementation:
    return Implementation(*(functools.partial(getattr(portable, f), scan) for f in _FUNCTIONS))


def _kernel(name: str, platform: str | None) -> Implementation:
    """That of a module which is imported when it is needed: not every machine has its compiler."""

    def function(which: str, *args: Any, **options: Any) -> Any:
        return getattr(_module(name), which)(*args, **options)

    return Implementation(*(functools.partial(function, f) for f in _FUNCTIONS), platform)


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"pf_jax.recurrence.{name}")


IMPLEMENTATIONS = {
    "associative": _around(portable.reversible(associative)),
    "sequential": _around(portable.reversible(sequential)),
    "cpu_loop": _kernel("cpu_loop", None),
    "pallas_tpu": _kernel("pallas_tpu", "tpu"),
    "pallas_gpu": _kernel("pallas_gpu", "cuda"),
}

# By platform, with what runs where a kernel does not; benchmarks/recurrence.py compares them.
_AUTO = {
    "cpu": ("cpu_loop",),
    "tpu": ("pallas_tpu", "associative"),
    "cuda": ("pallas_gpu", "associative"),
}
_ELSEWHERE = "associative"
_SHAPES = "cpu_loop"  # What tells the shapes of results; it is traced in no time.


def check(implementation: str) -> None:
    """Raises UserError if there is none of that name."""
    if implementation != "auto" and implementation not in IMPLEMENTATIONS:
        known = ", ".join(["auto", *IMPLEMENTATIONS])
        raise UserError(f"Unknown recurrence implementation {implementation!r}; known: {known}.")


def of_any_type(implementation: str) -> str:
    """The implementation itself if it takes any type, such as float64, or one that does."""
    wanted = IMPLEMENTATIONS.get(implementation)
    return _ELSEWHERE if wanted is None or wanted.platform else implementation


def platform_here() -> str:
    """The platform of this process's devices, by the names of `Implementation.platform`."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


def best_here() -> str:
    """What "auto" is on this process's devices."""
    names = _AUTO.get(platform_here())
    return _ELSEWHERE if names is None else _usable(names)


def run(
    implementation: str, function: str, coefficients: Coefficients, *args: Any, **options: Any
) -> Any:
    """Calls a function of an implementation; "auto" is the best one for the platform.

    The choice falls when a program is lowered: one that is lowered for a TPU gets the kernel of the
    TPU, wherever that is done. A kernel that was asked for by name and has no place on the platform
    leaves it to "auto", with a warning.

    Args:
        implementation: A name in `IMPLEMENTATIONS`, or "auto".
        function: A name of `Implementation`'s.
        coefficients: What `a` and `b` are made of.
        *args: The arrays.
        **options: What else it takes: of `forward`, the type of the states.
    """
    wanted = IMPLEMENTATIONS.get(implementation)
    what = _What(function, coefficients, tuple(options.items()))
    if wanted is not None and wanted.platform is None:
        return _call(implementation, what, *args)
    if wanted is not None and wanted.platform != platform_here():
        _warn_once(
            f"The recurrence {implementation!r} runs on {wanted.platform} and not on "
            f"{jax.default_backend()}, where the best other one takes its place."
        )
    leaves, tree = jax.tree.flatten(args)
    results = jax.tree.structure(jax.eval_shape(functools.partial(_call, _SHAPES, what), *args))
    return jax.tree.unflatten(results, _best.bind(*leaves, what=what, tree=tree, mapped=()))


class _What(NamedTuple):
    """What is called, apart from arrays."""

    function: str
    coefficients: Coefficients
    options: tuple[tuple[str, Any], ...]


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _call(name: str, what: _What, *args: Any) -> Any:
    """Traced once for all layers of a shape."""
    run = getattr(IMPLEMENTATIONS[name], what.function)
    return run(what.coefficients, *args, **dict(what.options))


# The best implementation for the platform that a program is lowered for, as an operation of JAX:
# only that one is traced, and not before. `jax.lax.platform_dependent` traces all at once.
_best = jex.core.Primitive("best_recurrence")
_best.multiple_results = True


def _on_leaves(name: str, *leaves: Any, what: _What, tree: Any, mapped: tuple) -> list[Any]:
    """`_call` of flat arguments with flat results, under all the `jax.vmap` around it."""

    def run(*leaves):
        return jax.tree.leaves(_call(name, what, *jax.tree.unflatten(tree, leaves)))

    for axes in mapped:
        run = jax.vmap(run, axes)
    return run(*leaves)


def _on(platform: str, *leaves: Any, what: _What, **how: Any) -> list[Any]:
    names = _AUTO.get(platform)
    name = _ELSEWHERE if names is None else _usable(names, what.coefficients.parts)
    return _on_leaves(name, *leaves, what=what, **how)


@functools.partial(jax.jit, static_argnames=("what", "tree", "mapped"))
def _compiled(*leaves: Any, **what: Any) -> list[Any]:
    return _best.bind(*leaves, **what)


@_best.def_abstract_eval
def _shapes(*leaves: Any, **what: Any) -> list[jax.core.ShapedArray]:
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    results = jax.eval_shape(functools.partial(_on_leaves, _SHAPES, **what), *shapes)
    return [jax.core.ShapedArray(x.shape, x.dtype) for x in results]


def _mapped(leaves: Any, axes: Any, *, mapped: tuple, **what: Any) -> tuple[list[Any], list[int]]:
    results = _best.bind(*leaves, mapped=(*mapped, tuple(axes)), **what)
    return results, [0] * len(results)


_best.def_impl(_compiled)
batching.primitive_batchers[_best] = _mapped
for _platform in (None, *_AUTO):
    mlir.register_lowering(
        _best,
        mlir.lower_fun(functools.partial(_on, _platform), multiple_results=True),
        platform=_platform,
    )


def _usable(names: tuple[str, ...], parts: int = 1) -> str:
    """The first of some implementations that is not known to fail on the backend at hand.

    Args:
        names: Of the implementations.
        parts: 1 for real recurrences, 2 for complex ones.
    """
    for name in names:
        platform = IMPLEMENTATIONS[name].platform
        is_at_hand = platform == platform_here()
        if platform is None or (reason := _why_it_fails(name, is_at_hand, parts)) is None:
            return name
        if is_at_hand:
            _warn_once(
                f"The recurrence {name!r} does not compile on {jax.devices()[0].device_kind}, and "
                f"a slower one takes its place: {reason}"
            )
    return names[-1]


@functools.cache
def _why_it_fails(name: str, is_at_hand: bool, parts: int) -> str | None:
    """The reason why a kernel cannot be had, if so; at hand, a small case of it is compiled."""

    def attempt():
        _module(name)
        if not is_at_hand:
            return
        real, state = (jax.ShapeDtypeStruct((1, 64, n * 128), jnp.float32) for n in (1, parts))
        row = jax.ShapeDtypeStruct((1, parts * 128), jnp.float32)
        channel = jax.ShapeDtypeStruct((128,), jnp.float32)
        coefficients = RGLRU if parts == 1 else CGLRU
        kernel = IMPLEMENTATIONS[name]

        def both(inputs, channel, h0, dh):
            h, last = kernel.forward(coefficients, inputs, channel, h0, dh.dtype)
            return kernel.gradient(coefficients, inputs, channel, h0, h, dh, last)

        inputs = real, real, state
        jax.jit(both).lower(inputs, (channel,) * parts, row, state).compile()

    # In a thread of its own, for this one may be in the middle of tracing something.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        error = pool.submit(attempt).exception()
    return (
        None if error is None else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
