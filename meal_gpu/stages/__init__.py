"""One verb each, plain functions: predict, train, evaluate, embed, select; and the pool that they work on.

`select` holds the strategies. Stands on `network` and `data`.
"""
