"""What a compiled program needs of each device: memory, arithmetic, and what devices exchange."""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

# "%name = type operation(operands), attributes": a type has spaces if it is a tuple's.
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?\S+ = (.*?) ([a-z][a-z0-9-]*)\((.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply)=%?([\w.-]+)|branch_computations=\{(.*?)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])")
_DEVICES = re.compile(r"\b(?:replica_count|num_partitions)=(\d+)")


class Collective(NamedTuple):
    """All exchanges of one kind in a program.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter", "collective-permute" or "all-to-all".
        count: How many there are; those in a loop as often as it runs.
        bytes: Of their results on a device, all together.
        sent: What a device has to send at the least, where the devices of a group exchange as
            little as possible: e.g. of an all-reduce, twice the share that is not its own.
    """

    kind: str
    count: int
    bytes: int
    sent: int


class Program(NamedTuple):
    """What a compiled program needs of each device. All memory is in bytes.

    Attributes:
        arguments: Of the inputs, padded as the device lays them out.
        outputs: Of the results.
        aliased: Of those results that take the place of donated inputs.
        temporaries: Of what lives in between.
        code: Of the program itself.
        flops: Floating-point operations, as XLA counts them: a loop's body once, and of a kernel
            what it declares.
        bytes_accessed: Bytes moved from and to memory, likewise.
        collectives: What devices exchange, by kind; a loop's body as often as it runs, and once
            where the compiler does not know that.
        loops: How often each loop runs; 0 where the compiler does not know. If there are any, then
            `flops` and `bytes_accessed` are too small.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    flops: float
    bytes_accessed: float
    collectives: tuple[Collective, ...]
    loops: tuple[int, ...]

    @property
    def memory(self) -> int:
        """All of it at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def analyze(compiled: jax.stages.Compiled) -> Program:
    """Reads what the compiler has to say about a program, which need not be able to run here."""
    memory, costs, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    computations, entry = _computations(text)
    return Program(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=costs.get("flops", 0.0),
        bytes_accessed=costs.get("bytes accessed", 0.0),
        collectives=_collectives(computations, entry, text),
        loops=tuple(
            _trips(attributes) or 0
            for instructions in computations.values()
            for _, operation, attributes in instructions
            if operation == "while"
        ),
    )


_Instruction = tuple[str, str, str]  # Type, operation, and what stands behind it.


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions that call others or exchange something, by computation; the first's name."""
    computations, entry, current = {}, "", []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif match := _INSTRUCTION.match(line):
            _, operation, attributes = instruction = match.groups()
            if operation.startswith(_KINDS) or _CALLED.search(attributes):
                current.append(instruction)
    return computations, entry


def _collectives(
    computations: dict[str, list[_Instruction]], entry: str, text: str
) -> tuple[Collective, ...]:
    devices = math.prod(map(int, _DEVICES.findall(text.partition("\n")[0])))
    sums = collections.defaultdict(lambda: [0, 0, 0])
    for times, (result, operation, attributes) in _executed(computations, entry):
        kind = operation.removesuffix("-start")
        if kind not in _KINDS:
            continue
        size = _size(result, kind if operation.endswith("-start") else None)
        for place, number in enumerate((1, size, _sent(kind, size, attributes, devices))):
            sums[kind][place] += times * number
    return tuple(Collective(kind, *map(round, sums[kind])) for kind in _KINDS if kind in sums)


def _executed(
    computations: dict[str, list[_Instruction]], name: str, times: int = 1
) -> Iterator[tuple[int, _Instruction]]:
    """All instructions from a computation on, with how often they are executed."""
    for instruction in computations.get(name, ()):
        _, operation, attributes = instruction
        yield times, instruction
        if operation.endswith(("-done", "-update")):
            continue  # What it names was called by its "-start".
        trips = (_trips(attributes) or 1) if operation == "while" else 1
        for called, branches in _CALLED.findall(attributes):
            for each in [called] if called else re.findall(r"[\w.-]+", branches):
                yield from _executed(computations, each, times * trips)


def _trips(attributes: str) -> int | None:
    match = _TRIPS.search(attributes)
    return int(match[1]) if match else None


def _size(result: str, started: str | None) -> int:
    """The bytes of a type; of what an asynchronous collective starts, of what it will give."""
    sizes = [
        math.ceil(
            (8 if name == "pred" else int(bits))
            / 8
            * math.prod(map(int, filter(None, dims.split(","))))
        )
        for name, bits, dims in _ARRAY.findall(result)
    ]
    if started == "all-gather":  # Operands, then results.
        return sum(sizes[len(sizes) // 2 :])
    if started == "collective-permute":  # Operand, result, and two numbers.
        return sizes[1]
    return sum(sizes)


def _sent(kind: str, size: int, attributes: str, devices: int) -> float:
    """What each device of a group sends at least, given the bytes of its result."""
    if kind == "collective-permute":
        return size
    group = devices
    if match := _GROUPS.search(attributes):
        group = int(match[2]) if match[2] else match[1].count(",") + 1
    other = (group - 1) / group
    if kind == "all-reduce":
        return 2 * other * size
    return other * size * (group if kind == "reduce-scatter" else 1)
