"""Datasets by name."""

from collections.abc import Callable, Mapping

from pf_jax.data.builder import AudioBuilder
from pf_jax.data.config import DataConfig
from pf_jax.data.dataset import Dataset
from pf_jax.data.demo import Demo
from pf_jax.data.folder import Folder
from pf_jax.errors import UserError
from pf_jax.fields import did_you_mean

DATASETS: Mapping[str, Callable[[DataConfig], AudioBuilder]] = {
    builder.name: builder for builder in (Demo, Folder)
}
_NEXT = ("musicnet", "sc09", "beethoven", "youtubemix", "enwik8", "cifar10")


def open_dataset(config: DataConfig) -> Dataset:
    """Opens a dataset, and prepares it first if that has not been done yet.

    Args:
        config: Names the dataset, and says at which rate and where it is kept.

    Returns:
        The dataset, open for reading.

    Raises:
        UserError: There is no such dataset, or it cannot be prepared.
    """
    if config.name in _NEXT:
        raise UserError(
            f"The dataset {config.name!r} arrives with the next release; this one has "
            f"{' and '.join(DATASETS)} (any directory of sound files)."
        )
    if config.name not in DATASETS:
        raise UserError(f"Unknown dataset {config.name!r}{did_you_mean(config.name, DATASETS)}")
    builder = DATASETS[config.name](config)
    builder.prepare()
    return Dataset(builder, config.audio_format)
