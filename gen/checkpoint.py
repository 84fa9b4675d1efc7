"""Opening checkpoints, under the name that scripts use; the readers are in `gen/models`."""

from tritloom.gen.models import CheckpointError, check, open_checkpoint, open_shape

__all__ = ["CheckpointError", "check", "open_checkpoint", "open_shape"]
