"""One chat completion: its request, its exchange over HTTP, and the meaning of its failures."""
