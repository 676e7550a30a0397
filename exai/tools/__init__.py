"""The tools that clients can call, each a thin layer over a service."""
