"""Completions from Kimi, GLM and any number of OpenAI-compatible endpoints, through one client and one error tree."""
