"""Windows of fixed length over recordings: what one example is."""

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8

from pf_jax.data.config import DataConfig
from pf_jax.data.dataset import Recordings


class Windows:
    """The windows of a split, as tokens.

    For evaluation, windows are fixed: each recording from its start, without overlap, none left
    out. The last one of a recording may be shorter than the others; it is padded.

    For training, a recording has as many windows, and the stretch in which a window can begin is
    divided evenly between them: each begins at random within its own share. So no place in a
    recording is preferred, and nothing is padded but recordings shorter than a window.

    Attributes:
        recordings: The split.
        window: Tokens in a window.
    """

    def __init__(self, recordings: Recordings, config: DataConfig):
        self.recordings = recordings
        self.window = config.window
        self._format = config.format
        self._normalization = config.normalization
        self._lengths = np.array(recordings.lengths, np.int64)
        self._counts = -(-self._lengths // self.window)
        self._first = np.concatenate([[0], np.cumsum(self._counts)])  # Of each recording.

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def fullness(self) -> float:
        """The share of tokens in the fixed windows that are not padding."""
        return self.recordings.num_samples / (len(self) * self.window)

    def fixed(
        self, indices: Int64[np.ndarray, "batch"]
    ) -> tuple[UInt8[np.ndarray, "batch window"], Int32[np.ndarray, "batch"]]:
        """Returns windows for evaluation as one batch, and how many tokens of each are real.

        An index past the end gives a row of length 0.
        """
        recordings = self._recording_of(indices)
        starts = (indices - self._first[recordings]) * self.window
        return self._batch(recordings, starts, indices < len(self))

    def random(
        self, indices: Int64[np.ndarray, "batch"], uniform: Float64[np.ndarray, "batch"]
    ) -> tuple[UInt8[np.ndarray, "batch window"], Int32[np.ndarray, "batch"]]:
        """Returns windows for training as one batch, and how many tokens of each are real.

        Args:
            indices: Of windows, 0 to `len(self) - 1`.
            uniform: For each where it begins within its share, from 0 to 1.
        """
        recordings = self._recording_of(indices)
        num_starts = np.maximum(self._lengths[recordings] - self.window + 1, 1)
        number = indices - self._first[recordings]
        starts = ((number + uniform) * num_starts / self._counts[recordings]).astype(np.int64)
        return self._batch(recordings, np.minimum(starts, num_starts - 1), indices < len(self))

    def tokens(self, recording: int) -> UInt8[np.ndarray, "time"]:
        """Returns a whole recording, the fixed windows one after the other."""
        indices = range(int(self._first[recording]), int(self._first[recording + 1]))
        starts = [(index - indices[0]) * self.window for index in indices]
        return np.concatenate([self._read(recording, start) for start in starts])

    def piece(self, recording: int, start: int, stop: int) -> UInt8[np.ndarray, "stop-start"]:
        """Returns tokens `start` to `stop` of a recording, as the fixed windows have them.

        Raises:
            IndexError: There is no such recording, or it has no such samples.
        """
        if self._normalization != "window":
            return self._encoded(recording, start, stop)
        first = start // self.window * self.window  # What a token is depends on its whole window.
        windows = [self._read(recording, at) for at in range(first, stop, self.window)]
        return np.concatenate(windows)[start - first : stop - first]

    def _recording_of(self, indices: np.ndarray) -> np.ndarray:
        recordings = np.searchsorted(self._first, indices, side="right") - 1
        return np.minimum(recordings, len(self.recordings) - 1)

    def _batch(
        self, recordings: np.ndarray, starts: np.ndarray, real: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full((len(starts), self.window), self._format.padding, np.uint8)
        lengths = np.zeros(len(starts), np.int32)
        for row in np.flatnonzero(real):
            piece = self._read(int(recordings[row]), int(starts[row]))
            tokens[row, : len(piece)] = piece
            lengths[row] = len(piece)
        return tokens, lengths

    def _read(self, recording: int, start: int) -> UInt8[np.ndarray, "time"]:
        """Returns the tokens of one window, as many as are real."""
        stop = min(start + self.window, self.recordings.lengths[recording])
        return self._encoded(recording, start, stop)

    def _encoded(self, recording: int, start: int, stop: int) -> UInt8[np.ndarray, "stop-start"]:
        """Returns tokens; where windows are normalized, of exactly one of them."""
        samples = self.recordings.read(recording, start, stop)
        extent = None
        if self._normalization == "recording":
            extent = self.recordings.extents[recording]
        elif self._normalization == "window":
            extent = int(samples.min()), int(samples.max())
        return self._format.encode_stored(samples, extent)
