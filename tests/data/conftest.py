import pytest

from pf_jax.data import open_dataset
from tests.data import archives


@pytest.fixture
def opened(tmp_path):
    """A function that writes an archive and opens the dataset; returns what was written, too."""

    def open_it(name, **options):
        manual = tmp_path / "manual"
        manual.mkdir(exist_ok=True)
        expected = getattr(archives, name)(manual, **options)
        return open_dataset(archives.config(tmp_path, name)), expected

    return open_it
