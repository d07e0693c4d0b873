"""People and their tools: what goes out to be labelled, what comes back, and what was taken of it.

A query goes out as a folder that Label Studio, CVAT and others import; answers come back in the tools' own formats, are
checked as a whole, and each is a line in ``labels.jsonl``. See docs/own-images.md.
"""
