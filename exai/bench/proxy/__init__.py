"""A proxy process that counts round trips and adds latency."""
