"""Files become pixels: decoding, the raw store that they go into once, and the frames that come out of it.

Stands on `machine` and the kernels.
"""
