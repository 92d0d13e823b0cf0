"""Which structure a mask may have, and the best mask of that structure."""
