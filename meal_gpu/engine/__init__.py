"""Algorithm 1: the rounds, the query procedure, and who labels.

`rounds` is Algorithm 1, `acquire` its query procedure, `oracle` who labels. `experiment` makes ready what they work on
(`feasible`, `splits`, `embeddings`); `outputs` writes what a round leaves. Stands on `stages`, `sharding` and
`planning`; how a run begins and ends is `meal_gpu.launch`'s.
"""
