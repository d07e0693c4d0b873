"""Configs as people give them: YAML files, those that ship, and ``key=value`` on the command line."""

from collections.abc import Hashable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, did_you_mean
from .paths import expand


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one block, of which YAML would silently take the last."""

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


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


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
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The config file {path} cannot be read: {error}. Give a text file in UTF-8.") from None
    elif path.name.removesuffix(".yaml") in (*shipped(), *shipped(sweeps=True)):
        # `configs/camvid.yaml` and `camvid` work from any directory.
        text = (files("meal_gpu.configs") / f"{path.name.removesuffix('.yaml')}.yaml").read_text("utf-8")
    if text is None:
        raise InputError(f"No {kind} file '{path}', and no shipped {kind} of that name. Shipped: "
                         f"{', '.join(shipped(sweeps))}.{did_you_mean(path.stem, shipped(sweeps))}")
    try:
        values = _parse(text)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, not keys: see configs/camvid.yaml for the form.")
    if "axes" in values and not sweeps:
        raise InputError(f"{path} is a sweep (it has 'axes'), not the config of one run: meal-gpu sweep {path}")
    return values


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
