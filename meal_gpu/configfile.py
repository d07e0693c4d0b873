"""Configs as people give them: YAML files, those that ship, and ``key=value`` on the command line."""

import itertools
from collections.abc import Hashable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, did_you_mean
from .files import read_given
from .paths import expand

CONFIG_BYTES = 2**20
"""A config that somebody wrote has no more."""
DEEPEST = 50
"""Levels of blocks within blocks."""
EXPANSION = 10
"""A text whose aliases (``*name``) stand for so many times its own values is no config."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one block, of which YAML would silently take the last.

    And a text whose values would take much more memory than it has bytes, or which is nested too deeply to be read.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"it is nested more than {DEEPEST} levels deep",
                                              self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        sizes: dict[int, int] = {}
        if node is not None and _expanded(node, sizes) > EXPANSION * len(sizes) + 10_000:
            raise yaml.composer.ComposerError(None, None, f"its aliases (*name) stand for {sizes[id(node)]:,} values",
                                              node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key, Hashable) and lines.setdefault(key, line) != line:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' stands in line {lines[key]} and again in line {line}: put all of it in one "
                    "place, since only one of them would be read")
        return super().construct_mapping(node, deep)


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values that a node stands for with all aliases written out; ``sizes`` gets that of every node."""
    if id(node) not in sizes:
        sizes[id(node)] = 0  # of an alias within itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = itertools.chain(*parts) if isinstance(node, yaml.MappingNode) else parts
        sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in parts)
    return sizes[id(node)]


def _parse(text: str | bytes) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def parse_yaml(text: str | bytes, source: Path) -> dict[str, Any]:
    """The keys of a YAML text. Raises `InputError`, beginning with its source, where it holds none."""
    try:
        values = _parse(text)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{source} holds {type(values).__name__}, not keys: see configs/camvid.yaml for the form.")
    return values


def shipped(sweeps: bool = False) -> list[str]:
    """Names of the configs, or of the sweeps, that come with meal-gpu. A sweep is a file with ``axes``."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files("meal_gpu.configs").iterdir()
                  if entry.name.endswith(".yaml") and ("\naxes:" in entry.read_text("utf-8")) == sweeps)


def read_yaml(path: Path, sweeps: bool = False) -> dict[str, Any]:
    """The keys of a YAML file, or of a config (a sweep) that ships with meal-gpu.

    Raises `InputError` where there is none, it cannot be read, or it is a sweep and a config is wanted, or the reverse.
    """
    path = expand(path)
    text, kind = None, "sweep" if sweeps else "config"
    if _there(path):
        try:
            text = read_given(path, CONFIG_BYTES, f"a {kind} may have").decode()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The config file {path} cannot be read: {error}. Give a text file in UTF-8.") from None
    elif path.name.removesuffix(".yaml") in (*shipped(), *shipped(sweeps=True)):
        # `configs/camvid.yaml` and `camvid` work from any directory.
        text = (files("meal_gpu.configs") / f"{path.name.removesuffix('.yaml')}.yaml").read_text("utf-8")
    if text is None:
        raise InputError(f"No {kind} file '{path}', and no shipped {kind} of that name. Shipped: "
                         f"{', '.join(shipped(sweeps))}.{did_you_mean(path.stem, shipped(sweeps))}")
    values = parse_yaml(text, path)
    if "axes" in values and not sweeps:
        raise InputError(f"{path} is a sweep (it has 'axes'), not the config of one run: meal-gpu sweep {path}")
    return values


def _there(path: Path) -> bool:
    """Whether there is a file, or what is none; a directory may have the name of a config that ships."""
    try:
        return path.exists() and not path.is_dir()
    except OSError:  # a name that is too long
        return False


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of ``a.b=c``. Raises `InputError` where it is not one."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: give key=value, for example --set train.epochs=10.")
    try:
        return key, _parse(text)
    except (yaml.YAMLError, ValueError):  # a ValueError is a date that does not exist
        raise InputError(f"--set {override}: '{text}' is not a YAML value.") from None


def put(values: dict[str, Any], key: str, value: Any, given: str) -> None:
    """Set ``a.b`` in nested keys, copying what is shared.

    Raises `InputError`, beginning with ``given``, where ``a`` has no keys below it.
    """
    *sections, last = key.split(".")
    for section in sections:
        child = values.get(section, {})
        if not isinstance(child, dict):
            raise InputError(f"{given}: {section} is {child!r} and has no keys below it.")
        values[section] = dict(child)
        values = values[section]
    values[last] = value
