"""Front ends for the interfaces of frameworks, so that their stores run unchanged.

Each is a `Store` over a store of its framework, and imports that framework only if it has to make its objects.
"""
