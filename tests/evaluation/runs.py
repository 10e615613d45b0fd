"""Training runs written by hand, and pages taken apart."""

import html.parser
import json
import pathlib

from pf_jax.config import PoolformerConfig
from pf_jax.data import DataConfig
from pf_jax.training.checkpoint import CheckpointMeta
from pf_jax.training.config import TrainConfig

VOID = {"meta", "link", "img", "br", "wbr"}


def config(*, batch_size=4, window=256, **data):
    return TrainConfig(
        model=PoolformerConfig(
            widths=(8, 16), depths=(1, 1), pool_factors=(4,), pool_groups=1, num_heads=2
        ),
        data=DataConfig(name="demo", window=window, sample_rate=8_000, **data),
        batch_size=batch_size,
        num_steps=20,
    )


def write_log(run: pathlib.Path, *entries):
    """Each entry is a step, a split and numbers."""
    run.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": s, "split": split, **numbers}) for s, split, numbers in entries]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def write_checkpoint(run: pathlib.Path, step, evaluations, config, fingerprint="f"):
    """What a checkpoint says of itself, without its arrays."""
    meta = CheckpointMeta(step, config, fingerprint, evaluations)
    directory = run / "checkpoints" / str(step) / "meta"
    directory.mkdir(parents=True)
    (directory / "metadata").write_text(json.dumps(meta.to_dict()))
    (directory / "commit_success.txt").touch()  # Without it Orbax reads nothing from a store.


def write_evaluation(run: pathlib.Path, values, split="test"):
    directory = run / "evaluation" / split
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "evaluation.json").write_text(json.dumps(values))


EVALUATION = {
    "checkpoint": "somewhere",
    "step": 10,
    "split": "test",
    "dataset": "demo",
    "parameters": 12_345,
    "quantization": "sashimi_mu_law",
    "normalization": "recording",
    "bits_per_sample": {
        "carried": {
            "value": 1.5,
            "low": 1.25,
            "high": 1.75,
            "num_samples": 1_000,
            "num_recordings": 7,
        },
        "independent": {"value": 1.625, "num_samples": 1_000, "num_recordings": 7},
    },
    "distribution": {
        "fid": 12.5,
        "inception_score": 2.5,
        "modified_inception_score": 22.5,
        "am_score": 0.5,
        "ndb": 11,
        "ndb_share": 0.11,
        "num_generated": 256,
        "warnings": ["Too <few> sounds."],
        "classifier": {"path": "c", "accuracy": {"test": 0.9}},
    },
    "mel_frechet_distance": {"value": 321.5, "num_clips": 64, "warnings": []},
}


class Page(html.parser.HTMLParser):
    """A page that must be well-formed: its elements, its cells by row, and all of its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.words, self.rows = [], [], [], []
        self.source = pathlib.Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"a name twice in {tag} {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "br":
            self.handle_data(" ")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a beginning"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]

    def column(self, title):
        """The cells of a column of the first table, by the name of the run."""
        header, *rows = self.rows
        number = header.index(title)
        return {row[0]: row[number] for row in rows if len(row) == len(header)}

    @property
    def text(self):
        return "".join(self.words)
