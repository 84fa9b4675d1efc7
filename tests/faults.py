"""Faults of a line, for the link's tests."""

from __future__ import annotations

import random

KINDS = ("drop", "repeat", "flip", "garble", "insert", "again")
"""A byte is lost, comes twice, has a bit flipped or is another; one comes from nowhere; some bytes come a second time later on."""


def damage(data: bytes, chance: random.Random, rate: float) -> tuple[bytes, int]:
    """`data` with faults, each byte having one with probability `rate`; how many there are."""
    result, number = bytearray(), 0
    for at, byte in enumerate(data):
        if chance.random() >= rate:
            result.append(byte)
            continue
        number += 1
        kind = chance.choice(KINDS)
        if kind == "repeat":
            result += bytes([byte, byte])
        elif kind == "flip":
            result.append(byte ^ 1 << chance.randrange(8))
        elif kind == "garble":
            result.append(byte ^ chance.randrange(1, 256))
        elif kind == "insert":
            result += bytes([byte, chance.randrange(256)])
        elif kind == "again":
            result.append(byte)
            result += data[max(0, at - chance.randrange(64)) : at + 1]
    return bytes(result), number
