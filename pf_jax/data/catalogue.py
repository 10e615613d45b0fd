"""Datasets by name."""

from collections.abc import Callable, Mapping

from pf_jax.data.beethoven import Beethoven
from pf_jax.data.builder import Builder
from pf_jax.data.cifar10 import Cifar10
from pf_jax.data.config import DataConfig
from pf_jax.data.dataset import Dataset
from pf_jax.data.demo import Demo
from pf_jax.data.enwik8 import Enwik8
from pf_jax.data.folder import Folder
from pf_jax.data.musicnet import Musicnet
from pf_jax.data.sc09 import SC09
from pf_jax.data.youtubemix import YouTubeMix
from pf_jax.errors import UserError
from pf_jax.fields import did_you_mean

DATASETS: Mapping[str, Callable[[DataConfig], Builder]] = {
    builder.name: builder
    for builder in (Demo, Folder, Musicnet, SC09, Beethoven, YouTubeMix, Enwik8, Cifar10)
}


def open_dataset(config: DataConfig) -> Dataset:
    """Opens a dataset, and prepares it first if that has not been done yet.

    Args:
        config: Names the dataset, and says at which rate and where it is kept.

    Returns:
        The dataset, open for reading.

    Raises:
        UserError: There is no such dataset, or it cannot be prepared.
    """
    if config.name not in DATASETS:
        raise UserError(f"Unknown dataset {config.name!r}{did_you_mean(config.name, DATASETS)}")
    builder = DATASETS[config.name](config)
    builder.prepare()
    return Dataset(builder)
