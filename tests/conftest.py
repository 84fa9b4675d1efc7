"""Settings that every test shares."""

import os

# Single-threaded arithmetic: the machines that run the tests have two cores, and pytest-xdist uses both.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing is ever downloaded by a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_report_header():
    return f"TRITLOOM_SEED={os.environ.get('TRITLOOM_SEED', '1 (default; a number or `random`)')}"
