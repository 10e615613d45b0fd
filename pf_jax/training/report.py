"""What was found out about a compiled program, for people and for machines."""

import dataclasses
from typing import Any

from pf_jax.training.chips import Chip
from pf_jax.training.planning import Attempt, bounds
from pf_jax.training.program import Program


@dataclasses.dataclass
class Report:
    """A compiled program and what it is measured against.

    Attributes:
        title: What it is, on what.
        attempt: The attempt that succeeded, or the only one.
        chip: What a device has.
        devices: How many there are.
        samples: Samples that the program deals with, over all devices.
        batches: What `planning.largest` tried: windows over all devices, and bytes of a device.
        asked: The batch that was asked for.
        largest: The largest batch that was seen to fit; None if it was not looked for.
        times: How often a loop runs that holds nearly all of the program: the compiler counts once.
        model_flops: FLOPs of a device, where loops make the compiler's count meaningless; then its
            count of bytes is meaningless too.
        notes: What else is to be said, a line each.
    """

    title: str
    attempt: Attempt
    chip: Chip
    devices: int
    samples: int
    batches: dict[int, int] = dataclasses.field(default_factory=dict)
    asked: int | None = None
    largest: int | None = None
    times: int = 1
    model_flops: float | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def memory(self) -> dict[str, int]:
        """Bytes of a device, by what they are for."""
        kinds, program = dict(self.attempt.task.arguments), self.attempt.program
        if program is None:
            return kinds | {"temporaries and the rest": self.attempt.memory - sum(kinds.values())}
        return kinds | {
            "their padding": program.arguments - sum(kinds.values()),
            "temporaries": program.temporaries,
            "results": program.outputs - program.aliased,
            "code": program.code,
        }

    @property
    def program(self) -> Program | None:
        """The program, its counts corrected for loops; None if it does not fit."""
        program = self.attempt.program
        if program is None:
            return None
        if self.model_flops is not None:
            return program._replace(flops=self.model_flops, bytes_accessed=0.0)
        return program._replace(
            flops=program.flops * self.times, bytes_accessed=program.bytes_accessed * self.times
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON, in bytes, seconds and US$; all but the rate is of a device."""
        result = {
            "title": self.title,
            "notes": self.notes,
            "devices": self.devices,
            "memory": self.memory() | {"all": self.attempt.memory},
            "available": self.chip.memory,
            "batch_asked_for": self.asked,
            "batches_tried": self.batches,
            "largest_batch": self.largest,
            "fits": self.attempt.program is not None,
        }
        if (program := self.program) is None:
            return result
        least = bounds(program, self.chip)
        return result | {
            "flops": program.flops,
            "bytes_accessed": program.bytes_accessed,
            "collectives": [collective._asdict() for collective in program.collectives],
            "least_seconds": least._asdict(),
            "most_samples_per_second": self.samples / max(least),
            "least_dollars_per_billion_samples": self._cost(max(least)),
            "dollars_per_device_hour": self.chip.price,
        }

    def lines(self) -> list[str]:
        """All of it as text."""
        lines = [self.title, *self.notes, "", "memory of a device, GiB"]
        lines += [f"  {kind:<26}{_gib(size):>7}" for kind, size in self.memory().items()]
        verdict = "it fits" if self.attempt.program else "it does not fit"
        total, available = _gib(self.attempt.memory), _gib(self.chip.memory)
        lines.append(f"  {'all':<26}{total:>7} of {available}: {verdict}")
        if len(self.batches) > 1:
            tried = (f"{n:,} {_gib(size)}" for n, size in sorted(self.batches.items()))
            lines.append(f"  windows, and what they need: {', '.join(tried)}")
        if self.largest:
            lines.append(f"  largest batch that was seen to fit: {self.largest:,} windows")
        return lines if self.program is None else [*lines, *self._work(self.program)]

    def _work(self, program: Program) -> list[str]:
        least = bounds(program, self.chip)
        sent = sum(collective.sent for collective in program.collectives)
        rows = [
            ("arithmetic", f"{program.flops / 1e12:.4g} TFLOP", "at the bfloat16 peak"),
            ("memory", f"{program.bytes_accessed / 1e9:.4g} GB", "at its bandwidth"),
            ("exchange", f"{sent / 1e9:.4g} GB sent", "over all links at once"),
        ]
        lines = ["", "work of a device, and the least time for it"]
        for (name, amount, how), seconds in zip(rows, least, strict=True):
            if seconds:
                binds = "  <- binds" if seconds == max(least) else ""
                lines.append(f"  {name:<12}{amount:>16} {how:<24}{_time(seconds):>9}{binds}")
        lines += [
            f"  {c.count} {c.kind}, {c.bytes / 1e6:.4g} MB in all" for c in program.collectives
        ]
        best = f"At best {_time(max(least))}: {self.samples / max(least):,.0f} samples per second"
        if self.chip.price is None:
            return [*lines, "", f"{best}. The price of these chips is not known; give --price."]
        return [
            *(*lines, "", f"{best}, US$ {self._cost(max(least)):.2g} for a billion samples"),
            f"(US$ {self.chip.price:.2f} an hour and device: {self.chip.price_source}).",
        ]

    def _cost(self, seconds: float) -> float | None:
        if self.chip.price is None:
            return None
        return self.chip.price * self.devices / 3600.0 * seconds / self.samples * 1e9


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
