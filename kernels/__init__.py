"""Entropy kernels."""
