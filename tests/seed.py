"""The seed of random tests."""

import os


def seed_from_environment() -> int:
    """`TRITLOOM_SEED`: a number, or `random`; 1 without it."""
    text = os.environ.get("TRITLOOM_SEED", "1")
    return int.from_bytes(os.urandom(4), "little") if text == "random" else int(text)
