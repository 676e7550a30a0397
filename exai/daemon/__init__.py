"""The daemon: the application on its port, its workers and the order of its shutdown."""
