"""Arithmetic on trees of any size and on any mesh; it knows no training and no network."""
