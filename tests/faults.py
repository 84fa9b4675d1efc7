"""Faults of a line, for the link's tests."""

from __future__ import annotations

import math
import random

KINDS = ("drop", "repeat", "flip", "garble", "insert", "again")
"""A byte is lost, comes twice, has a bit flipped or is another; one comes from nowhere; some bytes come a second time."""


def damage(data: bytes, chance: random.Random, rate: float) -> tuple[bytes, int]:
    """`data` with faults, each byte having one with probability `rate`; how many there are."""
    result, number, at = bytearray(), 0, 0
    while rate > 0:
        fault = at + int(math.log(1 - chance.random()) / math.log(1 - rate))
        if fault >= len(data):
            break
        result += data[at:fault]
        byte, at, kind = data[fault], fault + 1, chance.choice(KINDS)
        number += 1
        if kind == "repeat":
            result += bytes([byte, byte])
        elif kind == "flip":
            result.append(byte ^ 1 << chance.randrange(8))
        elif kind == "garble":
            result.append(byte ^ chance.randrange(1, 256))
        elif kind == "insert":
            result += bytes([byte, chance.randrange(256)])
        elif kind == "again":
            result += data[fault : fault + 1] + data[max(0, fault - chance.randrange(64)) : fault + 1]
    return bytes(result + data[at:]), number
