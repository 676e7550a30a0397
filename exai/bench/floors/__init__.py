"""The lower bounds beside which EXAI is measured: minimal clients and servers for the same data."""
