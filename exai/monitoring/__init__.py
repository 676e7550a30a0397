"""Metrics, health, memory and stalls of this process, and the HTTP routes that show them."""
