"""Functions for kernels of Pallas' Mosaic GPU backend, without what it does not have."""

from collections.abc import Callable

import jax
import jax.extend as jex
import jax.numpy as jnp

# What calls something, and the parameter that this is.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr"}
_CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
# Operations that the backend does not have at each version of JAX.
_INSTEAD = {
    "add_any": jax.lax.add,  # The sum of two gradients.
    "sqrt": lambda x: jnp.where(x == 0.0, x, x * jax.lax.rsqrt(x)),
}


def inlined(function: Callable) -> Callable:
    """The same function in operations that the backend has.

    It has none for a call with its own rule of differentiation, such as that of `jax.custom_jvp`,
    which is past its use there: what is called takes its place.
    """

    def evaluate(jaxpr, consts, args):
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def value(atom):
            return atom.val if isinstance(atom, jex.core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            primitive, params = equation.primitive, equation.params
            arguments = [value(x) for x in equation.invars]
            if primitive.name in _CALLS:
                inner = params[_CALLS[primitive.name]]
                outs = evaluate(inner.jaxpr, inner.consts, arguments)
            elif primitive.name in _INSTEAD:
                outs = [_INSTEAD[primitive.name](*arguments)]
            else:
                outs = primitive.bind(*arguments, **params)
                outs = outs if primitive.multiple_results else [outs]
            values.update(zip(equation.outvars, outs, strict=True))
        return [value(x) for x in jaxpr.outvars]

    def run(*args):
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        values = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return run
