"""The training of a classifier as one story, from a config to what evaluation loads."""

import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jaxtyping import Array, Int

from pf_jax.data import open_dataset
from pf_jax.errors import UserError
from pf_jax.evaluation.classifier.classifier import Classifier, load_classifier
from pf_jax.evaluation.classifier.clips import (
    Batch,
    Clips,
    classes_without,
    eval_batches,
    open_clips,
    train_batches,
)
from pf_jax.evaluation.classifier.config import ClassifierConfig
from pf_jax.evaluation.classifier.progress import Progress, ProgressSaver, check_same_run
from pf_jax.evaluation.classifier.resnext import ResNeXt
from pf_jax.evaluation.classifier.saved import (
    NAME,
    ClassifierMeta,
    Variables,
    abstract_network,
    find_classifier,
    merge_network,
    save_classifier,
    split_network,
)
from pf_jax.paths import checked_path
from pf_jax.training.hosts import StopRequest
from pf_jax.training.logging import RunLog
from pf_jax.training.state import make_optimizer

# Fields that may change when a run goes on: they change neither the data nor the meaning of a step.
FREE_FIELDS = (
    *("log_every", "eval_every"),
    *("data.path", "data.data_dir", "data.manual_dir", "data.verify_checksums"),
    *("data.num_threads", "data.num_workers", "data.prefetch"),
)


class State(NamedTuple):
    """What training changes.

    Attributes:
        step: The number of steps taken.
        variables: The arrays of the network.
        optimizer: The state of the optimizer.
    """

    step: Int[Array, ""]
    variables: Variables
    optimizer: optax.OptState


def train_classifier(config: ClassifierConfig, workdir: epath.PathLike) -> Classifier | None:
    """Trains a classifier, or goes on with the training that `workdir` holds.

    The weights that tell most clips of the validation split right are kept (of equals, those with
    the lowest loss). SIGTERM and Ctrl-C save a checkpoint and return. Runs on one device.

    Args:
        config: The experiment.
        workdir: Where everything is kept, a directory or a gs:// path: `training/` until the end,
            then `classifier/`, and `metrics.jsonl`.

    Returns:
        The classifier; None where the training was interrupted. Of a training that had come to its
        end before, the classifier that it made.

    Raises:
        UserError: The config asks for something impossible, its data cannot be had, `workdir`
            belongs to another run or cannot be written, or training has diverged.
    """
    if jax.process_count() > 1:
        raise UserError("A classifier is trained on one host: give --num_processes=1.")
    workdir = checked_path(workdir, "workdir")
    if (workdir / NAME).exists():
        return _finished(config, workdir)
    if (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds the training of a Poolformer: give another --workdir.")
    dataset = open_dataset(config.data)
    classes, clips = open_clips(dataset, config)

    graphdef, state = _initial_state(config)
    step_fn, eval_fn = _step_functions(config, graphdef)
    evaluate = functools.partial(_evaluate, eval_fn, config)

    with ProgressSaver(workdir, config, dataset.fingerprint, FREE_FIELDS) as saver:
        state = jax.device_get(state)  # Steps take over the arrays on the device.
        progress = saver.restore(Progress(state, state.variables))
        state = progress.state
        resume_step = int(state.step)
        with (
            StopRequest() as stop_request,
            RunLog(workdir, num_steps=config.num_steps, resume_step=resume_step) as log,
        ):
            log.message(_introduction(config, classes, clips, resume_step))
            batches = train_batches(clips["train"], config, resume_step)
            for step in range(resume_step + 1, config.num_steps + 1):
                state, metrics = step_fn(state, next(batches))
                if step % config.log_every == 0:
                    log.train(step, _finite(step, jax.device_get(metrics)))
                log.advance(step)
                stop = stop_request.is_certain()
                if step % config.eval_every == 0 or step == config.num_steps:
                    scores = evaluate(state.variables, clips["validation"])
                    log.evaluation(step, _finite(step, scores))
                    progress = progress.judged(jax.device_get(state), step, scores)
                    saver.save(progress)
                elif stop:
                    saver.save(progress._replace(state=jax.device_get(state)))
                if stop and step < config.num_steps:
                    log.message(f"Stopped after step {step}; the same command goes on from there.")
                    return None
            scores = {split: evaluate(progress.best, clips[split]) for split in clips}
            meta = ClassifierMeta(
                config=config,
                labels=classes,
                accuracy={split: float(s["accuracy"]) for split, s in scores.items()},
                num_clips={split: len(clips[split]) for split in clips},
                step=progress.best_step,
                source="training",
                data_fingerprint=dataset.fingerprint,
                checksum=0,
            )
            save_classifier(workdir, progress.best, meta)
            log.message(_conclusion(find_classifier(workdir)))
    saver.delete()
    return load_classifier(workdir)


def _initial_state(config: ClassifierConfig) -> tuple[nnx.GraphDef, State]:
    """The structure of the network, and the state before the first step."""

    def make_state(seed):
        _, variables = split_network(ResNeXt(config.model, rngs=nnx.Rngs(jax.random.key(seed))))
        optimizer, _ = make_optimizer(config)
        return State(jnp.array(0), variables, optimizer.init(variables["params"]))

    graphdef, _ = abstract_network(config.model)
    return graphdef, jax.jit(make_state)(np.uint32(config.seed))


def _step_functions(
    config: ClassifierConfig, graphdef: nnx.GraphDef
) -> tuple[Callable[[State, Batch], tuple[State, dict]], Callable[[Variables, Batch], tuple]]:
    """The compiled training step, and the compiled sums of an evaluation."""
    optimizer, schedule = make_optimizer(config)

    def loss(params, batch_stats, batch):
        network = merge_network(graphdef, {"params": params, "batch_stats": batch_stats})
        _, logits = network(batch["spectrogram"], train=True)
        _, variables = split_network(network)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
        return jnp.mean(nats), (variables["batch_stats"], right)

    def train_step(state, batch):
        (nats, (batch_stats, right)), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.variables["params"], state.variables["batch_stats"], batch
        )
        params = state.variables["params"]
        updates, opt_state = optimizer.update(gradients, state.optimizer, params)
        variables = {
            "params": optax.apply_updates(params, updates),
            "batch_stats": batch_stats,
        }
        metrics = {
            "loss": nats,
            "accuracy": right,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return State(state.step + 1, variables, opt_state), metrics

    def eval_sums(variables, batch):
        _, logits = merge_network(graphdef, variables)(batch["spectrogram"])
        real = batch["label"] >= 0
        labels = jnp.maximum(batch["label"], 0)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = jnp.argmax(logits, axis=-1) == labels
        return jnp.sum(nats, where=real), jnp.sum(right, where=real)

    return jax.jit(train_step, donate_argnums=0), jax.jit(eval_sums)


def _evaluate(
    eval_fn: Callable[[Variables, Batch], tuple],
    config: ClassifierConfig,
    variables: Variables,
    clips: Clips,
) -> dict[str, float]:
    """The mean loss over clips, and the share of them that is told right."""
    sums = [eval_fn(variables, batch) for batch in eval_batches(clips, config)]
    nats, right = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
    return {"loss": nats / len(clips), "accuracy": right / len(clips)}


def _finite(step: int, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metrics, if training has not diverged."""
    if not math.isfinite(metrics["loss"]):
        raise UserError(
            f"Training has diverged by step {step}: its loss is not finite. Lower "
            "--config.optimizer.learning_rate and train in another --workdir."
        )
    return metrics


def _finished(config: ClassifierConfig, workdir: epath.Path) -> Classifier:
    """What the workdir of a training that has come to its end holds."""
    meta = find_classifier(workdir)
    check_same_run(meta.path, meta.config, config, FREE_FIELDS)
    print(f"This training has come to its end. {_conclusion(meta)}", file=sys.stderr)
    return load_classifier(workdir)


def _introduction(
    config: ClassifierConfig, classes: tuple[str, ...], clips: Mapping[str, Clips], step: int
) -> str:
    """What a person wants to know before waiting."""
    splits = ", ".join(f"{split} {len(some)} clips" for split, some in clips.items())
    _, variables = abstract_network(config.model)
    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    lines = [
        f"Classifier: ResNeXt-{config.model.depth}, {config.model.cardinality}x"
        f"{config.model.base_width}, {num_params:,} parameters, {len(classes)} classes of "
        f"{config.label}: {', '.join(classes[:12])}{' ...' if len(classes) > 12 else ''}.",
        f"Data: {config.data.name}, {splits}.",
        f"Device: {jax.devices()[0].device_kind}.",
    ]
    for split, some in clips.items():
        if missing := classes_without(some, classes):
            lines.append(f"No example in {split}: {', '.join(missing)}.")
    if step:
        lines.append(f"Goes on from the checkpoint of step {step}.")
    return "\n".join(lines)


def _conclusion(meta: ClassifierMeta) -> str:
    """What came out of it."""
    accuracies = ", ".join(
        f"{split} {100 * value:.2f} % of {meta.num_clips[split]}"
        for split, value in meta.accuracy.items()
    )
    return f"Told right: {accuracies} (weights of step {meta.step}). Classifier: {meta.path}."
