"""Connections to Redis or Valkey, alone or in a cluster, and the scripts that run there."""
