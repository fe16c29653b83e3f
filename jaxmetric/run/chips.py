"""The limits of TPU chips, and the cost of a compiled program: memory, arithmetic, traffic between chips."""

import re
from typing import Any, NamedTuple


class Chip(NamedTuple):
    """Published peak figures of one chip.

    Attributes:
      name: as in a topology.
      memory: bytes of HBM.
      flops: operations in bfloat16 per second; a multiply-add counts as two.
      bandwidth: bytes per second between HBM and the cores.
      interconnect: bytes per second that a chip can send to its neighbors, over all links together.
      sides: the number of dimensions of a slice.
      most: the number of chips of the largest slice.

    References:
      Google Cloud TPU documentation, system architecture: pages on v5e, v5p and v6e.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    interconnect: float
    sides: int
    most: int


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", memory=16 * 2**30, flops=197e12, bandwidth=819e9, interconnect=200e9, sides=2, most=256),
        Chip("v5p", memory=95 * 2**30, flops=459e12, bandwidth=2765e9, interconnect=600e9, sides=3, most=6144),
        Chip("v6e", memory=32 * 2**30, flops=918e12, bandwidth=1640e9, interconnect=448e9, sides=2, most=256),
    )
}

# Bytes that a chip sends relative to the result, apart from the factor (N - 1) / N, if rings are used efficiently.
_SENT = {"all-gather": 1.0, "all-reduce": 2.0, "reduce-scatter": 1.0, "all-to-all": 1.0, "collective-permute": 1.0}
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(_SENT)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")


class Cost(NamedTuple):
    """The cost of one step on one chip, as the compiler counts it: the body of a loop counts once.

    Attributes:
      arguments: bytes of the state and of the chip's share of the batch.
      workspace: bytes of activations and everything else that exists only during a step.
      flops: arithmetic operations.
      traffic: bytes between HBM and the cores.
      sent: bytes that the chip sends to others, by kind of collective.
    """

    arguments: int
    workspace: int
    flops: float
    traffic: float
    sent: dict[str, float]

    @property
    def peak(self) -> int:
        """The bytes of HBM that a step needs; the state is donated, so the new state reuses its memory."""
        return self.arguments + self.workspace


class Roofline(NamedTuple):
    """Lower bounds of the seconds of a step, each for one limit."""

    compute: float
    memory: float
    interconnect: float


def cost_of(program: Any, num_chips: int) -> Cost:
    """Returns the cost of a compiled program (`jax.stages.Compiled`) on one of its chips."""
    memory, analysis = program.memory_analysis(), program.cost_analysis()
    unaliased = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Cost(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes + unaliased + memory.generated_code_size_in_bytes,
        analysis.get("flops", 0.0),
        analysis.get("bytes accessed", 0.0),
        sent_bytes(program.as_text(), num_chips),
    )


def sent_bytes(hlo: str, num_chips: int) -> dict[str, float]:
    """Returns the bytes that each chip sends in the collectives of a compiled program, by kind.

    Example:
      >>> sent_bytes("  %x = f32[8,4]{1,0} all-gather(%y), dimensions={0}", num_chips=4)
      {'all-gather': 96.0}
    """
    sent: dict[str, float] = {}
    for line in hlo.splitlines():
        found = _COLLECTIVE.search(line)
        if found:
            shape, kind, starts = found.groups()
            sizes = [_bytes_of(*array) for array in _ARRAY.findall(shape)]
            # An asynchronous collective lists its operands before its result; an all-reduce lists only the result.
            size = sum(sizes[len(sizes) // 2 :]) if starts and kind != "all-reduce" else sum(sizes)
            # The result of a reduce-scatter is a share of the bytes sent.
            whole = size * num_chips if kind == "reduce-scatter" else size
            sent[kind] = sent.get(kind, 0.0) + _SENT[kind] * whole * (num_chips - 1) / num_chips
    return sent


def roofline(cost: Cost, chip: Chip) -> Roofline:
    """Returns the minimum time of a step for each limit of the chip."""
    return Roofline(cost.flops / chip.flops, cost.traffic / chip.bandwidth, sum(cost.sent.values()) / chip.interconnect)


def _bytes_of(dtype: str, dims: str) -> float:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
    count = 1
    for size in filter(None, dims.split(",")):
        count *= int(size)
    return count * bits / 8
