"""Which of the tools' formats a file or folder is, by its content; and what it holds, checked."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data.rules import Rules
from ..errors import InputError
from ..files import parse_json
from . import coco, cvat, labelstudio, masks
from .answers import Answers, Book
from .archive import Bundle, Folder, Zip, read_file
from .classfile import check_beside
from .regions import Overlap

_TAKEN = ("Label Studio's JSON export, CVAT for images 1.1 (XML or zip), Segmentation mask 1.1 (zip), COCO instances "
          "with run lengths (JSON), or PNG masks named as the query's images (a folder or a zip)")
_PNG = b"\x89PNG\r\n\x1a\n"


def read_answers(path: Path, book: Book, rules: Rules, starts: Mapping[str, np.ndarray],
                 overlap: Overlap = "void") -> Answers:
    """All answers in a file or folder that a labelling tool wrote.

    ``starts`` are the predictions that went out. Raises `InputError` for whatever cannot be taken as it is.
    """
    if path.is_dir():
        return _bundle(Folder(path), book, rules, starts, overlap)
    content = read_file(path)
    if content.startswith(b"PK"):
        return _bundle(Zip(content, str(path)), book, rules, starts, overlap)
    if content.startswith(_PNG):
        asked = book.of_file(path.name, str(path))
        answer = masks.Answer(*asked, masks.read_one(content, str(path), asked[1], rules))
        return Answers(masks.TOOL, [answer])
    return read_content(content, str(path), book, starts, overlap)


def _bundle(bundle: Bundle, book: Book, rules: Rules, starts: Mapping[str, np.ndarray], overlap: Overlap) -> Answers:
    if next(bundle.within(masks.CVAT_FOLDER, ".png"), None) is not None:
        return masks.read_cvat(bundle, book, rules)
    for name in ("annotations.xml", "instances.json", "instances_default.json"):
        found = bundle.named(name)
        if found is not None:
            return read_content(bundle.read(found), f"{bundle.where}: {found}", book, starts, overlap)
    texts = [name for name in bundle.names() if name.lower().endswith((".json", ".xml")) and name not in masks.TABLES]
    pictures = [name for name in bundle.names() if name.lower().endswith(".png")]
    if pictures and not texts:
        if isinstance(bundle, Folder):
            check_beside(bundle.path, rules)
        return masks.read(bundle, book, rules)
    if len(texts) == 1:
        return read_content(bundle.read(texts[0]), f"{bundle.where}: {texts[0]}", book, starts, overlap)
    raise InputError(f"{bundle.where} holds {len(pictures)} PNG files and {len(texts)} JSON or XML files, and it is "
                     f"not clear what to take. Give one of these: {_TAKEN}.")


def read_content(content: bytes, where: str, book: Book, starts: Mapping[str, np.ndarray],
                 overlap: Overlap = "void") -> Answers:
    """All answers in JSON or XML. As `read_answers`."""
    begins = content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if begins == b"<":
        return cvat.read(cvat.parse(content, where), book, starts, where, overlap)
    if begins not in (b"{", b"["):
        raise InputError(f"{where} is of no format that is taken (CSV, YOLO and outlines lose pixels). Export from "
                         f"Label Studio as JSON, or give one of these: {_TAKEN}.")
    try:
        held = parse_json(content.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise InputError(f"{where} is no JSON that can be read ({error}). Export it again.") from None
    if coco.is_export(held):
        return coco.read(held, book, starts, where, overlap)
    if labelstudio.is_export(held):
        return labelstudio.read(held, book, where, overlap)
    raise InputError(f"{where} is JSON of no format that is taken. Give one of these: {_TAKEN}.")
