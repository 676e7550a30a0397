"""The tools: what a client can call, each a thin shape around a service."""
