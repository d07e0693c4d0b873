"""Benchmarks: ``meal-gpu bench``."""
