"""Chance, drawn from a seeded generator at the price that a simulation of thousands of nodes can pay."""

from __future__ import annotations

from random import Random


def between(random: Random, low: int, high: int) -> int:
    """`random.randint(low, high)`, the same number for the same seed, without four calls and their checks."""
    span = high - low + 1
    bits = span.bit_length()
    value = random.getrandbits(bits)
    while value >= span:
        value = random.getrandbits(bits)
    return low + value
