"""Makes the files in `fixtures/`: what PyTorch and librosa have to say, for tests without them.

python -m tests.evaluation.make_torch_fixture torch     # needs PyTorch
python -m tests.evaluation.make_torch_fixture librosa   # needs librosa
"""

import pathlib
import sys
from unittest import mock

import numpy as np

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
TINY = {
    "depth": 11,
    "cardinality": 2,
    "base_width": 2,
    "widen_factor": 1,
    "stem_width": 4,
    "num_classes": 10,
}


def make_network(shape: dict, seed: int = 0):
    """A PyTorch network with random weights and averages, in evaluation mode."""
    import torch

    from tests.evaluation.torch_resnext import TorchResNeXt

    torch.manual_seed(seed)
    network = TorchResNeXt(**shape)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(-0.5, 1.0)
    return network.eval()


def write_torch() -> None:
    import torch
    import torch.utils.serialization.config  # Reads its own source, which is hidden below.

    network = make_network(TINY)
    inputs = 80 * torch.rand(2, 32, 32) - 80
    with torch.no_grad():
        features = network.features(inputs[:, None])
        logits = network.classifier(features)
    for name in ("module", "dictionary"):
        for suffix, is_zip in (("zip", True), ("stream", False)):
            path = FIXTURES / f"{name}_{suffix}.pth"
            # The stream has the source text of each class, and where it lay.
            with (
                mock.patch("inspect.getsourcelines", return_value=(["# The source.\n"], 1)),
                mock.patch("inspect.getsourcefile", return_value="module.py"),
            ):
                torch.save(contents(network)[name], path, _use_new_zipfile_serialization=is_zip)
    arrays = {"inputs": inputs, "features": features, "logits": logits}
    np.savez_compressed(
        FIXTURES / "torch.npz", **{name: array.numpy() for name, array in arrays.items()}
    )


def contents(network) -> dict:
    """What people save: a module whole, as several GPUs have it, or a dictionary with its state."""
    import torch

    parallel = torch.nn.DataParallel(network)
    return {
        "module": parallel,
        "dictionary": {"epoch": 3, "state_dict": parallel.state_dict(), "accuracy": 0.5},
        "state": network.state_dict(),
    }


def sounds() -> np.ndarray:
    """A sweep in noise, a burst that decays, and a buzz that stops."""
    rng, time = np.random.default_rng(0), np.arange(16_000) / 16_000
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time)
    burst = 0.9 * rng.standard_normal(16_000) * np.exp(-9 * time)
    buzz = np.where(time < 0.4, 0.2 * np.sign(np.sin(2 * np.pi * 131 * time)), 0)
    noise = 0.01 * rng.standard_normal(16_000)
    return np.stack([sweep + noise, burst, buzz]).astype(np.float32)


def write_librosa() -> None:
    import librosa

    def spectrograms(waveforms, rate, edges):
        mels = [
            librosa.feature.melspectrogram(y=y, sr=rate, n_mels=32, pad_mode=edges)
            for y in waveforms
        ]
        return np.stack([librosa.power_to_db(mel, ref=np.max) for mel in mels])

    np.savez_compressed(
        FIXTURES / "librosa.npz",
        reflect=spectrograms(sounds(), 16_000, "reflect"),
        constant=spectrograms(sounds(), 16_000, "constant"),
        at_8000=spectrograms(sounds()[:, :7_000], 8_000, "reflect"),
    )


if __name__ == "__main__":
    {"torch": write_torch, "librosa": write_librosa}[sys.argv[1]]()
