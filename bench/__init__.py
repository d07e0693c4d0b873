"""``meal-gpu bench``: what a round costs, stage by stage, beside the machine's roofs and what others would do.

`commands` is its command line, `parts` hold what is measured, `show` prints it; below them `baselines`, `subjects`,
`result` and `timing`. Stands on everything in meal_gpu but the command line and sweeps.
"""
