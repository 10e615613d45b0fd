"""Windows of fixed length over recordings: what one example is."""

import numpy as np
from jaxtyping import Int32, UInt8

from pf_jax.data.dataset import Recordings


class Windows:
    """The windows of a split: each recording from its start, without overlap, none left out.

    The last window of a recording may be shorter than the others; it is padded with silence.

    Attributes:
        recordings: The split.
        window: Samples in a window.
    """

    def __init__(self, recordings: Recordings, window: int):
        self.recordings = recordings
        self.window = window
        counts = -(-np.array(recordings.lengths, np.int64) // window)
        self._first = np.concatenate([[0], np.cumsum(counts)])  # Of each recording.

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "window"], int]:
        """Returns the tokens of a window, and how many of them are real."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        recording = int(np.searchsorted(self._first, index, side="right")) - 1
        start = (index - int(self._first[recording])) * self.window
        stop = min(start + self.window, self.recordings.lengths[recording])
        tokens = np.full(self.window, self.recordings.audio_format.silence, np.uint8)
        pcm = self.recordings.read(recording, start, stop)
        tokens[: stop - start] = self.recordings.audio_format.encode_pcm(pcm)
        return tokens, stop - start

    def batch(
        self, indices: np.ndarray
    ) -> tuple[UInt8[np.ndarray, "batch window"], Int32[np.ndarray, "batch"]]:
        """Returns windows as one batch; an index past the end gives a row of length 0."""
        silence = self.recordings.audio_format.silence
        tokens = np.full((len(indices), self.window), silence, np.uint8)
        lengths = np.zeros(len(indices), np.int32)
        for row, index in enumerate(indices):
            if index < len(self):
                tokens[row], lengths[row] = self[int(index)]
        return tokens, lengths
