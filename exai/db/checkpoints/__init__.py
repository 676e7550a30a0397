"""Checkpoints of agents in the database."""
