"""ResNeXt for small pictures (Xie et al., arXiv 1611.05431, section 5.3), here of sound.

A 3x3 convolution, three stages of bottlenecks of which the second and third halve the picture, the
mean over what is left of it, a linear layer. A bottleneck is a 1x1 convolution to the inner width,
a 3x3 convolution in `cardinality` groups that see nothing of each other, and a 1x1 convolution to
the outer width (figure 3c), each followed by batch normalization, and added to a shortcut.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pf_jax import fields
from pf_jax.errors import UserError

_NUM_STAGES = 3


@dataclasses.dataclass(frozen=True)
class ResNeXtConfig:
    """The shape of a network; the defaults are those of the published SC09 classifier.

    Attributes:
        depth: Layers, 2 and 9 for each bottleneck of a stage: 11, 20, 29 ...
        cardinality: Groups of the 3x3 convolutions.
        base_width: Channels of each group in the first stage; later stages have 2 and 4 times so
            many.
        widen_factor: The outer width of the first stage, in units of `stem_width`.
        stem_width: Channels of the first convolution.
        num_classes: Classes that are told apart.
    """

    depth: int = 29
    cardinality: int = 8
    base_width: int = 64
    widen_factor: int = 4
    stem_width: int = 64
    num_classes: int = 10

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            UserError: A field has a value of another type, or one that no network can have.
        """
        fields.check_types(self)
        fields.check_intervals(
            self,
            depth="[11, inf)",
            cardinality="[1, inf)",
            base_width="[1, inf)",
            widen_factor="[1, inf)",
            stem_width="[1, inf)",
            num_classes="[2, inf)",
        )
        if (self.depth - 2) % (3 * _NUM_STAGES):
            raise UserError(f"depth must be 11, 20, 29 or so on by nines, got {self.depth}.")

    @property
    def blocks(self) -> int:
        """Bottlenecks in each stage."""
        return (self.depth - 2) // (3 * _NUM_STAGES)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels between the bottlenecks of each stage."""
        return tuple(2**i * self.widen_factor * self.stem_width for i in range(_NUM_STAGES))

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Channels of the 3x3 convolutions of each stage."""
        return tuple(2**i * self.cardinality * self.base_width for i in range(_NUM_STAGES))

    @property
    def num_features(self) -> int:
        """Components of the vector before the last layer."""
        return self.widths[-1]


class GroupedConv(nnx.Module):
    """A convolution of pictures without bias, in groups of channels.

    Attributes:
        kernel: (size, size, channels of one group, channels out).
        stride: Pixels from one place to the next.
        groups: How many there are.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        rngs: nnx.Rngs,
    ):
        # He et al. (arXiv 1502.01852), of the connections out.
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        shape = (size, size, width_in // groups, width_out)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.stride = stride
        self.groups = groups

    def __call__(self, x: Float[Array, "batch height width c_in"]) -> Array:
        """Returns (batch, height / stride, width / stride, width_out), rounded up."""
        kernel = self.kernel[...]
        if self.groups == 1 or jax.default_backend() != "cpu":
            return self._convolve(x, kernel, self.groups)
        # On a CPU, XLA takes many times longer for groups (for gradients, a hundred times).
        parts = zip(
            jnp.split(x, self.groups, axis=-1),
            jnp.split(kernel, self.groups, axis=-1),
            strict=True,
        )
        return jnp.concatenate([self._convolve(*part, 1) for part in parts], axis=-1)

    def _convolve(self, x: Array, kernel: Array, groups: int) -> Array:
        margin = kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            ((margin, margin), (margin, margin)),
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class NormedConv(nnx.Module):
    """A convolution and the batch normalization of its channels.

    Attributes:
        conv: The convolution.
        norm: The normalization; when not training, by the averages that it gathered in training.
    """

    def __init__(self, width_in: int, width_out: int, size: int, *, rngs: nnx.Rngs, **options):
        self.conv = GroupedConv(width_in, width_out, size, rngs=rngs, **options)
        self.norm = nnx.BatchNorm(width_out, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width c_in"], *, train: bool) -> Array:
        """Returns (batch, height / stride, width / stride, width_out)."""
        return self.norm(self.conv(x), use_running_average=not train)


class Bottleneck(nnx.Module):
    """Narrow, look around in groups, widen, add to a shortcut (figure 3c).

    Attributes:
        reduce: To the inner width.
        look: 3x3, in groups.
        expand: To the outer width.
        shortcut: 1x1 where the width changes; else None, and the input itself is added.
    """

    def __init__(
        self,
        width_in: int,
        inner_width: int,
        width_out: int,
        *,
        stride: int,
        groups: int,
        rngs: nnx.Rngs,
    ):
        self.reduce = NormedConv(width_in, inner_width, 1, rngs=rngs)
        self.look = NormedConv(inner_width, inner_width, 3, stride=stride, groups=groups, rngs=rngs)
        self.expand = NormedConv(inner_width, width_out, 1, rngs=rngs)
        self.shortcut = (
            NormedConv(width_in, width_out, 1, stride=stride, rngs=rngs)
            if width_in != width_out
            else None
        )

    def __call__(self, x: Float[Array, "batch height width c_in"], *, train: bool) -> Array:
        """Returns (batch, height / stride, width / stride, width_out)."""
        y = nnx.relu(self.reduce(x, train=train))
        y = nnx.relu(self.look(y, train=train))
        y = self.expand(y, train=train)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, train=train)))


class ResNeXt(nnx.Module):
    """A network that tells mel spectrograms apart.

    Attributes:
        config: Its shape.
        stem: The first convolution.
        blocks: The bottlenecks of all stages, in order.
        head: From features to logits.
    """

    def __init__(self, config: ResNeXtConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = NormedConv(1, config.stem_width, 3, rngs=rngs)
        blocks, width = [], config.stem_width
        for stage, (outer, inner) in enumerate(
            zip(config.widths, config.inner_widths, strict=True)
        ):
            for number in range(config.blocks):
                stride = 2 if stage and not number else 1
                blocks.append(
                    Bottleneck(
                        *(width, inner, outer),
                        stride=stride,
                        groups=config.cardinality,
                        rngs=rngs,
                    )
                )
                width = outer
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(
            config.num_features,
            config.num_classes,
            kernel_init=nnx.initializers.he_normal(),
            rngs=rngs,
        )

    def __call__(
        self, spectrograms: Float[Array, "batch bands frames"], *, train: bool = False
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """What the network makes of spectrograms.

        Args:
            spectrograms: In decibels, as `mel_spectrogram` gives them.
            train: Whether batch normalization takes the statistics of this batch, and gathers them;
                else it takes those that it has gathered.

        Returns:
            The features, which is the mean over places before the last layer (and what the Frechet
            distance of SC09 is measured in), and the logits.
        """
        x = nnx.relu(self.stem(spectrograms[..., None], train=train))
        for block in self.blocks:
            x = block(x, train=train)
        features = jnp.mean(x, axis=(1, 2))
        return features, self.head(features)
