"""Many runs on Dask's workers, and what that looks like in a terminal.

Stands on `meal_gpu.launch` and `sharding`.
"""
