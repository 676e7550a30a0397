"""Searches of the web that a model asks for itself: the loop of requests, and the platform that runs them."""
