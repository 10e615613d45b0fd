"""Makes of a checkpoint one small folder that can be passed on, or put on any host.

It holds the averaged weights (model.safetensors, which other frameworks read too), what is known of
them (pf_jax.json) and a model card (README.md). It is taken wherever a --checkpoint is. Paths of
this machine and names of recordings do not go into it.

Examples:
  python -m experiments.export --checkpoint=/tmp/demo --output=demo_model --license=apache-2.0
  python -m experiments.export --checkpoint=~/runs/music --output=music_model --dtype=bfloat16
  python -m experiments.sample --checkpoint=music_model --output=samples
"""

import sys
from collections.abc import Sequence

from absl import flags
from etils import epath

from experiments import cli
from pf_jax import export
from pf_jax.config import DTYPES
from pf_jax.sharing.export import PRIVATE
from pf_jax.training.exported import FILES

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A training run's --workdir, one step's directory in it, or an exported folder.",
    required=True,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The folder to make, here or at gs://; an earlier export is replaced.",
    required=True,
)
_LICENSE = flags.DEFINE_string(
    "license", "", "Of the weights, as hosts of models spell it, such as apache-2.0 or cc-by-4.0."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", DTYPES, "bfloat16 halves the file: the kernels are rounded to it."
)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    meta = export(_CHECKPOINT.value, _OUTPUT.value, license=_LICENSE.value, dtype=_DTYPE.value)
    exported = meta.exported
    splits = ", ".join(exported.figures) or "none (experiments.evaluate makes them)"
    print(f"Step {meta.step:,}, {exported.parameters:,} parameters, evaluated splits: {splits}")
    for name in FILES:
        path = epath.Path(meta.path) / name
        print(f"  {path}  {path.stat().length:,} bytes")
    print(f"Left out, as places on this machine: {', '.join(PRIVATE)}")
    if not exported.license:
        print(
            "warning: the card says that no licence was stated; --license=NAME states one.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    cli.run(main)
