"""Makes `fixtures/sashimi.npz`: SaShiMi's quantization by PyTorch, for tests without PyTorch.

python -m tests.audio.make_sashimi_fixture    # needs PyTorch

The formulas are those of state-spaces/s4, `src/dataloaders/audio.py`; the operations are PyTorch's,
on float32 tensors, in the order that the code there has, on a processor with AVX2.
"""

import pathlib

import numpy as np

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "sashimi.npz"

# Low and high samples; (0, 0) stands for no stretch. In float64, the second, third and fourth would
# have another level for some samples.
EXTENTS = (
    (0, 0),
    (-21_255, 23_407),
    (-21, 31_616),
    (-1_605, 27_550),
    (-32_768, 32_767),
    (-1, 1),
    (-37, 20),
    (-700, 650),
    (-9_000, 14_500),
    (-15_000, 3_000),
    (-20_000, 20_000),
    (100, 5_000),
    (-5_000, -100),
    (0, 32_767),
)


def tokens(pcm, low, high):
    """The levels of 16-bit samples; without a stretch if `low` and `high` are 0."""
    import torch

    x = torch.from_numpy(pcm).float() / 2**15
    if (low, high) != (0, 0):
        least, most = torch.tensor([low, high]).float() / 2**15
        x = -1 + 2 * (x - least) / (most - least + 1e-6)
    mu = torch.tensor(255)
    y = torch.sign(x) * (torch.log1p(mu * torch.abs(x + 1e-8)) / torch.log1p(mu))
    y = (y + 1) / 2
    y *= 256 - 0.01
    y += 0.01 / 2
    return y.long().numpy()


def main():
    import torch

    thresholds = []
    for low, high in EXTENTS:
        pcm = np.arange(low, high + 1) if low < high else np.arange(-(2**15), 2**15)
        levels = tokens(pcm, low, high)
        assert (np.diff(levels) >= 0).all()
        # The least sample of each level from 1 on, or one past the greatest of all.
        first = np.searchsorted(levels, np.arange(1, 256))
        thresholds.append(np.append(pcm, pcm[-1] + 1)[first])
    y = torch.arange(256).float() / 128 - 1
    decoded = torch.sign(y) * (256 ** torch.abs(y) - 1) / 255
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        FIXTURE,
        extents=np.array(EXTENTS, np.int32),
        thresholds=np.array(thresholds, np.int32),
        decoded=decoded.numpy(),
    )


if __name__ == "__main__":
    main()
