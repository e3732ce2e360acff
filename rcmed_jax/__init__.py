"""RCMed on JAX: medical images and words, correlated in a closed loop."""

__version__ = "0.1.0"
