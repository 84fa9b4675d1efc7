"""Sequencer and register bank."""
