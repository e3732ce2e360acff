"""Synthetic images of nine modalities with masks, drawn from a seed."""

from rcmed_jax.data.phantoms.scenes import MODALITIES, Phantom, draw
from rcmed_jax.data.phantoms.write import sample, write

__all__ = ["MODALITIES", "Phantom", "draw", "sample", "write"]
