"""The dataset "youtubemix": four hours of solo piano, in pieces of one minute.

From one recording of "The Most Beautiful & Relaxing Piano Pieces", as in DeepSound's SampleRNN, in
the archive of Goel et al. (SaShiMi, arXiv 2202.09729):
https://huggingface.co/datasets/krandiash/youtubemix.
"""

from pf_jax.data.archive import Source
from pf_jax.data.beethoven import Beethoven
from pf_jax.data.origin import Origin

# Its publisher gives no checksum; each file in it has one, and their number is known.
ARCHIVE = Source(
    "https://huggingface.co/datasets/krandiash/youtubemix/resolve/main/youtube_mix.zip",
    "youtube_mix.zip",
    aliases=("youtubemix.zip",),
    note="Its publisher asks you to log in and to agree to share your contact, at "
    "https://huggingface.co/datasets/krandiash/youtubemix; then it is downloaded by itself when "
    "the environment variable HF_TOKEN is your token.",
)


class YouTubeMix(Beethoven):
    """Four hours of solo piano: 212 minutes to train on, 14 for validation, 15 for test.

    Divided as `Beethoven` is, minutes for pieces of eight seconds.
    """

    name = "youtubemix"
    ORIGIN = Origin(
        title="YouTubeMix, four hours of solo piano, in the archive of SaShiMi",
        url="https://huggingface.co/datasets/krandiash/youtubemix",
        citation="Goel et al.: SaShiMi, arXiv 2202.09729",
    )
    SOURCE = ARCHIVE
    PUBLISHED_FILES = 241
