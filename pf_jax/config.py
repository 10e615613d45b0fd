"""The hyper-parameters of a Poolformer: small, flat, checked, and stored in every checkpoint."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from pf_jax import fields
from pf_jax.errors import UserError

EMBEDDINGS = ("sinusoidal", "sinusoidal_linear", "learned")
DTYPES = ("float32", "bfloat16")
NORMS = ("layer", "rms")
CONVOLUTIONS = ("none", "full", "depthwise")
SSM_INITS = ("lin", "inv")
_CHOICES = {
    "embedding": EMBEDDINGS,
    "dtype": DTYPES,
    "norm": NORMS,
    "convolution": CONVOLUTIONS,
    "ssm_init": SSM_INITS,
}

Side = int | tuple[str, ...]
"""The blocks on one side of a pool: how many of `mixer`, or the mixer of each."""


@dataclasses.dataclass(frozen=True)
class PoolformerConfig:
    """The shape of a Poolformer. Level 0 runs at the full rate, the last level at the lowest.

    A *block* is two ResBlocks, one with a layer that mixes over time (the mixer) and one with an
    MLP. Defaults are those of the published model wherever they do not depend on its size.

    Attributes:
        widths: The width (number of channels) of each level, e.g. `(128, 128, 128)`.
        depths: The blocks of each level. `4`: four blocks before the nested SkipBlock and four
            after it. `("convolution", "cglru")`: blocks with these mixers before it, and the same
            in reverse order after it. A pair of either, such as `(0, 8)` or `(("cglru",), 2)`:
            before and after. The innermost level nests nothing and takes a number or mixers.
        pool_factors: By how much the sequence shortens between a level and the next; one fewer than
            `widths`. Empty for a plain recurrent network without pooling.
        pool_groups: Groups of channels that pools map separately: 1 for a dense map of all
            channels, None for as many as there are channels, which needs one width at all levels.
        vocab_size: The number of different tokens. The first token of a sequence is predicted from
            the middle one, `vocab_size // 2`.
        embedding: "sinusoidal", fixed features of the token's level, "sinusoidal_linear", a learned
            linear map of such features, or a "learned" table for unordered tokens (text).
        mixer: The mixer of blocks that `depths` counts, a name in `pf_jax.layers.LAYERS`.
        mixer_gate: Whether the ResBlocks of mixers have a gate.
        mixer_expansion: Hidden width of the recurrences "cglru", "rglru" and "gru", and inner width
            of "mamba", over the level's width.
        recurrence_output: Whether a recurrence has a linear map from its hidden width back to the
            level's; without it the ResBlock's gate has the hidden width, as Griffin's has.
        num_heads: Diagonal blocks in the gates of the recurrences, or heads of attention.
        radii: The range of the decay's initial modulus `exp(-softplus(L))`, spread by area.
        turns: The range of the complex decay's initial angle at an open gate, in radians.
        convolution: A causal convolution that belongs to a recurrence: "full", all channels to all
            channels, with a norm, in front of its input map; "depthwise", behind that map; or
            "none".
        conv_width: Taps of every convolution.
        attention_window: How many positions of its level attention sees, its own included.
        state_size: States of each channel of the mixers "mamba", whose paper has 16, and "s4d", in
            conjugate pairs.
        ssm_init: How the frequencies of "s4d" start: as S4D-Lin ("lin") or S4D-Inv ("inv").
        norm: In front of every layer and of the head: "layer" (LayerNorm) or "rms" (RMSNorm).
        norm_epsilon: Added to the variance or mean square.
        mlp: The MLP of a block, "gated_mlp" (GeGLU) or "plain_mlp" (one hidden layer), or "none".
        mlp_expansion: Hidden width of the MLP over the level's width.
        sashimi_backbone: SaShiMi's SkipBlock (arXiv 2202.09729): the ResBlocks on one side of a
            level have one more residual connection around all of them, and what is up-pooled is
            delayed by a whole group.
        dropout: Probability with which an entry of a residual branch is dropped in training.
        dtype: Type of activations and matrix products; parameters and recurrences are float32.
        remat: Recompute each ResBlock in the backward pass: much less memory, one more forward.
        recurrence: The implementation of `pf_jax.linear_recurrence`.
        sequence_axis: For use inside of `shard_map` only, and never part of a checkpoint: the name
            of the mapped axis over whose devices sequences are split, in consecutive pieces of
            equal length. Empty for whole sequences.
    """

    widths: tuple[int, ...]
    depths: tuple[Side | tuple[Side, Side], ...]
    pool_factors: tuple[int, ...] = ()
    pool_groups: int | None = None
    vocab_size: int = 256
    embedding: str = "sinusoidal"
    mixer: str = "cglru"
    mixer_gate: bool = True
    mixer_expansion: float = 2.0
    recurrence_output: bool = True
    num_heads: int = 8
    radii: tuple[float, float] = (0.9, 0.99)
    turns: tuple[float, float] = (0.0, 0.1 * math.pi)
    convolution: str = "none"
    conv_width: int = 3
    attention_window: int = 1024
    state_size: int = 64
    ssm_init: str = "lin"
    norm: str = "layer"
    norm_epsilon: float = 1e-6
    mlp: str = "gated_mlp"
    mlp_expansion: float = 2.0
    sashimi_backbone: bool = False
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
        if not _is_side(self.depths[-1]):
            raise UserError(
                "The last entry of depths is a number or a tuple of mixers, since the innermost "
                f"level has nothing to stand before or after; got depths={self.depths}."
            )
        numbers = [n for level in range(levels) for n in self.depth(level)]
        for name, values, least in (
            ("widths", self.widths, 1),
            ("depths", numbers, 0),
            ("pool_factors", self.pool_factors, 2),
        ):
            if min(values, default=least) < least:
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
            norm_epsilon="(0, inf)",
            mlp_expansion="(0, inf)",
            dropout="[0, 1)",
        )
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"{name} must be {' or '.join(choices)}, got {value!r}.")
        low, high = self.radii
        if not 0.0 < low <= high < 1.0:
            raise UserError(f"radii must be 0 < least <= greatest < 1, got {self.radii}.")
        if not (math.isfinite(self.turns[0]) and math.isfinite(self.turns[1])):
            raise UserError(f"turns must be two finite angles in radians, got {self.turns}.")
        if self.embedding == "sinusoidal" and self.widths[0] % 2:
            raise UserError(
                "The sinusoidal embedding is cosines and sines: the first width must be even, got "
                f"widths={self.widths}. Or use embedding='sinusoidal_linear'."
            )
        self._check_groups()
        self._check_heads()

    def _check_groups(self) -> None:
        if self.pool_groups is None:
            if len(set(self.widths)) > 1:
                raise UserError(
                    "pool_groups=None pools channel by channel, which needs one width at all "
                    f"levels, got widths={self.widths}; pool_groups=1 maps all channels together."
                )
        elif self.pool_factors and (
            self.pool_groups < 1 or math.gcd(*self.widths) % self.pool_groups
        ):
            raise UserError(
                f"pool_groups={self.pool_groups} must be at least 1 and divide every width; got "
                f"widths={self.widths}."
            )

    def _check_heads(self) -> None:
        for level, width in enumerate(self.widths):
            hidden = self.hidden(width)
            channels = {"attention": width, "rglru": hidden, "cglru": hidden // 2}
            for mixer in {mixer for side in self.blocks(level) for mixer in side}:
                if mixer == "cglru" and hidden % 2:
                    raise UserError(
                        "Half of the channels of the mixer 'cglru' are real parts: its hidden "
                        f"width must be even, and {self.mixer_expansion} times {width} gives "
                        f"{hidden}; change widths or mixer_expansion."
                    )
                if channels.get(mixer, 0) % self.num_heads:
                    what = "complex channels" if mixer == "cglru" else "channels"
                    raise UserError(
                        f"num_heads={self.num_heads} must divide the {channels[mixer]} {what} of "
                        f"the mixer {mixer!r} at width {width}; got widths={self.widths}."
                    )

    @property
    def num_levels(self) -> int:
        """The number of levels, the innermost one included."""
        return len(self.widths)

    @property
    def num_blocks(self) -> int:
        """The number of blocks of all levels."""
        return sum(sum(self.depth(level)) for level in range(self.num_levels))

    def blocks(self, level: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The mixers of a level's blocks, before and after the nested SkipBlock."""
        depth = self.depths[level]
        if not _is_side(depth):
            before, after = (self._mixers(side) for side in depth)
            return before, after
        before = self._mixers(depth)
        return before, () if level == self.num_levels - 1 else before[::-1]

    def depth(self, level: int) -> tuple[int, int]:
        """The numbers of blocks of a level before and after the nested SkipBlock."""
        depth = self.depths[level]
        if not _is_side(depth):
            before, after = (side if isinstance(side, int) else len(side) for side in depth)
            return before, after
        number = depth if isinstance(depth, int) else len(depth)
        return number, 0 if level == self.num_levels - 1 else number

    def hidden(self, width: int) -> int:
        """The hidden width of a recurrence at a level of the given width."""
        return max(1, round(self.mixer_expansion * width))

    def _mixers(self, side: Side) -> tuple[str, ...]:
        return (self.mixer,) * side if isinstance(side, int) else side

    @property
    def layers(self) -> set[str]:
        """The names of all layers in its ResBlocks."""
        sides = (side for level in range(self.num_levels) for side in self.blocks(level))
        return {*(mixer for side in sides for mixer in side), self.mlp} - {"none"}

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


def _is_side(depth: Any) -> bool:
    """Whether it stands for both sides of a level."""
    return isinstance(depth, int) or all(isinstance(mixer, str) for mixer in depth)
