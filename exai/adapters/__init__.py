"""EXAI as the store of agent frameworks; each module needs the framework that it is named for.

Invariant: an adapter uses the interface `exai.store`, so that it works in the process (`open_app`) and at a daemon
(`exai.client`).
"""
