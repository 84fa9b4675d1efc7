"""Models as their files describe them: readers of Hugging Face folders and GGUF files, and what they check."""

from tritloom.gen.models.check import CheckReport, check, open_checkpoint, open_shape
from tritloom.gen.models.checkpoint import Checkpoint
from tritloom.gen.models.problems import CheckpointError, Problem
from tritloom.gen.models.spec import ModelSpec

__all__ = ["CheckReport", "Checkpoint", "CheckpointError", "ModelSpec", "Problem", "check", "open_checkpoint", "open_shape"]
