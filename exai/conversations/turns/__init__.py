"""Chat turns: the request, the prompt, the call of the model under a lease, and the outcome."""
