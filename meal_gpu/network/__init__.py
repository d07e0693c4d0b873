"""The segmentation network f_θ: backbone, head, windows, and the features that a frozen backbone makes once.

Stands on `data` and `machine`.
"""
