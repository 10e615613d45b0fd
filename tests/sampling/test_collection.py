import dataclasses
import json

import numpy as np
import pytest

from pf_jax import PoolformerConfig, UserError, audio
from pf_jax.data import DataConfig
from pf_jax.sampling.collection import collect_samples
from pf_jax.training.checkpoint import CheckpointMeta
from pf_jax.training.config import TrainConfig
from tests.models import make_model

CONFIG = TrainConfig(
    model=PoolformerConfig(widths=(8,), depths=(1,), num_heads=2),
    data=DataConfig("demo", window=64, sample_rate=8_000),
)
META = CheckpointMeta(5, CONFIG, "data", checksums={"params": 7}, path="run/checkpoints/5")


@pytest.fixture(scope="module")
def model():
    return make_model(CONFIG.model)


def test_what_is_there_is_kept_and_what_is_missing_drawn(model, tmp_path):
    drawn = []
    first = collect_samples(model, META, tmp_path / "a", num_samples=3, num_steps=50)
    contents = [path.read_bytes() for path in first]
    first[0].write_bytes(contents[1])  # To see that it is not drawn again.
    first[2].write_bytes(contents[2][:60])  # As a killed process leaves it.
    again = collect_samples(
        model, META, tmp_path / "a", num_samples=5, num_steps=50, on_progress=drawn.append
    )
    assert [p.name for p in again] == [f"sample_{i:05d}.wav" for i in range(5)]
    assert sum(drawn) == 3 * 50
    assert again[0].read_bytes() == contents[1]
    assert again[1].read_bytes() == contents[1]
    assert again[2].read_bytes() == contents[2]
    whole = collect_samples(model, META, tmp_path / "b", num_samples=5, num_steps=50)
    assert [p.read_bytes() for p in again[1:]] == [p.read_bytes() for p in whole[1:]]
    waveform, rate = audio.read(whole[4])
    assert (len(waveform), rate) == (50, 8_000)
    assert np.ptp(waveform) > 0


def test_other_sounds_are_not_mixed_in(model, tmp_path):
    collect_samples(model, META, tmp_path, num_samples=1, num_steps=8)
    with pytest.raises(UserError, match=r"other seed and temperature|other temperature and seed"):
        collect_samples(model, META, tmp_path, num_samples=1, num_steps=8, temperature=0.5, seed=1)
    other = dataclasses.replace(META, checksums={"params": 8})
    with pytest.raises(UserError, match="other weights"):
        collect_samples(model, other, tmp_path, num_samples=1, num_steps=8)
    (tmp_path / "samples.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="damaged"):
        collect_samples(model, META, tmp_path, num_samples=1, num_steps=8)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="Cannot write"):
        collect_samples(model, META, file / "x", num_samples=1, num_steps=8)
