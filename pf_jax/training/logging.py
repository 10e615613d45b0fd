"""The log of a run: a progress bar, JSON lines, and TensorBoard events of the same numbers."""

import contextlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
from etils import epath
from jaxtyping import Int
from tqdm import tqdm

from pf_jax.errors import UserError
from pf_jax.formats import Format
from pf_jax.paths import is_remote
from pf_jax.training import tensorboard

_SECONDS_BETWEEN_LINES = 10.0  # Without a terminal, where every line stays.
_SECONDS_BETWEEN_UPLOADS = 30.0  # Of a whole file to an object store, which cannot append.
_MOST_EVENT_BYTES = 2**24  # In one file, which is then closed for another: see uploads.


class RunLog:
    """Tells a person, and writes down, how a run is going. A context manager.

    On a terminal there is a progress bar, elsewhere a plain line now and then; all on stderr. In
    the work directory, `metrics.jsonl` has one object a line, `{"step": .., "split": "train" or
    "validation", ...}`, written before the call returns, and `tensorboard/` has the same numbers,
    and texts and samples besides.

    Attributes:
        num_steps: Steps of the whole run.
        write: Whether anything is said or written at all.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        num_steps: int,
        resume_step: int = 0,
        write: bool = True,
        on_metrics: Callable[[dict[str, Any]], None] | None = None,
    ):
        """Opens the log, and takes out of it what an earlier run logged after `resume_step`.

        Args:
            workdir: Where the run is kept, a directory or a gs:// path; made if need be.
            num_steps: Steps of the whole run.
            resume_step: The step that the run goes on from, 0 for a new one.
            write: False makes every method do nothing, for all processes but the first.
            on_metrics: Is given each line of `metrics.jsonl`, from the first that is kept on; then
                nothing else tells of progress.

        Raises:
            UserError: The directory cannot be written.
        """
        self.num_steps = num_steps
        self.write = write
        if not write:
            return
        workdir = epath.Path(workdir).expanduser()
        metrics = workdir / "metrics.jsonl"
        self._events_directory = workdir / "tensorboard"
        with _writing(workdir):
            self._events_directory.mkdir(parents=True, exist_ok=True)
            kept = _drop_later_lines(metrics, resume_step)
        self._metrics = _Appender(metrics, kept)
        self._events = self._new_events()
        self._write_event(tensorboard.start_record(resume_step + 1))
        self._first_step, self._start = resume_step, time.monotonic()
        self._last_line = -math.inf
        self._on_metrics = on_metrics
        if on_metrics is not None:
            for line in kept.splitlines():
                on_metrics(json.loads(line))
        self._bar = None
        if sys.stderr.isatty() and on_metrics is None:
            self._bar = tqdm(
                total=num_steps,
                initial=resume_step,
                dynamic_ncols=True,
                bar_format="step {n_fmt}/{total_fmt} |{bar}| {remaining} left{desc}",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except UserError:
            if exception_type is None:  # Else the user has to hear of what ended the run instead.
                raise

    def advance(self, step: int) -> None:
        """Moves the progress bar to a finished step."""
        if self.write and self._bar is not None:
            self._bar.update(step - self._bar.n)

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the numbers of training at a step.

        Of them "loss", "bits_per_sample" and "samples_per_second" are shown as well.

        Raises:
            UserError: The disk is full, or the work directory cannot be written.
        """
        if not self.write:
            return
        self._record(step, "train", metrics)
        self.advance(step)
        if self._bar is not None:
            self._bar.set_description_str("".join(f", {part}" for part in _in_words(metrics)))
        elif self._on_metrics is not None:
            pass  # Whoever listens shows it.
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or step == self.num_steps:
            self._last_line = time.monotonic()
            parts = [f"step {step} of {self.num_steps}", *_in_words(metrics)]
            if self._first_step < step < self.num_steps:
                seconds_per_step = (self._last_line - self._start) / (step - self._first_step)
                left = tqdm.format_interval(seconds_per_step * (self.num_steps - step))
                parts.append(f"{left} left")
            self.message(", ".join(parts))

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the numbers of an evaluation on the validation split, and always shows them.

        Raises:
            UserError: The disk is full, or the work directory cannot be written.
        """
        if not self.write:
            return
        self._record(step, "validation", metrics)
        if self._on_metrics is None:
            self.message(", ".join([f"step {step}, validation", *_in_words(metrics)]))

    def samples(self, step: int, tokens: Int[np.ndarray, "samples time"], format: Format) -> None:
        """Logs what the model makes at a step, to be heard, seen or read in TensorBoard.

        Sounds are there one by one, and in one picture with their mel spectrograms; images are in
        one picture; texts are there one by one. Drawing takes about a second.

        Args:
            step: The step.
            tokens: Samples of one length, at least one.
            format: What the tokens mean.

        Raises:
            UserError: The disk is full, or the work directory cannot be written.
        """
        if not self.write:
            return
        with _writing(self._events_directory):
            record = tensorboard.samples_record(int(step), tokens, format)
        self._write_event(record)

    def text(self, tag: str, text: str) -> None:
        """Logs a text about the run as it starts, to be read in TensorBoard, letter by letter.

        It stands at the step that the run goes on from, 0 for a new one.

        Raises:
            UserError: The disk is full, or the work directory cannot be written.
        """
        if self.write:
            self._write_event(tensorboard.text_record(self._first_step, tag, text))

    def message(self, text: str) -> None:
        """Says something, above the progress bar where there is one."""
        if not self.write:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the progress bar and closes the files; closing twice does nothing more.

        Raises:
            UserError: The disk is full, or the work directory cannot be written.
        """
        if not self.write:
            return
        self.write = False
        if self._bar is not None:
            self._bar.close()
        try:
            self._metrics.close()
        finally:
            self._events.close()

    def _record(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes numbers down in both files."""
        numbers = {name: float(value) for name, value in metrics.items()}
        # JSON has no NaN and no infinity; a strict reader would stop at the line.
        finite = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        record = {"step": int(step), "split": split, **finite}
        self._metrics.append(json.dumps(record).encode() + b"\n")
        tagged = {f"{split}/{name}": value for name, value in numbers.items()}
        self._write_event(tensorboard.scalars_record(int(step), tagged))
        if self._on_metrics is not None:
            self._on_metrics(record)

    def _write_event(self, record: bytes) -> None:
        """Writes a record, in a new file if need be."""
        if self._events.size + len(record) > _MOST_EVENT_BYTES:
            self._events.close()
            self._events = self._new_events()
        self._events.append(record)

    def _new_events(self) -> "_Appender":
        """Opens the next event file."""
        # The name sorts by time, as TensorBoard reads, and is new even when resumed in one second.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        events = _Appender(self._events_directory / name)
        events.append(tensorboard.first_record())
        return events


class _Appender:
    """A file that grows: what was appended has left the process when `append` returns.

    An object store cannot append. There, the whole file is uploaded again, but not at every line.

    Attributes:
        size: Bytes in the file, of those written here and `content`.
    """

    def __init__(self, path: epath.Path, content: bytes = b""):
        self.size = len(content)
        self._path = path
        self._file = None
        self._content, self._uploaded = content, time.monotonic()
        if not is_remote(path):
            with _writing(path):
                self._file = open(path, "ab")  # noqa: SIM115, the log outlives this call.

    def append(self, data: bytes) -> None:
        """Appends the bytes."""
        self.size += len(data)
        with _writing(self._path):
            if self._file is not None:
                self._file.write(data)
                self._file.flush()
                return
            self._content += data
            if time.monotonic() - self._uploaded >= _SECONDS_BETWEEN_UPLOADS:
                self._upload()

    def close(self) -> None:
        """Writes what is left."""
        with _writing(self._path):
            if self._file is not None:
                self._file.close()
            else:
                self._upload()

    def _upload(self) -> None:
        self._path.write_bytes(self._content)
        self._uploaded = time.monotonic()


def _drop_later_lines(path: epath.Path, last_step: int) -> bytes:
    """Takes the lines of steps after `last_step` out of a file of JSON lines, and gives the rest.

    A line that is no JSON object with a step is dropped as well: `kill -9` can tear the last one.
    """
    if not path.exists():
        return b""
    content = path.read_bytes()
    lines = content.splitlines(keepends=True) if last_step else []  # A new run has no earlier one.
    kept = b"".join(line for line in lines if _step_of(line) <= last_step)
    if kept != content:
        if is_remote(path):
            path.write_bytes(kept)  # An object appears whole or not at all.
        else:
            temporary = path.with_suffix(".jsonl.tmp")
            temporary.write_bytes(kept)
            temporary.replace(path)
    return kept


def _step_of(line: bytes) -> float:
    """The step that a line was logged at; infinity if the line is torn."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _in_words(metrics: Mapping[str, float]) -> list[str]:
    """The numbers that a person watches."""
    words = []
    if "loss" in metrics:
        words.append(f"loss {metrics['loss']:.4f}")
    if "accuracy" in metrics:
        words.append(f"accuracy {100 * metrics['accuracy']:.2f} %")
    if "bits_per_sample" in metrics:
        words.append(f"{metrics['bits_per_sample']:.4f} bits/sample")
    if "samples_per_second" in metrics:
        words.append(f"{metrics['samples_per_second']:,.0f} samples/s")
    return words


@contextlib.contextmanager
def _writing(path: epath.Path) -> Iterator[None]:
    """Turns what can go wrong on a disk into one line for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"Cannot write {error.filename or path}: {reason}. "
            "Mend this and run the same command again; it goes on from the latest checkpoint."
        ) from error
