"""Verification of tokens."""
