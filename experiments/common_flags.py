"""Flags that several commands have: hosts that work together, and where a checkpoint's data is."""

import dataclasses
from collections.abc import Mapping

from absl import flags

from experiments import cli
from pf_jax.data import Dataset, open_dataset
from pf_jax.data.config import DataConfig
from pf_jax.errors import UserError
from pf_jax.training.hosts import first_then_others, join

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
        holders = (self._coordinator, self._num_processes, self._process_id)
        cli.group("Several hosts", *holders, shared=True)

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
            "path": "The folder of sounds, if elsewhere than in training.",
            "data_dir": "Prepared data, if elsewhere than in training.",
            "manual_dir": "Archives that need not be downloaded, if elsewhere than in training.",
        }
        self._flags = {
            field: flags.DEFINE_string("data_path" if field == "path" else field, None, text)
            for field, text in texts.items()
        }
        cli.group("Where the data is", *self._flags.values(), shared=True)

    def open(self, config: DataConfig) -> tuple[Dataset, DataConfig]:
        """The data of a checkpoint, and its config with what was given.

        Raises:
            UserError: It is not to be had here.
        """
        given = {field: flag.value for field, flag in self._flags.items() if flag.value is not None}
        config = dataclasses.replace(config, **given)
        try:
            return first_then_others(lambda: open_dataset(config)), config
        except UserError as error:
            raise UserError(
                f"The checkpoint's data cannot be opened here: {str(error).rstrip('.')}. Say where "
                "it is by --data_path (a folder of sounds), --data_dir or --manual_dir."
            ) from error
