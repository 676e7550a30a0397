"""`exai bench`: what each operation costs, counted on the wire and timed beside the least that could be done."""
