"""What is measured: a file for each ``meal-gpu bench`` command, and the stages of a round, each alone.

Stands on `baselines`, `subjects` and `timing`.
"""
