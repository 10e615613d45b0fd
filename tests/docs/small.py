"""What makes the commands and blocks of the pages small enough for a test, and nothing else.

Flags that any user could give are put behind those of a command: a flag that does not exist, or a
value that it cannot have, is refused as ever.
"""

import importlib.util
import os
import re

# Behind every run of a module.
ADDED = {
    "experiments.train": [
        "--config.num_steps=2",
        "--config.data.window=256",
        "--config.model.num_heads=2",
        "--config.sample_length=64",
    ],
    "experiments.compare": [
        "--config.data.window=256",
        "--config.model.num_heads=2",
        "--config.batch_size=16",
        "--config.model.widths=(8,8,8)",
        "--config.model.depths=(0,0,1)",
        "--models=poolformer,no_gate",  # That the others have names is looked up in test_text.py.
        "--budget=0.05s",
        "--seeds=0",
        "--num_samples=0",
        "--evaluations=1",
        "--seconds=0.02",
    ],
    "experiments.analyze": ["--num_windows=2", "--num_positions=4"],
    "experiments.compile": [
        "--config.data.window=256",
        "--config.model.num_heads=2",
        "--topology=v5e:2x2",
        "--nolargest",
    ],
    "experiments.evaluate": ["--num_resamples=100"],
    "experiments.inspect": ["--num_windows=2"],
    "experiments.measure": [
        "--config.data.window=256",
        "--config.model.num_heads=2",
        "--seconds=0.1",
    ],
    "experiments.report": ["--num_samples=1", "--seconds=0.02"],
}
# Behind those that do not say so themselves.
SHAPE = {
    "--config.batch_size": "16",
    "--config.model.widths": "(8,8,8)",
    "--config.model.depths": "(0,0,1)",
    "--config.model.pool_factors": "(4,4)",
}
SHAPED = ("experiments.train", "experiments.compare", "experiments.compile", "experiments.measure")
# In place of a flag that is given.
REPLACED = {
    "experiments.sample": {"--num_steps": "64", "--seconds": "0.02"},
    "experiments.evaluate": {"--num_samples": "2", "--seconds": "0.02"},
}
# Where a flag is left out that would make it long.
DEFAULTS = {"experiments.sample": ("--num_steps", "--seconds", "0.02")}
# What takes the TPU's compiler; where that is not installed, only the help is run.
COMPILING = ("experiments.compile", "benchmarks.recurrence_tpu")
HAS_COMPILER = importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")
# In blocks of Python.
IN_PYTHON = [(r"\bnum_steps=\d[\d_]{3,}", "num_steps=160")]


def shrink(arguments: list[str]) -> list[str]:
    """The arguments of `python`, with more that make the run small."""
    if arguments[:1] != ["-m"] or "--help" in arguments:
        return arguments
    module = arguments[1]
    if module in COMPILING and not HAS_COMPILER:
        return ["-m", module, "--help"]
    given = {argument.partition("=")[0] for argument in arguments}
    more = list(ADDED.get(module, ()))
    if module in SHAPED:
        more += [f"{name}={value}" for name, value in SHAPE.items() if name not in given]
    more += [f"{n}={value}" for n, value in REPLACED.get(module, {}).items() if n in given]
    if module in DEFAULTS and given.isdisjoint(DEFAULTS[module][:2]):
        more.append("=".join(DEFAULTS[module][1:]))
    return [*arguments, *more]


def shrink_python(code: str) -> str:
    """A block of Python with smaller numbers."""
    for pattern, replacement in IN_PYTHON:
        code = re.sub(pattern, replacement, code)
    return code
