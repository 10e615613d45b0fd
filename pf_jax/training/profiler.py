"""A trace of some steps of training, for TensorBoard's profile page or Perfetto."""

from collections.abc import Sequence
from typing import Any, Self

import jax
from etils import epath


class Profiler:
    """Records the steps from a first to a last one with `jax.profiler`; a context manager."""

    def __init__(self, steps: Sequence[int], workdir: epath.PathLike):
        """Nothing is recorded before the first step.

        Args:
            steps: The first and the last step; empty for none.
            workdir: The trace goes into `profile` in there.
        """
        self._first, self._last = steps or (0, 0)
        self._directory = epath.Path(workdir).expanduser() / "profile"
        self._is_recording = False

    def before(self, step: int) -> None:
        """To be called before a step begins."""
        if step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._is_recording = True

    def after(self, step: int, results: Any) -> None:
        """To be called when a step has begun; `results` are its own."""
        if step == self._last and self._is_recording:
            jax.block_until_ready(results)
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends what is being recorded."""
        if self._is_recording:
            self._stop()

    def _stop(self) -> None:
        self._is_recording = False
        jax.profiler.stop_trace()
