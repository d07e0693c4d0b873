"""What a run will need and take: memory, disk, time, by arithmetic.

Stands on `stages`.
"""
