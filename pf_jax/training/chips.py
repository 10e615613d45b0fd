"""What accelerators have, by the names that JAX knows them by: one table for all that compares.

Peaks are dense and in bfloat16, by the exact device_kind: a longer name may be a slice of a GPU
("... MIG 1g.5gb"), and "TPU v5" is not "TPU v5 lite". A device is a chip, but of TPU v2, v3 and 7x
one of the chip's two cores, which then has half of what the chip has.

Sources. TPU: docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x}, read in November 2026; for
v2 Jouppi et al., CACM 63(7), 2020, doi 10.1145/3360307; the names are those of
jax/_src/pallas/mosaic/tpu_info.py. NVIDIA: data sheets and architecture white papers, half of what
is stated "with sparsity", of GeForce with accumulation in float32; the names are the driver's. V100
and T4 have no bfloat16: theirs is float16's.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """What one JAX device has; None where that is not known.

    Attributes:
        flops: Dense bfloat16 peak, FLOP/s.
        memory: What a program may take of its memory, bytes: less than the data sheet says, for the
            runtime keeps some. It is what libtpu 0.0.42 says when it refuses a program.
        bandwidth: Of that memory, bytes/s.
        interconnect: What it can send to other chips of its slice over all links together while it
            receives as much, bytes/s: half of the "bidirectional bandwidth" of the documentation.
        price: On demand, US$ per hour.
        price_source: What kind of price that is, and of when.
    """

    flops: float
    memory: int | None = None
    bandwidth: float | None = None
    interconnect: float | None = None
    price: float | None = None
    price_source: str = ""


# Google's own page of prices could be read in part only, so each is what others read there or in
# the billing catalogue, of whom two agree; prices differ between regions, so look before you pay.
# - v4: two public repositories ("GCP list price, on demand").
# - v5e: artificial-intelligence-wiki.com/ai-development/ai-hardware-infrastructure/tpu-v5-guide, of
#   27 January 2026, and a reading of the catalogue of europe-west4 of 11 August 2026.
# - v5p: the former; the latter has 2.40.
# - v6e: a public repository; the reading of europe-west4 has a tenth more, 2.97.
# - 7x: none was found.
_PRICES = "US$ list price on demand, as others quoted it in 2026"

# Of v4 the page has what a pod of 4,096 chips can all-reduce, 1.1 PB/s; the same figure of v5e is
# what its 256 chips can send.
_V4 = Chip(275e12, int(30.75 * 2**30), 1200e9, 1.1e15 / 4096, 3.22, _PRICES)
_V5E = Chip(197e12, int(15.75 * 2**30), 819e9, 400e9 / 2, 1.20, _PRICES)
_V5P = Chip(459e12, int(95.74 * 2**30), 2765e9, 1200e9 / 2, 4.20, _PRICES)
_V6E = Chip(918e12, int(31.25 * 2**30), 1638e9, 800e9 / 2, 2.70, _PRICES)

CHIPS = {
    "TPU v2": Chip(46e12 / 2),
    "TPU v3": Chip(123e12 / 2),
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Chip(2307e12 / 2, int(94.75 * 2**30), 7380e9 / 2, 1200e9 / 4),
    "NVIDIA GB200": Chip(2500e12),
    "NVIDIA B200": Chip(2250e12),
    "NVIDIA GH200 480GB": Chip(989.5e12),
    "NVIDIA H200": Chip(989.5e12),
    "NVIDIA H200 NVL": Chip(835.5e12),
    "NVIDIA H100 80GB HBM3": Chip(989.5e12),
    "NVIDIA H100 NVL": Chip(835.5e12),
    "NVIDIA H100 PCIe": Chip(756.5e12),
    "NVIDIA A100-SXM4-40GB": Chip(312e12),
    "NVIDIA A100-SXM4-80GB": Chip(312e12),
    "NVIDIA A100-PCIE-40GB": Chip(312e12),
    "NVIDIA A100 80GB PCIe": Chip(312e12),
    "NVIDIA A40": Chip(149.7e12),
    "NVIDIA A10": Chip(125e12),
    "NVIDIA L40S": Chip(362.05e12),
    "NVIDIA L40": Chip(181.05e12),
    "NVIDIA L4": Chip(121e12),
    "NVIDIA RTX A6000": Chip(154.8e12),
    "NVIDIA GeForce RTX 5090": Chip(209.5e12),
    "NVIDIA GeForce RTX 4090": Chip(165.2e12),
    "NVIDIA GeForce RTX 3090": Chip(71e12),
    "Tesla V100-SXM2-16GB": Chip(125e12),
    "Tesla V100-SXM2-32GB": Chip(125e12),
    "Tesla V100-PCIE-16GB": Chip(112e12),
    "Tesla V100-PCIE-32GB": Chip(112e12),
    "Tesla T4": Chip(65e12),
}


def peak_flops(device_kind: str) -> float | None:
    """The dense bfloat16 peak of one JAX device in FLOP/s; None of a device that is not known.

    Args:
        device_kind: `jax.devices()[0].device_kind`.
    """
    chip = CHIPS.get(device_kind)
    return None if chip is None else chip.flops
