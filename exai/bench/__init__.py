"""`exai bench`: the cost of each operation, counted on the wire and timed beside a minimal implementation of it."""
