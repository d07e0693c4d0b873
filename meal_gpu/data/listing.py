"""Which files stand in a directory or fit a pattern, how they pair up, and what is left out. Nothing is decoded."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import InputError, did_you_mean
from ..grid import Box, Size
from .imagefile import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Sample:
    """One image; ``name`` is unique within its split. ``mask`` is None where nobody has labelled."""

    name: str
    image: Path
    mask: Path | None
    box: Box | None = None
    """Of a tile: its pixels within its file, ``(y0, x0, y1, x1)``, which may reach beyond it."""
    file_size: Size = (0, 0)
    """Of a tile's file, (height, width)."""
    gone: bool = False
    """The file was there when a run began, and is no more; see `order`."""


def names_in(directory: Path, key: str, directories: bool = False) -> list[str]:
    """Sorted names of the files (or directories) in a directory, hidden ones left out."""
    try:
        with os.scandir(directory) as entries:
            found = sorted(entry.name for entry in entries
                           if not entry.name.startswith(".") and entry.is_dir() == directories)
    except OSError as error:
        problem = {FileNotFoundError: "does not exist", NotADirectoryError: "is not a directory"}.get(
            type(error), f"cannot be read ({error.strerror})")
        raise InputError(f"The directory {directory} {problem}.{_nearby(directory)} Check {key}.") from None
    for name in found:
        check_name(directory, name)
    return found


def _nearby(directory: Path) -> str:
    """What stands in the nearest parent that exists: that usually shows the mistake."""
    parent = directory.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    try:
        there = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return ""
    missing = directory.relative_to(parent).parts[0]
    listed = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    return f" {parent.absolute()} has {f'the directories {listed}' if there else 'no directories'}." + did_you_mean(
        missing, there)


def files_in(directory: Path, key: str, suffixes: tuple[str, ...] = (".png",), ending: str = "") -> dict[str, Path]:
    """Files of a directory whose name is ``<stem><ending><suffix>``, as stem -> path, sorted by stem.

    Raises `InputError` where the directory is missing, or two files have one stem.
    """
    found: dict[str, Path] = {}
    for name in names_in(directory, key):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes or not stem.endswith(ending):
            continue
        stem = stem.removesuffix(ending)
        if stem in found:
            raise InputError(f"{found[stem]} and {directory / name} have the same stem '{stem}', which names an image. "
                             "Rename or remove one of them.")
        found[stem] = directory / name
    return dict(sorted(found.items()))


def pair(images: Mapping[str, Path], masks: Mapping[str, Path] | None, where: Path, mask_name: str,
         suffixes: tuple[str, ...] = (".png",), some: bool = False) -> tuple[Sample, ...]:
    """Samples of images and masks of equal stems; ``mask_name`` says how a mask is called, for messages.

    ``some``: images may be without.
    """
    if not images:
        raise InputError(f"{where} holds no images: expected files ending in {', '.join(suffixes)} there.")
    if masks is None:
        return tuple(Sample(name, image, None) for name, image in images.items())
    masks = _composed_alike(images, masks)
    alone = [stem for stem in images if stem not in masks]
    if alone and not some:
        raise InputError(f"{images[alone[0]]} has no mask{_others(alone)}: expected "
                         f"{mask_name.replace('{}', alone[0])}. {_LACKING}")
    alone = [stem for stem in masks if stem not in images]
    if alone:
        raise InputError(f"{masks[alone[0]]} is a mask without image{_others(alone)}: no image of that name in {where}."
                         " Add the image or remove the mask.")
    return tuple(Sample(name, image, masks.get(name)) for name, image in images.items())


_LACKING = ("Add the mask or remove the image; where people are to label what has none, data.unlabelled: ask and "
            "query.oracle: people.")


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""


def check_name(directory: Path, name: str) -> None:
    """Raise `InputError` for a name that cannot be written into a manifest: its bytes are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{directory} holds a file whose name is not UTF-8: {name!a}. Rename it.") from None


def _composed_alike(images: Mapping[str, Path], masks: Mapping[str, Path]) -> Mapping[str, Path]:
    """Masks by the stems of their images: é is one character on one system and two on another, and looks the same."""
    free = {stem for stem in images if stem not in masks}
    by_form: dict[str, list[str]] = {}
    for stem in free:
        by_form.setdefault(unicodedata.normalize("NFC", stem), []).append(stem)
    found = {}
    for stem, mask in masks.items():
        same = [] if stem in images else by_form.get(unicodedata.normalize("NFC", stem), [])
        if len(same) > 1 or (same and same[0] in found):
            raise InputError(f"{mask} fits {len(same) or 2} images whose names differ only in how Unicode composes "
                             f"them: {', '.join(map(ascii, same))}. Rename one of them.")
        found[same[0] if same else stem] = mask
    return found


def is_pattern(given: str) -> bool:
    """Whether a key names files by a pattern, such as ``images/**/*.jpg``, and not a directory."""
    return re.search(r"[*?{]", given) is not None


def left_out(directory: Path, taken: Iterable[Path], key: str) -> tuple[str, ...]:
    """What else stands in a directory of images or masks and below it, in one line, where there is anything."""
    known, others = set(taken), Counter[str]()
    for folder, folders, files in os.walk(directory):
        for name in files:
            if Path(folder) / name in known:
                continue
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                others["hidden"] += 1
            elif Path(folder) != directory and suffix in IMAGE_SUFFIXES:
                others["in sub-folders"] += 1
            else:
                others[f"ending in {suffix}" if suffix else "without a suffix"] += 1
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    if not others:
        return ()
    listed = ", ".join(f"{n} {what}" for what, n in others.most_common(4))
    advice = f" To take those in sub-folders: {key}: {directory.name}/**/*" if others["in sub-folders"] else ""
    return (f"Left out of {directory}: {listed}{' and others' if len(others) > 4 else ''}.{advice}",)


def by_pattern(root: Path, images: str, masks: str | None, key: str,
               some: bool = False) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Samples of images that fit a pattern below ``root``, and what was left out, in words; ``some`` as in `pair`.

    ``masks`` is the place of an image's mask, in which ``{stem}`` is the image's stem and ``{dir}`` its folder below
    the part of ``images`` that has no wildcard. An image's name is that folder and stem. What is the mask of another
    image is no image, so that both may stand in one folder.
    """
    pattern = images if is_pattern(images) else f"{images}/*"
    parts = PurePosixPath(pattern).parts
    if PurePosixPath(pattern).is_absolute():
        raise InputError(f"{key} is '{images}', and a pattern is one below data.root: put the directory there.")
    fixed = root.joinpath(*parts[: next((i for i, part in enumerate(parts) if is_pattern(part)), len(parts) - 1)])
    names_in(fixed, key)
    if re.search(r"[{}]", pattern):
        raise InputError(f"{key} is '{images}': *, ** and ? stand for parts of names there; {{stem}} and {{dir}} "
                         "belong into the pattern of masks.")
    fitting = [path for path in root.glob(pattern) if path.is_file()
               and not any(part.startswith(".") for part in path.relative_to(root).parts)]
    pictures = sorted(path for path in fitting if path.suffix.lower() in IMAGE_SUFFIXES)

    def mask_of(path: Path) -> Path | None:
        if masks is None:
            return None
        folder = path.parent.relative_to(fixed).as_posix()
        where = masks if is_pattern(masks) else f"{masks}/{{dir}}/{{stem}}.png"
        return Path(os.path.normpath(root / where.replace("{dir}", folder).replace("{stem}", path.stem)))

    if masks is not None and is_pattern(masks) and "{stem}" not in masks:
        raise InputError(f"data.{'val_' * key.startswith('data.val')}masks is '{masks}': say where an image's mask "
                         "stands by {stem}, for example masks/{stem}_mask.png, and by {dir} for its folder.")
    of = {path: mask_of(path) for path in pictures}
    are_masks = {mask for path, mask in of.items() if mask is not None and mask != path}
    chosen = [path for path in pictures if path not in are_masks]
    if not chosen:
        raise InputError(f"No image fits {key}: {images} below {root}. Allowed endings: {', '.join(IMAGE_SUFFIXES)}.")
    samples: dict[str, Sample] = {}
    missing = []
    for path in chosen:
        check_name(path.parent, str(path))
        name = (path.parent.relative_to(fixed) / path.stem).as_posix()
        if name in samples:
            raise InputError(f"{samples[name].image} and {path} have the same stem '{name}', which names an image. "
                             "Rename or remove one of them.")
        mask = of[path]
        if mask is not None and not mask.is_file():
            missing.append((path, mask))
            mask = None
        samples[name] = Sample(name, path, mask)
    if missing and not some:
        path, mask = missing[0]
        raise InputError(f"{path} has no mask{_others(list(map(str, missing)))}: expected {mask}. {_LACKING}")
    told = []
    if len(fitting) > len(pictures):
        suffixes = Counter(path.suffix.lower() or "no suffix" for path in fitting if path not in of)
        listed = ", ".join(f"{n} of {suffix}" for suffix, n in suffixes.most_common(4))
        told.append(f"{len(fitting) - len(pictures)} files that fit {key} are no images: {listed}.")
    if masks is not None and is_pattern(masks):
        wild = re.sub(r"\{(stem|dir)\}", lambda found: "**" if found[1] == "dir" else "*", masks)
        unused = {path for path in root.glob(wild) if path.is_file()} - are_masks - set(chosen)
        if unused:
            told.append(f"{len(unused)} files that fit data.masks belong to no image: {min(unused)}"
                        f"{', ...' if len(unused) > 1 else ''}.")
    return tuple(samples[name] for name in sorted(samples)), tuple(told)
