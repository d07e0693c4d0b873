"""The real CamVid, made small."""

from pathlib import Path


def thinned(root: Path, to: Path, every: int = 40) -> Path:
    """Every ``every``-th image of CamVid, by links: the run stays real and takes seconds.

    The 10 + 3 images of every fortieth are batches of 8 and 2, from each of its sequences.
    """
    for folder in ("train", "trainannot", "val", "valannot"):
        (to / folder).mkdir(parents=True)
        for file in sorted((root / folder).iterdir())[::every]:
            (to / folder / file.name).symlink_to(file)
    return to
