"""Connections to providers: bytes, TLS, and the order in which many streams are read. The only user of httpcore."""
