"""One verb each, plain functions: predict, train, evaluate, embed, select; and the pool that they work on.

Stands on `network` and `data`.
"""
