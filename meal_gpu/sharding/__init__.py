"""A pool that has outgrown one process: ranges of its images, held by Dask's workers.

Stands on `stages` and `planning`.
"""
