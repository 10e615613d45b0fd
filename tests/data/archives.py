"""Small archives that look like those of the datasets, written without the code that reads them.

Each function writes into a directory what the publisher of a dataset offers, with its layout, its
file types and its quirks, and returns the samples that it wrote by the names in the archive.
"""

import io
import pathlib
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable

import numpy as np

from pf_jax.data import DataConfig

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Members = list[tuple[str, bytes | None]]  # A member without content is a directory.


def musicnet(directory: pathlib.Path, edit: Callable[[Members], Members] = list) -> dict:
    """Writes `musicnet.tar.gz`, float WAVs at 44.1 kHz, and `musicnet_metadata.csv`.

    Returns:
        By id: the waveform, the rows of notes, and the row of the table.
    """
    rng = np.random.default_rng(0)
    train = ("1727", "2567", "1788", "2131", "10000", "1876")
    test = ("2303", "1819")
    folders: list[Members] = []
    table = ["id,composer,composition,movement,ensemble,source,transcriber,catalog_name,seconds"]
    expected = {}
    for split, ids in (("test", test), ("train", train)):
        sounds, labels = [], []
        for number in ids:
            length = int(rng.integers(15_000, 50_000))
            time = np.arange(length) / 44_100
            waveform = (0.2 * np.sin(2 * np.pi * rng.uniform(200, 2_000) * time)).astype("<f4")
            starts = rng.permutation(np.arange(8)) * (length // 8)  # Not in the order of time.
            notes = [
                (int(s), int(s) + 1_500, 41, int(rng.integers(40, 80)), i / 2, 0.5)
                for i, s in enumerate(starts)
            ]
            lines = ["start_time,end_time,instrument,note,start_beat,end_beat,note_value"]
            lines += [f"{a},{b},{c},{d},{e},{f},Dotted Half" for a, b, c, d, e, f in notes]
            sounds.append((f"musicnet/{split}_data/{number}.wav", _float_wav(waveform, 44_100)))
            labels.append((f"musicnet/{split}_labels/{number}.csv", "\n".join(lines).encode()))
            row = (number, "Dvořák", "Serenade, in E", "2. Tempo di valse", "Quintet", "a", "b")
            row = (*row, "OP22", str(length // 44_100))
            table.append(",".join(f'"{value}"' if "," in value else value for value in row))
            expected[number] = waveform, notes, row
        folders += [labels, sounds] if split == "test" else [sounds, labels]
    members = [("musicnet", None)]
    for folder in folders:
        members += [(folder[0][0].rpartition("/")[0], None), *folder]
    _write_tar(directory / "musicnet.tar.gz", edit(members))
    (directory / "musicnet_metadata.csv").write_text("\n".join(table) + "\n")
    return expected


def sc09(directory: pathlib.Path, edit: Callable[[Members], Members] = list) -> dict:
    """Writes `speech_commands_v0.02.tar.gz`: many words, some clips short, two lists."""
    rng = np.random.default_rng(1)
    words = [
        "bed",
        "zero",
        "cat",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
    ]
    clips, lists, expected = [], {"validation": [], "testing": []}, {}
    for word in words:
        for speaker in ("0a7c2a8d", "a69b9b3e", "ffd2ba2f", "c50f55b8"):
            length = int(rng.choice([16_000, 16_000, 11_146]))
            pcm = rng.integers(-(2**15), 2**15, length).astype("<i2")
            name = f"{word}/{speaker}_nohash_{len(clips) % 3}.wav"
            clips.append((f"./{name}", _pcm_wav(pcm, 16_000)))
            expected[name] = pcm
            if speaker == "a69b9b3e":
                lists["validation"].append(name)
            elif speaker == "c50f55b8":
                lists["testing"].append(name)
    noise = rng.integers(-100, 100, 40_000).astype("<i2")
    members = [
        *[("./_background_noise_", None), ("./_background_noise_/README.md", b"Noise.")],
        ("./_background_noise_/white_noise.wav", _pcm_wav(noise, 16_000)),
        *[("./.DS_Store", b"litter"), ("./LICENSE", b"CC BY 4.0"), ("./README.md", b"Words.")],
        ("./testing_list.txt", "\n".join(lists["testing"]).encode() + b"\n"),
        *clips,
        ("./validation_list.txt", "\n".join(lists["validation"]).encode() + b"\n"),
    ]
    _write_tar(directory / "speech_commands_v0.02.tar.gz", edit(members))
    return expected


def zipped_piano(
    path: pathlib.Path,
    names: Iterable[str],
    samples: int,
    edit: Callable[[Members], Members] = list,
) -> dict:
    """Writes a zip of WAVs in disorder, the last one short, as a Mac would make it."""
    rng = np.random.default_rng(2)
    names = list(names)
    expected = {
        name: rng.integers(-20_000, 20_000, samples - 7 * (name == names[-1])).astype("<i2")
        for name in names
    }
    folder, _, file = names[0].rpartition("/")
    members = [(f"{folder}/", None), (f"{folder}/.DS_Store", b"litter")]
    for index in rng.permutation(len(names)):
        members.append((names[index], _pcm_wav(expected[names[index]], 16_000)))
    members.append((f"__MACOSX/{folder}/._{file}", b"litter"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in edit(members):
            if content is None:
                archive.mkdir(name)
            else:
                archive.writestr(name, content)
    return expected


def beethoven(directory: pathlib.Path, **options) -> dict:
    """Writes `beethoven.zip`."""
    names = [f"beethoven/{number}.wav" for number in range(50)]
    return zipped_piano(directory / "beethoven.zip", names, 800, **options)


def youtubemix(directory: pathlib.Path, **options) -> dict:
    """Writes `youtube_mix.zip`."""
    names = [f"youtube_mix/out{number:03d}.wav" for number in range(33)]
    return zipped_piano(directory / "youtube_mix.zip", names, 3_000, **options)


def enwik8(directory: pathlib.Path, size: int = 50_000) -> bytes:
    """Writes `enwik8.zip`."""
    page = "<page>\n  <title>Ærøskøbing &amp; 東京</title>\n  <text>'''[[Poolformer]]'''</text>\n"
    text = "".join(page.replace("]]", f"|{number}]]") for number in range(size // 40)).encode()
    with zipfile.ZipFile(directory / "enwik8.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", text[:size])
    return text[:size]


def cifar10(
    directory: pathlib.Path, images: int = 20, edit: Callable[[Members], Members] = list
) -> dict:
    """Writes `cifar-10-binary.tar.gz`.

    Returns:
        By name of the batch: labels, and pictures (images, height, width, rgb).
    """
    rng = np.random.default_rng(3)
    folder = "cifar-10-batches-bin"
    kinds = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    members = [(folder, None), (f"{folder}/readme.html", b"<html>")]
    members.append((f"{folder}/batches.meta.txt", "\n".join(kinds).encode() + b"\n\n"))
    expected = {}
    for name in ("data_batch_4", "test_batch", *(f"data_batch_{n}" for n in (1, 2, 3, 5))):
        labels = rng.integers(0, 10, images)
        pictures = rng.integers(0, 256, (images, 32, 32, 3)).astype(np.uint8)
        records = b"".join(
            struct.pack("B", label) + b"".join(picture[:, :, c].tobytes() for c in range(3))
            for label, picture in zip(labels, pictures, strict=True)
        )
        members.append((f"{folder}/{name}.bin", records))
        expected[name] = [kinds[label] for label in labels], pictures
    _write_tar(directory / "cifar-10-binary.tar.gz", edit(members))
    return expected


def config(tmp_path: pathlib.Path, name: str, **fields) -> DataConfig:
    """A config of the archive in `tmp_path / "manual"`."""
    modality = {"enwik8": "text", "cifar10": "image"}.get(name, "audio")
    fields = {
        "window": 3_072,
        "modality": modality,
        "data_dir": str(tmp_path / "data"),
        "manual_dir": str(tmp_path / "manual"),
        "verify_checksums": False,  # No small archive can have the checksum of the real one.
    } | fields
    return DataConfig(name, **fields)


def without(part: str) -> Callable[[Members], Members]:
    """An edit that drops the members whose names contain a text."""
    return lambda members: [member for member in members if part not in member[0]]


def _write_tar(path: pathlib.Path, members: Members) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _pcm_wav(pcm: np.ndarray, rate: int) -> bytes:
    data = pcm.astype("<i2").tobytes()
    header = struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return header + form + struct.pack("<4sI", b"data", len(data)) + data


def _float_wav(waveform: np.ndarray, rate: int) -> bytes:
    """MusicNet's headers have 58 bytes: a format with an extension, and a fact."""
    data = waveform.astype("<f4").tobytes()
    header = struct.pack("<4sI4s", b"RIFF", 50 + len(data), b"WAVE")
    form = struct.pack("<4sIHHIIHHH", b"fmt ", 18, 3, 1, rate, 4 * rate, 4, 32, 0)
    fact = struct.pack("<4sII", b"fact", 4, len(waveform))
    return header + form + fact + struct.pack("<4sI", b"data", len(data)) + data
