"""What it is measured on: a pool made ready, drawn Cityscapes files, and research code that does the same work.

Stands on `bench.result` and the engine.
"""
