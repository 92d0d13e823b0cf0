"""Optax transformations and the pure functions beside them, one method a file."""
