"""What TensorBoard reads: records of an event file, and the values in them that it shows."""

import re
import struct
import tempfile
import time
from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import Int
from tensorboardX.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
from tensorboardX.record_writer import masked_crc32c

from pf_jax.audio import AudioFormat, pictures
from pf_jax.formats import Format, ImageFormat, TextFormat

# TensorBoard drops or mangles control characters, which a model makes until it has learnt better.
# Unicode has a visible character for each. Lines and tabulators remain.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


def record(**event: object) -> bytes:
    """Returns an event of now, with the given fields of `Event`, as it stands in an event file.

    A record is the length of its data, a checksum of that, the data, and a checksum of that.

    tensorboardX's own writer is a thread behind a queue: when the disk is full, the thread dies and
    the queue blocks the training loop for ever. Bytes can be written where errors arrive.
    """
    data = event_pb2.Event(wall_time=time.time(), **event).SerializeToString()
    size = struct.pack("<Q", len(data))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (size, data))
    return size + next(checks) + data + next(checks)


def first_record() -> bytes:
    """Returns what an event file begins with."""
    return record(file_version="brain.Event:2")


def start_record(step: int) -> bytes:
    """Returns what hides all that earlier event files hold of a step and later ones."""
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return record(step=step, session_log=start)


def scalars_record(step: int, numbers: Mapping[str, float]) -> bytes:
    """Returns points of curves, each by its tag."""
    return _summary_record(
        step, [summary_pb2.Summary.Value(tag=t, simple_value=x) for t, x in numbers.items()]
    )


def text_record(step: int, tag: str, text: str) -> bytes:
    """Returns a text that is shown letter by letter, in a fixed width."""
    return _summary_record(step, [_text(tag, text)])


def samples_record(step: int, tokens: Int[np.ndarray, "samples time"], format: Format) -> bytes:
    """Returns what a model made, as sound, pictures or text.

    Each sound is `samples/000` and so on, and `samples/spectrograms` is a picture of all waveforms
    with their mel spectrograms. Images are one picture, `samples/images`. Each text is
    `samples/000` and so on.

    Raises:
        OSError: The directory of temporary files cannot be written.
        UserError: It cannot be written, or there are no samples or too many for one picture.
    """
    tags = [f"{i:03d}" for i in range(len(tokens))]
    with tempfile.TemporaryDirectory() as directory:  # What draws and writes sound wants a path.
        path = epath.Path(directory) / "sample"
        match format:
            case AudioFormat(sample_rate=rate):
                values = []
                for tag, row in zip(tags, tokens, strict=True):
                    format.write(path, row)
                    values.append(_audio(f"samples/{tag}", path.read_bytes(), rate, len(row)))
                pictures.draw_waveforms(path, [format.decode(row) for row in tokens], rate, tags)
                values.append(_image("samples/spectrograms", path))
            case ImageFormat():
                pictures.draw_images(path, np.stack([format.decode(row) for row in tokens]))
                values = [_image("samples/images", path)]
            case TextFormat():
                values = [
                    _text(f"samples/{tag}", format.decode(row))
                    for tag, row in zip(tags, tokens, strict=True)
                ]
            case _:
                raise TypeError(f"TensorBoard has nothing to show {format} with.")
    return _summary_record(step, values)


def _summary_record(step: int, values: list[summary_pb2.Summary.Value]) -> bytes:
    return record(step=step, summary=summary_pb2.Summary(value=values))


def _audio(tag: str, wav: bytes, sample_rate: int, num_samples: int) -> summary_pb2.Summary.Value:
    """Returns a sound with one channel."""
    audio = summary_pb2.Summary.Audio(
        sample_rate=sample_rate,
        num_channels=1,
        length_frames=num_samples,
        encoded_audio_string=wav,
        content_type="audio/wav",
    )
    return summary_pb2.Summary.Value(tag=tag, audio=audio)


def _image(tag: str, path: epath.Path) -> summary_pb2.Summary.Value:
    """Returns the picture in a file."""
    from PIL import Image  # Only pictures need it.

    with path.open("rb") as file, Image.open(file) as picture:
        (width, height), channels = picture.size, len(picture.getbands())
    image = summary_pb2.Summary.Image(
        height=height,
        width=width,
        colorspace=channels,
        encoded_image_string=path.read_bytes(),
    )
    return summary_pb2.Summary.Value(tag=tag, image=image)


def _text(tag: str, text: str) -> summary_pb2.Summary.Value:
    """Returns a text, fenced off from TensorBoard's Markdown and HTML."""
    text = text.translate(_VISIBLE)
    longest = max(map(len, re.findall("~+", text)), default=0)
    fence = "~" * max(3, longest + 1)  # Only as long a line as itself could end it.
    tensor = tensor_pb2.TensorProto(
        dtype="DT_STRING",
        tensor_shape=tensor_shape_pb2.TensorShapeProto(),
        string_val=[f"{fence}\n{text}\n{fence}".encode()],
    )
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
    return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
