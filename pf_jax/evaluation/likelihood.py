"""The likelihood of whole recordings under a model, each real sample scored exactly once."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float64, Int, Int64, UInt8

from pf_jax.data.windows import Windows
from pf_jax.errors import UserError
from pf_jax.poolformer import Poolformer, SkipBlockState
from pf_jax.training.hosts import gather
from pf_jax.training.state import Params, merge_model, split_model

_MAX_CHUNK = 2**16  # Tokens of a stretch that are scored at once.
_TOKENS_AT_ONCE = 2**18  # On a device, unless the caller says how many rows.
_SECTIONS = 64
_AXIS = "rows"


class Positions(NamedTuple):
    """Sums over bins of positions; bin `i` has those from `edges[i]` to below `edges[i + 1]`.

    Attributes:
        edges: Increasing, from 0.
        nats: Of the tokens in each bin.
        counts: How many tokens there are.
    """

    edges: Int64[np.ndarray, "bins+1"]
    nats: Float64[np.ndarray, "bins"]
    counts: Int64[np.ndarray, "bins"]

    def bits_per_sample(self) -> Float64[np.ndarray, "bins"]:
        """The mean of each bin; NaN where it is empty."""
        return np.where(self.counts, self.nats / np.maximum(self.counts, 1), np.nan) / math.log(2)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What a split costs under a model.

    Attributes:
        carried: Whether a recording was scored as one sequence, with the state carried from its
            beginning to its end; or else in independent windows, each of which starts anew.
        nats: `-log p` of each recording.
        num_samples: Its real samples.
        octaves: By position, in bins that double: 0, 1, 2 to 3, 4 to 7 and so on. Positions count
            from where a sequence starts: the recording, or the window.
        sections: By position, in equal bins.
    """

    carried: bool
    nats: Float64[np.ndarray, "recordings"]
    num_samples: Int64[np.ndarray, "recordings"]
    octaves: Positions
    sections: Positions

    @property
    def bits_per_sample(self) -> float:
        """The mean over all real samples."""
        return float(self.nats.sum() / self.num_samples.sum() / math.log(2))


class _Stretch(NamedTuple):
    """Tokens of a recording that are scored as one sequence."""

    recording: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def score(
    model: Poolformer,
    windows: Windows,
    *,
    carried: bool,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    on_progress: Callable[[int], None] = lambda num_tokens: None,
) -> Likelihood:
    """Scores a split.

    Recordings, or windows, are taken in pieces with the state carried from one to the next, so
    memory does not depend on how long they are. Processes (`pf_jax.training.hosts.join`) share the
    work, each on its own devices, and all get the whole result. It does not depend on how the work
    is shared, but for the rounding of float32.

    Args:
        model: The model.
        windows: The split as tokens, and how long independent windows are.
        carried: Whether the state is carried through each recording (`Likelihood.carried`).
        batch_size: Sequences at once, over the devices of this process; None for what is good.
        devices: Those of this process that share the work; None for all.
        on_progress: Is told of tokens that were scored.

    Returns:
        The likelihoods.

    Raises:
        UserError: The data is damaged, or the model gives some recording no finite likelihood.
    """
    everything = _stretches(windows, carried)
    longest = everything[0].length
    # Whoever has one recording more has a short one.
    stretches = everything[jax.process_index() :: jax.process_count()]
    period = math.prod(model.config.pool_factors)
    chunk = period * max(1, min(-(-longest // period), _MAX_CHUNK // period))
    devices = list(devices or jax.local_devices())[: max(1, len(stretches))]
    rows = _TOKENS_AT_ONCE // chunk if batch_size is None else batch_size // len(devices)
    rows = max(1, min(rows, -(-len(stretches) // len(devices))))

    sums = _Sums(windows, longest)
    scorer = _Scorer(model, rows, devices)
    pending = collections.deque()
    for first in range(0, len(stretches), scorer.num_rows):
        group = stretches[first : first + scorer.num_rows]  # Of much the same length.
        position = scorer.start()
        for offset in range(0, group[0].length, chunk):
            tokens = _tokens(windows, group, offset, (scorer.num_rows, chunk))
            nats, position = scorer.advance(tokens, position)
            pending.append((group, offset, nats))
            if len(pending) > 1:  # The devices work on the next ones while these are added up.
                on_progress(sums.add(*pending.popleft()))
    for last in pending:
        on_progress(sums.add(*last))
    return sums.over_processes(carried)


class _Scorer:
    """A model that scores rows of tokens, piece after piece, on several devices."""

    def __init__(self, model: Poolformer, rows: int, devices: Sequence[jax.Device]):
        """Puts the weights on the devices; `rows` is of each."""
        graphdef, params = split_model(model)
        on_devices = functools.partial(jax.pmap, axis_name=_AXIS, devices=devices)
        numbers = np.arange(len(devices))
        self._params = on_devices(lambda _, tree: tree, in_axes=(0, None))(numbers, params)
        self._advance = on_devices(functools.partial(_advance, graphdef))
        state = model.init_state(rows)
        previous = jnp.full((rows,), model.start_token)
        self._start = on_devices(lambda _: (state, previous))(numbers)
        self._shape = (len(devices), rows)
        self.num_rows = len(devices) * rows

    def start(self) -> tuple[SkipBlockState, Int[Array, "devices rows"]]:
        """Where sequences stand before their first token: the state, and the token before."""
        return self._start

    def advance(
        self, tokens: UInt8[np.ndarray, "rows time"], position: tuple[SkipBlockState, Array]
    ) -> tuple[Float[Array, "devices rows time"], tuple[SkipBlockState, Array]]:
        """The negative log-likelihood of each token in nats, and where the sequences stand then."""
        return self._advance(self._params, tokens.reshape(*self._shape, -1), position)


def _advance(graphdef: nnx.GraphDef, params: Params, tokens: Array, position: tuple):
    """`_Scorer.advance` on one device."""
    logits, state = merge_model(graphdef, params).prefill(tokens, *position)
    tokens = tokens.astype(jnp.int32)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return nats, (state, tokens[:, -1])


class _Sums:
    """What is added up, in float64."""

    def __init__(self, windows: Windows, longest: int):
        """Starts at zero; `longest` is the length of the longest sequence."""
        self._names = windows.recordings.names
        self._nats = np.zeros(len(self._names))
        self._num_samples = np.zeros(len(self._names), np.int64)
        octaves = 2 ** np.arange(math.ceil(math.log2(longest)) + 1)
        sections = np.linspace(0, longest, min(_SECTIONS, longest) + 1).round().astype(np.int64)
        self._edges = (np.concatenate([[0], octaves]), sections)
        self._bins = [np.zeros((2, len(edges) - 1)) for edges in self._edges]

    def add(self, group: Sequence[_Stretch], offset: int, nats: Array) -> int:
        """Adds the real tokens of a piece of some sequences, and returns how many these are."""
        nats = np.asarray(nats)
        nats = nats.reshape(-1, nats.shape[-1])
        total = 0
        for stretch, row in zip(group, nats[: len(group)], strict=True):
            row = row[: max(0, stretch.length - offset)].astype(np.float64)
            if not np.isfinite(row).all():
                raise UserError(
                    f"The model gives {self._names[stretch.recording]} a likelihood that is not "
                    "finite: its weights, or what it computes with them, are broken."
                )
            self._nats[stretch.recording] += row.sum()
            self._num_samples[stretch.recording] += len(row)
            for edges, bins in zip(self._edges, self._bins, strict=True):
                numbers = np.searchsorted(edges, offset + np.arange(len(row)), side="right") - 1
                for sums, weights in zip(bins, (row, None), strict=True):
                    sums += np.bincount(numbers, weights, len(sums))
            total += len(row)
        return total

    def over_processes(self, carried: bool) -> Likelihood:
        """The sums of all processes."""
        parts = (self._nats, self._num_samples, *self._bins)
        ends = np.cumsum([part.size for part in parts])[:-1]
        # Counts are exact in float64, up to 2^53.
        flat = sum(gather(np.concatenate([np.ravel(part) for part in parts])))
        nats, num_samples, *bins = np.split(flat, ends)
        octaves, sections = (
            Positions(edges, *_nats_and_counts(sums.reshape(2, -1)))
            for edges, sums in zip(self._edges, bins, strict=True)
        )
        return Likelihood(carried, *_nats_and_counts((nats, num_samples)), octaves, sections)


def _nats_and_counts(sums: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return sums[0], np.rint(sums[1]).astype(np.int64)


def _stretches(windows: Windows, carried: bool) -> list[_Stretch]:
    """What is scored as one sequence each, the longest first."""
    found = []
    for recording, length in enumerate(windows.recordings.lengths):
        step = length if carried else windows.window
        found += [
            _Stretch(recording, start, min(start + step, length))
            for start in range(0, length, step)
        ]
    return sorted(found, key=lambda stretch: -stretch.length)


def _tokens(
    windows: Windows, group: Sequence[_Stretch], offset: int, shape: tuple[int, int]
) -> UInt8[np.ndarray, "rows time"]:
    """A piece of each sequence; what is past its end, or in a row too many, is never looked at."""
    tokens = np.zeros(shape, np.uint8)
    for row, stretch in zip(tokens, group, strict=False):
        start, stop = stretch.start + offset, min(stretch.start + offset + len(row), stretch.stop)
        if start < stop:
            row[: stop - start] = windows.piece(stretch.recording, start, stop)
    return tokens
