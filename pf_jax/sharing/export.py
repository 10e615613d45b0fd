"""Makes of a checkpoint one small folder, to be passed on.

It holds the averaged weights as `model.safetensors`, what is known of them as `pf_jax.json`, and a
model card, `README.md`. `pf_jax.load` takes it wherever it takes a checkpoint.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from pf_jax.config import DTYPES
from pf_jax.errors import UserError
from pf_jax.evaluation.results import read_evaluation
from pf_jax.paths import checked_path, is_remote
from pf_jax.sharing.card import model_card
from pf_jax.training import checkpoint, tensors
from pf_jax.training.checkpoint import CheckpointMeta
from pf_jax.training.config import TrainConfig
from pf_jax.training.exported import CARD, FILES, META, WEIGHTS, Exported, sha256

PRIVATE = ("init_from", "data.path", "data.data_dir", "data.manual_dir")
"""Fields of the config that are left out: places on the machine that trained."""

_ROUNDED = "Measured before the kernels were rounded to bfloat16."


def export(
    checkpoint_path: epath.PathLike,
    output: epath.PathLike,
    *,
    license: str = "",
    dtype: str = "float32",
) -> CheckpointMeta:
    """Writes a checkpoint as a folder that can be passed on.

    What `experiments.evaluate` has found of these very weights, in the run's `evaluation`, goes
    into it; places on this machine (`PRIVATE`) do not.

    Args:
        checkpoint_path: As of `pf_jax.load`; also a folder that was exported before.
        output: The folder, local or gs://. An export that is there is replaced, unless something
            was added to it or its card was changed. On this machine the new one is whole before it
            takes the place; in an object store, what was interrupted does not load, and can be
            written again.
        license: The identifier of the weights' licence, as hosts of models spell it, such as
            "apache-2.0" or "cc-by-4.0". By default that of an export that is exported again, or
            none.
        dtype: "float32", or "bfloat16" for a file of half the size: kernels are rounded to it.

    Returns:
        What the folder says about itself.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or there is something else in the
            place of `output`, or it cannot be written.
    """
    identifier = license.strip().lower()
    if identifier and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", identifier):
        raise UserError(
            f"license must be an identifier such as apache-2.0 or cc-by-4.0, got {license!r}."
        )
    if dtype not in DTYPES:
        raise UserError(f"dtype must be {' or '.join(DTYPES)}, got {dtype!r}.")
    meta = checkpoint.find(checkpoint_path)
    place = checkpoint.absolute(checked_path(output, "output"))
    _check_free(place)
    _, params = checkpoint.load_weights(meta)
    meta, files = _files(meta, params, is_rounded=dtype == "bfloat16", license=identifier)
    try:
        if is_remote(place):
            _write(place, files)
        else:
            _write_at_once(place, files)
    except OSError as error:
        raise UserError(f"Cannot write {place}: {error.strerror or error}.") from error
    except Exception as error:  # Each store's library has errors of its own.
        raise UserError(f"Cannot write {place}: {checkpoint.brief(error)}.") from error
    return dataclasses.replace(meta, path=str(place))


def _files(
    meta: CheckpointMeta, params: Any, *, is_rounded: bool, license: str
) -> tuple[CheckpointMeta, dict[str, bytes]]:
    """What the folder says about itself, and what each of its files holds."""
    stored = tensors.round_kernels(params) if is_rounded else params
    try:
        weights = tensors.to_bytes(stored)
    except tensors.TensorsError as error:
        raise UserError(f"The model of {meta.path} cannot be exported: {error}.") from error
    before = meta.exported or Exported(sha256="", warm_start=bool(meta.config.init_from))
    exported = dataclasses.replace(
        before,
        sha256=sha256(weights),
        license=license or before.license,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        rounded=before.rounded or is_rounded,
        figures=_figures(meta, is_rounded and not before.rounded),
    )
    # Sounds that were drawn from the same weights elsewhere are known by this sum.
    loaded = jax.tree.map(lambda x, like: x.astype(like.dtype), stored, params)
    checksums = {"params": checkpoint.checksum(loaded)}
    meta = dataclasses.replace(
        meta, config=_without_places(meta.config), checksums=checksums, exported=exported, path=""
    )
    card = model_card(meta, stored).encode()
    meta = dataclasses.replace(
        meta, exported=dataclasses.replace(exported, card_sha256=sha256(card))
    )
    about = json.dumps(meta.to_dict(), indent=2) + "\n"
    return meta, {META: about.encode(), WEIGHTS: weights, CARD: card}


def _without_places(config: TrainConfig) -> TrainConfig:
    """The config without the fields that are `PRIVATE`."""
    values = config.to_dict()
    for name in PRIVATE:
        section, _, field = name.rpartition(".")
        (values[section] if section else values)[field] = ""
    return TrainConfig.from_dict(values)


def _figures(meta: CheckpointMeta, is_newly_rounded: bool) -> dict[str, dict[str, Any]]:
    """By split, what was found of these weights: told by an earlier export, or in the run."""
    figures = dict(meta.exported.figures) if meta.exported else {}
    for file in sorted((meta.run / "evaluation").glob("*/evaluation.json")):
        found = read_evaluation(file)
        if found.step == meta.step and (found.likelihoods or found.metrics):
            values = dataclasses.asdict(found)
            del values["classifier"]  # A path.
            figures[file.parent.name] = json.loads(json.dumps(values))
    if is_newly_rounded:
        for split, values in figures.items():
            warnings = {**values["warnings"], "rounding": [_ROUNDED]}
            figures[split] = {**values, "warnings": warnings}
    return figures


def _check_free(place: epath.Path) -> None:
    """Raises UserError if there is anything in a place that is not an untouched export."""
    if not place.exists():
        return
    if not place.is_dir():
        raise UserError(f"{place} is a file; give the name of a folder that is to be made.")
    names = {path.name for path in place.iterdir()}
    if not names:
        return
    if META not in names:
        raise UserError(
            f"{place} exists already and is not an export of pf_jax: give another name."
        )
    if strange := names - set(FILES):
        raise UserError(
            f"{place} holds {min(strange)}, which no export makes and which would be lost: take "
            "it out, or give another name."
        )
    exported = checkpoint.find(place).exported
    if CARD in names and sha256((place / CARD).read_bytes()) != exported.card_sha256:
        raise UserError(
            f"{place / CARD} was changed since it was exported, which would be lost: take it out, "
            "or give another name."
        )


def _write(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    """Writes the files in their order; what is interrupted can be told and written again."""
    (folder / CARD).unlink(missing_ok=True)  # A card that is there is always that of the rest.
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _write_at_once(place: epath.Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder beside its place, and then moves it there; on an error all is as before."""
    partial, earlier = (
        place.parent / f".{place.name}.{os.getpid()}.{suffix}" for suffix in ("partial", "earlier")
    )
    try:
        _write(partial, files)
        try:
            if place.exists():
                place.rename(earlier)
            partial.rename(place)
        except BaseException:
            if earlier.exists():
                earlier.rename(place)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(earlier, ignore_errors=True)
