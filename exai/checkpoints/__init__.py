"""Checkpoints of agents: their store, and what the cache holds of the newest one of each thread."""

from exai.checkpoints.service import CheckpointStore

__all__ = ["CheckpointStore"]
