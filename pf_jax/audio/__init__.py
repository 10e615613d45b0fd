"""Sound as arrays: quantization, reading, writing, resampling."""

from pf_jax.audio.format import AudioFormat as AudioFormat
from pf_jax.audio.io import UnusableSoundError as UnusableSoundError
from pf_jax.audio.io import read as read
from pf_jax.audio.io import read_bytes as read_bytes
from pf_jax.audio.io import write as write
from pf_jax.audio.quantization import linear_decode as linear_decode
from pf_jax.audio.quantization import linear_encode as linear_encode
from pf_jax.audio.quantization import mu_law_decode as mu_law_decode
from pf_jax.audio.quantization import mu_law_encode as mu_law_encode
from pf_jax.audio.quantization import sashimi_mu_law_decode as sashimi_mu_law_decode
from pf_jax.audio.quantization import sashimi_mu_law_encode as sashimi_mu_law_encode
from pf_jax.audio.quantization import to_pcm as to_pcm
