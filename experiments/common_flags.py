"""Flags that several commands have: hosts that work together, and where a checkpoint's data is."""

import dataclasses
from collections.abc import Mapping

from absl import flags

from pf_jax.data.config import DataConfig
from pf_jax.training.hosts import join

flags.disclaim_key_flags()  # A flag that is defined here belongs to the command that asked for it.


class Hosts:
    """`--coordinator`, `--num_processes` and `--process_id`."""

    def __init__(self) -> None:
        """Defines the flags."""
        self._coordinator = flags.DEFINE_string(
            "coordinator",
            None,
            "HOST:PORT of the first of several hosts, where no cluster says so itself.",
        )
        self._num_processes = flags.DEFINE_integer(
            "num_processes", None, "How many hosts work together; 1 for this one alone.", 1
        )
        self._process_id = flags.DEFINE_integer(
            "process_id", None, "Which of them this one is, from 0.", 0
        )

    def join(self) -> None:
        """Makes this process one of them, before JAX is used.

        Raises:
            UserError: The flags do not fit together, or the others cannot be reached.
        """
        join(self._coordinator.value, self._num_processes.value, self._process_id.value)


class DataPlace:
    """`--data_path`, `--data_dir` and `--manual_dir`: data may be elsewhere than in training."""

    def __init__(self) -> None:
        """Defines the flags."""
        texts: Mapping[str, str] = {
            "path": "Of the data 'folder': where the sound files are on this machine.",
            "data_dir": "Where prepared data is kept, if elsewhere than in training.",
            "manual_dir": "Where archives are that need not be downloaded, likewise.",
        }
        self._flags = {
            field: flags.DEFINE_string("data_path" if field == "path" else field, None, text)
            for field, text in texts.items()
        }

    def apply(self, config: DataConfig) -> DataConfig:
        """The data config of a checkpoint, with what was given."""
        given = {field: flag.value for field, flag in self._flags.items() if flag.value is not None}
        return dataclasses.replace(config, **given)
