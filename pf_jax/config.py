"""The hyper-parameters of a Poolformer: small, flat, checked, and stored in every checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from pf_jax import fields
from pf_jax.errors import UserError

EMBEDDINGS = ("sinusoidal", "learned")
DTYPES = ("float32", "bfloat16")
NORMS = ("rms", "layer")
MLPS = ("gated", "plain", "none")
SSM_INITS = ("lin", "inv")
_CHOICES = {
    "embedding": EMBEDDINGS,
    "dtype": DTYPES,
    "norm": NORMS,
    "mlp": MLPS,
    "ssm_init": SSM_INITS,
}


@dataclasses.dataclass(frozen=True)
class PoolformerConfig:
    """The shape of a Poolformer. Level 0 runs at the full rate, the last level at the lowest.

    Attributes:
        widths: The width (number of channels) of each level, e.g. `(64, 128, 256)`.
        depths: The number of ResBlocks of each level: `n` for n before and n after the nested
            SkipBlock, or a pair `(before, after)`. The innermost level nests nothing and takes `n`.
        pool_factors: By how much the sequence shortens between a level and the next; one fewer than
            `widths`. Empty for the plain recurrent network without pooling.
        vocab_size: The number of different tokens.
        embedding: "sinusoidal" features of the level for ordered tokens (audio, pixels), or a
            "learned" table for unordered ones (text).
        mixer: What mixes over time in a ResBlock, a name in `pf_jax.layers.MIXERS`.
        num_heads: Diagonal blocks in the gates of the RG-LRU, or heads of attention; divides every
            width.
        mixer_gate: Whether Griffin's recurrent block (the mixers "rglru", "rglru_complex" and
            "gru") has a gated branch.
        attention_window: How many positions of its level attention looks back on, its own included.
        mixer_expansion: Inner width of the mixer "mamba" over the level's width.
        state_size: States of each channel of the mixers "mamba", whose paper has 16, and "s4d", in
            conjugate pairs.
        ssm_init: How the frequencies of "s4d" start: as S4D-Lin ("lin") or S4D-Inv ("inv").
        conv_width: Taps of the causal depthwise convolution in front of the recurrence; 1 is a
            scale of each channel, without a look at the past.
        norm: In front of every branch and of the head: "rms" (RMSNorm) or "layer" (LayerNorm).
        mlp: The second branch of a ResBlock: "gated" (GeGLU), "plain" (one hidden layer), or "none"
            for mixers that do without.
        mlp_expansion: Hidden width of the MLP over the level's width.
        outer_residual: Whether ResBlocks in a row have one more residual connection, around all of
            them, as SaShiMi's have: `x = x + ResBlocks(x)`.
        dropout: Probability with which an entry of a residual branch is dropped in training.
        dtype: Type of activations and matrix products; parameters and recurrences are float32.
        remat: Recompute each ResBlock in the backward pass: much less memory, one more forward.
        recurrence: The implementation of `pf_jax.linear_recurrence`.
        sequence_axis: For use inside of `shard_map` only, and never part of a checkpoint: the name
            of the mapped axis over whose devices sequences are split, in consecutive pieces of one
            length. The parallel form then exchanges what the pieces have to know of each other; the
            recurrent form takes no notice. Empty for whole sequences.
    """

    widths: tuple[int, ...]
    depths: tuple[int | tuple[int, int], ...]
    pool_factors: tuple[int, ...] = ()
    vocab_size: int = 256
    embedding: str = "sinusoidal"
    mixer: str = "rglru"
    num_heads: int = 8
    mixer_gate: bool = True
    attention_window: int = 1024
    mixer_expansion: float = 2.0
    state_size: int = 64
    ssm_init: str = "lin"
    conv_width: int = 4
    norm: str = "rms"
    mlp: str = "gated"
    mlp_expansion: float = 2.0
    outer_residual: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False
    recurrence: str = "auto"
    sequence_axis: str = ""

    def __post_init__(self) -> None:
        """Turns lists (as JSON has them) into tuples and checks every field.

        Raises:
            UserError: A field has a value that no Poolformer can have.
        """
        fields.check_types(self)
        levels = len(self.widths)
        if levels == 0 or len(self.depths) != levels or len(self.pool_factors) != levels - 1:
            raise UserError(
                "A model of n levels needs n widths, n depths and n - 1 pool_factors; got "
                f"widths={self.widths}, depths={self.depths}, pool_factors={self.pool_factors}."
            )
        if isinstance(self.depths[-1], tuple):
            raise UserError(
                "The last entry of depths is a number, since the innermost level nests nothing to "
                f"stand before or after; got depths={self.depths}."
            )
        depths = [number for level in range(levels) for number in self.depth(level)]
        for name, numbers, least in (
            ("widths", self.widths, 1),
            ("depths", depths, 0),
            ("pool_factors", self.pool_factors, 2),
        ):
            if min(numbers, default=least) < least:
                raise UserError(
                    f"{name} must be at least {least} at every level, got {getattr(self, name)}."
                )
        fields.check_intervals(
            self,
            vocab_size="[2, inf)",
            num_heads="[1, inf)",
            attention_window="[1, inf)",
            mixer_expansion="(0, inf)",
            state_size="[1, inf)",
            conv_width="[1, inf)",
            mlp_expansion="(0, inf)",
            dropout="[0, 1)",
        )
        for width in self.widths:
            if width % self.num_heads:
                raise UserError(
                    f"num_heads={self.num_heads} must divide every width, but not {width}; "
                    f"got widths={self.widths}."
                )
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"{name} must be {' or '.join(choices)}, got {value!r}.")

    @property
    def num_levels(self) -> int:
        """The number of levels, the innermost one included."""
        return len(self.widths)

    @property
    def num_blocks(self) -> int:
        """The number of ResBlocks of all levels."""
        return sum(sum(self.depth(level)) for level in range(self.num_levels))

    def depth(self, level: int) -> tuple[int, int]:
        """The numbers of ResBlocks of a level `(before, after)` the nested SkipBlock."""
        depth = self.depths[level]
        if isinstance(depth, tuple):
            return depth
        return (depth, 0) if level == self.num_levels - 1 else (depth, depth)

    def to_dict(self) -> dict[str, Any]:
        """The config as a JSON-ready dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config from `to_dict`'s dictionary, or from JSON.

        Raises:
            UserError: A field is unknown, missing or has an impossible value.
        """
        return fields.from_dict(cls, values)
