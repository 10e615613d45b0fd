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

    Divided as `Beethoven` is, by files of a minute: 0 to 211, 212 to 225 and 226 to 240. A minute
    has at most 960,512 samples, which is one window of the published Poolformer; SaShiMi's has
    131,072.
    """

    name = "youtubemix"
    ORIGIN = Origin(
        title="YouTubeMix, four hours of solo piano, in the archive of SaShiMi",
        url="https://huggingface.co/datasets/krandiash/youtubemix",
        citation="Goel et al.: SaShiMi, arXiv 2202.09729",
    )
    SOURCE = ARCHIVE
    PUBLISHED_FILES = 241
