"""Many runs on Dask's workers, and what that looks like in a terminal.

Stands on `meal_gpu.launch`, which makes each run, and on `sharding.cluster`, which finds the workers.
"""
