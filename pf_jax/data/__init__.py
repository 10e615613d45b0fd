"""Datasets, prepared once with TFDS and read through Grain; no TensorFlow."""

from pf_jax.data.catalogue import DATASETS as DATASETS
from pf_jax.data.catalogue import open_dataset as open_dataset
from pf_jax.data.config import DataConfig as DataConfig
from pf_jax.data.dataset import Dataset as Dataset
from pf_jax.data.dataset import Recordings as Recordings
from pf_jax.data.pipeline import TrainBatches as TrainBatches
from pf_jax.data.pipeline import eval_batches as eval_batches
from pf_jax.data.pipeline import train_batches as train_batches
