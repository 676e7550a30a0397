"""`exai bench --door`: the cost of calls and connections on each transport."""
