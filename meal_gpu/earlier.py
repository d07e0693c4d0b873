"""The labels that another run bought, where a run begins with them (``query.labels_of``)."""

from .config import Config
from .errors import InputError
from .paths import expand
from .records import Record, read_config, read_rounds


def bought(config: Config, seed: int) -> list[Record]:
    """All patches that the run ``query.labels_of`` had labelled under this seed, in the order in which it asked.

    Raises `InputError` where there is no such run, where it cut its images otherwise, or where people labelled for it:
    what they said lies in its folder, not in the masks of the data set.
    """
    assert config.query.labels_of is not None
    directory = expand(config.query.labels_of)
    if not (directory / "config.yaml").is_file():
        raise InputError(f"query.labels_of is {config.query.labels_of!r}, and that is no run: it lacks a config.yaml. "
                         "Name the directory that 'meal-gpu run' wrote.")
    other = read_config(directory)
    if other.query.oracle == "people":
        raise InputError(f"query.labels_of names {directory}, which people labelled: make a data set of it with "
                         f"'meal-gpu export {directory} --out DIR', and run the config that stands there.")
    if other.data.grid != config.data.grid:
        mine, its = (" x ".join(map(str, grid)) for grid in (config.data.grid, other.data.grid))
        raise InputError(f"query.labels_of names {directory}, whose images are cut into {its} patches, and data.grid "
                         f"is {mine}: use the same.")
    records = read_rounds(directory / f"seed-{seed}")
    if not records:
        seeds = sorted(int(folder.name[5:]) for folder in directory.glob("seed-*") if folder.name[5:].isdigit())
        raise InputError(f"query.labels_of names {directory}, which has no finished round of seed {seed}. It has "
                         f"{', '.join(map(str, seeds)) or 'none'}.")
    return [patch for record in records for patch in record["queried"]]


def first_patches(config: Config, n_images: int) -> int:
    """How many patches a run on a pool of so many images begins with; of several seeds, the most."""
    query = config.query
    if query.labels_of is not None:
        return max(len(bought(config, seed)) for seed in config.seeds)
    return (query.n_initial_images or n_images) * config.data.tiling().cells
