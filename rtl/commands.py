"""Layouts of the units' command streams, made from firmware/commands.py."""

from __future__ import annotations

from amaranth.hdl import ShapeLike
from amaranth.lib import data

from tritloom.firmware.commands import Command

__all__ = ["command_layout"]


def command_layout(command: Command, **shapes: ShapeLike) -> data.StructLayout:
    """The layout of `command`; `shapes` says which fields are narrower in this machine."""
    fields: dict[str, ShapeLike] = {field.name: field.width for field in command.fields}
    assert not shapes.keys() - fields.keys(), f"no such field: {', '.join(shapes.keys() - fields.keys())}"
    return data.StructLayout(fields | shapes)
