"""The model card of an exported folder: what people, and hosts of models, read about it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from pf_jax.audio import AudioFormat
from pf_jax.data.catalogue import DATASETS
from pf_jax.evaluation.results import METRICS
from pf_jax.layers import own_layers
from pf_jax.training.checkpoint import CheckpointMeta
from pf_jax.training.exported import META, WEIGHTS
from pf_jax.training.state import Params
from pf_jax.training.tensors import name_of

# What hosts call the task. Sounds are drawn alone or go on from a prompt, which has no name of its
# own there: sound from sound comes nearest.
_TASKS = {
    "audio": "audio-to-audio",
    "text": "text-generation",
    "image": "unconditional-image-generation",
}
_SCORINGS = {"carried": "state carried through recordings", "independent": "independent windows"}

_CITATION = """\
```bibtex
@misc{gallofernandez2025poolformer,
  title  = {Poolformer: Recurrent Networks with Pooling for Long-Sequence Modeling},
  author = {Gallo Fern{\\'a}ndez, Daniel},
  year   = {2025},
  eprint = {2510.02206},
  archivePrefix = {arXiv},
}
```"""


def model_card(meta: CheckpointMeta, params: Params) -> str:
    """Returns the card as Markdown, with the front matter that hosts of models read.

    Args:
        meta: What the folder says about itself.
        params: The weights as they stand in its file.
    """
    sections = {
        "": [_summary(meta)],
        "Use": _use(meta),
        "Training": _training(meta),
        "How good it is": _figures(meta),
        "Tensors": _tensors(params, meta.exported.rounded),
        "Licence": [_license(meta)],
        "Citation": [_CITATION],
    }
    parts = [_front_matter(meta), "# Poolformer, trained with pf_jax"]
    for title, paragraphs in sections.items():
        parts += [*([f"## {title}"] if title else []), *paragraphs]
    return "\n\n".join(parts) + "\n"


def _front_matter(meta: CheckpointMeta) -> str:
    modality = meta.config.data.modality
    tags = ["poolformer", "jax", "flax", modality, f"{modality}-generation"]
    lines = [f"license: {meta.exported.license}"] if meta.exported.license else []
    lines += [
        "library_name: pf_jax",
        f"pipeline_tag: {_TASKS[modality]}",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _summary(meta: CheckpointMeta) -> str:
    model, data = meta.config.model, meta.config.data
    made = {"text": "text, byte by byte", "image": f"pictures of {data.window:,} bytes"}
    if isinstance(meta.format, AudioFormat):
        made["audio"] = (
            f"raw audio, sample by sample: {data.sample_rate:,} samples per second, one channel, "
            f"256 levels ({data.quantization})"
        )
    return (
        f"A model of {made[data.modality]}. It has {meta.exported.parameters:,} parameters in "
        f"{model.num_levels} levels of widths {model.widths}, pooled by {model.pool_factors}; "
        f"layers: {', '.join(f'`{name}`' for name in sorted(model.layers))}. `{META}` has the "
        "whole config."
    )


def _use(meta: CheckpointMeta) -> list[str]:
    own = own_layers(meta.config.model)
    extra = " --import=FILE.py" if own else ""
    second = "evaluate --checkpoint=model --output=evaluation"
    if isinstance(meta.format, AudioFormat):
        second = "sample --checkpoint=model --prompt=recording.wav --output=continued"
    paragraphs = [
        "With pf_jax installed (its README says how) and this folder called `model`:",
        f"```sh\npython -m experiments.sample --checkpoint=model --output=samples{extra}\n"
        f"python -m experiments.{second}{extra}\n```",
        "```python\nimport jax, pf_jax\n"
        'model, meta = pf_jax.load("model")\n'
        "tokens, log_likelihoods = pf_jax.generate(\n"
        f"    model, jax.random.key(0), num_samples=1, num_steps={_few_steps(meta)}\n"
        ")\n```",
    ]
    if isinstance(meta.format, AudioFormat):
        paragraphs.append("`meta.audio_format.decode(tokens)` are waveforms.")
    if own:
        paragraphs.append(
            f"The layer `{own[0]}` is not part of pf_jax: FILE.py is the file that adds it; ask "
            "whoever made this model for it."
        )
    return paragraphs


def _training(meta: CheckpointMeta) -> list[str]:
    config = meta.config
    seen = meta.step * config.batch_size * config.data.window
    unit = _unit(meta)
    facts = [
        f"steps: {meta.step:,}, of {config.batch_size:,} windows of {config.data.window:,} {unit}s",
        f"{unit}s seen: {seen:,}, padding included",
        f"normalization of the data: {config.data.normalization}",
        f"weights: their moving average, of decay {config.ema_decay:g}",
    ]
    if meta.exported.warm_start:
        facts.append("training started from the weights of another model")
    return [
        _data(config.data.name),
        "\n".join(f"- {fact}" for fact in facts),
        f"The whole config of the training is in `{META}`, except for places on the machine that "
        "trained, which were left out.",
    ]


def _data(name: str) -> str:
    builder = DATASETS.get(name)
    origin = getattr(builder, "ORIGIN", None)
    if origin is None:
        return (
            f"The training data (`{name}`) are recordings of whoever trained it, which are not "
            "part of this folder. Ask them where the recordings come from, and what may be done "
            "with a model of them."
        )
    title = f"[{origin.title}]({origin.url})" if origin.url else origin.title
    license = origin.license or "not known to pf_jax; ask its publisher"
    text = f"The training data (`{name}`) are {title}. Their licence: {license}."
    return f"{text} Cite: {origin.citation}." if origin.citation else text


def _figures(meta: CheckpointMeta) -> list[str]:
    rows, notes = [], []
    unit = f"bits per {_unit(meta)}"
    if (bits := meta.validation_bits_per_sample) is not None:
        label = f"{unit}, independent windows of {meta.config.data.window:,}, in training"
        rows.append(("validation", label, f"{bits:.4f}"))
        if meta.exported.rounded:
            notes.append("Validation in training was before the kernels were rounded to bfloat16.")
    for split, found in meta.exported.figures.items():
        rows += _rows(split, found, unit)
        notes += [f"{split}: {line}" for lines in found["warnings"].values() for line in lines]
    if not rows:
        return ["It was not measured."]
    table = ["| split | what | value |", "| --- | --- | --- |"]
    table += [f"| {' | '.join(row)} |" for row in rows]
    if levels := meta.config.data.levels:
        notes.insert(
            0,
            f"Bits per sample are of {levels}. Figures of another quantization or normalization "
            "do not compare.",
        )
    return ["\n".join(table), *(["\n".join(f"- {note}" for note in notes)] if notes else [])]


def _rows(split: str, found: Mapping[str, Any], unit: str) -> Iterator[tuple[str, str, str]]:
    """What `experiments.evaluate` found of a split."""
    for name, likelihood in found["likelihoods"].items():
        interval = ""
        if likelihood["low"] is not None:
            interval = f" (95 %: {likelihood['low']:.4f} to {likelihood['high']:.4f})"
        label = f"{unit}, {_SCORINGS.get(name, name)}"
        yield split, label, f"{likelihood['value']:.4f}{interval}"
    for name, value in found["metrics"].items():
        title, section = METRICS[name].title, METRICS[name].place[0]
        number = found["num_sounds"].get(section)
        of = f", of {number:,} generated sounds or clips" if number else ""
        yield split, f"{title}{of}", f"{value:.4g}"


def _tensors(params: Params, is_rounded: bool) -> list[str]:
    table = ["| tensor | shape | type |", "| --- | --- | --- |"]
    table += [
        f"| `{name}` | {shape} | {dtype} |" for name, shape, dtype in _grouped_tensors(params)
    ]
    rounded = " Kernels were rounded to bfloat16." if is_rounded else ""
    return [
        f"`{WEIGHTS}` can be read without pf_jax. A tensor is called by the path of its parameter "
        "in `pf_jax/poolformer.py` and `pf_jax/layers`, with dots between the parts; numbers count "
        "the blocks of a level, and each `nested` is one level further in. The kernel of a linear "
        "map is (in, out), so that `y = x @ kernel + bias`: PyTorch's `weight` is its transpose. "
        "One of diagonal blocks is (heads, in / heads, out / heads), its bias (heads, out / "
        f"heads); that of a causal convolution is (taps, width), the oldest tap first.{rounded}",
        "\n".join(table),
    ]


def _grouped_tensors(params: Params) -> Iterator[tuple[str, str, str]]:
    """Name, shape and type of each tensor; of those that only the block's number tells apart, one.

    Such a name has the numbers in braces, like `body.before.{0,1,2}.norm.scale`.
    """
    groups: dict[tuple, list[str]] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name = name_of(path)
        # Of several numbers in a name, the last is a block's of the level in question.
        match = re.fullmatch(r"(.*\.)(\d+)(\..*)", name)
        before, number, after = match.groups() if match else (name, "", "")
        key = before, after, str(tuple(leaf.shape)), str(leaf.dtype)
        groups.setdefault(key, []).append(number)
    for (before, after, shape, dtype), numbers in groups.items():
        inner = f"{{{','.join(numbers)}}}" if len(numbers) > 1 else numbers[0]
        yield f"{before}{inner}{after}", shape, dtype


def _license(meta: CheckpointMeta) -> str:
    if license := meta.exported.license:
        return f"The weights: {license}. The training data have a licence of their own, see above."
    return (
        "No licence of the weights was stated. Without one, nobody but their owner may use them: "
        "ask whoever made this model."
    )


def _unit(meta: CheckpointMeta) -> str:
    return "sample" if isinstance(meta.format, AudioFormat) else "byte"


def _few_steps(meta: CheckpointMeta) -> int:
    """Of an example: a second of sound, some text, a whole picture."""
    if isinstance(meta.format, AudioFormat):
        return meta.format.sample_rate
    return meta.config.data.window if meta.config.data.modality == "image" else 1_000
