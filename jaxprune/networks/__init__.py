"""What must see the user's function, and so reads its jaxpr."""
