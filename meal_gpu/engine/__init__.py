"""Algorithm 1: the rounds, the query procedure, and who labels.

Stands on `stages`, `sharding` and `planning`; nothing here knows of run directories' begin and end (`meal_gpu.launch`).
"""
