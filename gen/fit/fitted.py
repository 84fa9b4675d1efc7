"""A configuration that fits, or the reason why none does."""

from __future__ import annotations

from typing import Any

from tritloom.firmware.errors import TritloomError
from tritloom.gen.fit.fit import FitResult, fit
from tritloom.gen.models.spec import ModelSpec


class DoesNotFit(TritloomError):
    """The model does not fit the board."""


def fitted(spec: ModelSpec, board: str, settings: dict[str, Any]) -> FitResult:
    """A configuration that fits the model to the board, with what is predicted for it. Raises `DoesNotFit`."""
    result = fit(spec, board, **settings)
    if not result.fits or result.config is None:
        lacks = ", ".join(str(need) for need in result.needs.values() if need.lacks) or result.binds
        raise DoesNotFit(f"{spec.name} does not fit {board}: {lacks}; choose a smaller model, another board or --context")
    return result
