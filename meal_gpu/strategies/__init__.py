"""Which patches to ask for: what a strategy may know (`view`), the loops under most of them, and the strategies.

`select` holds the paper's and the registry.
"""
