"""``docs/configuration.md``: every key of a config, from the types and docstrings of `meal_gpu.config`.

    python -m meal_gpu.configs.document docs/configuration.md
"""

import ast
import inspect
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from meal_gpu.config import MACHINE_KEYS, Config, Section
from meal_gpu.configfile import shipped

COMMAND = "python -m meal_gpu.configs.document docs/configuration.md"
HEAD = f"""# Every key of a config

<!-- Written by `{COMMAND}`; do not edit: the words stand in meal_gpu/config.py,
meal_gpu/dataconfig.py, modelconfig.py and trainconfig.py. -->

A config is a YAML file of these keys, in these sections. What a file leaves out has the default. On the command line a
key has its full name: `--set train.epochs=10`. A key that does not exist, or a value that is not allowed, is refused
with the nearest valid name or the allowed range.

These configs ship with meal-gpu, and go by their names: {{configs}}.
[`configs/`](../configs) has them, with a comment beside each choice that the paper leaves open.
[Sweeps](many-runs.md) ship as well: {{sweeps}}.
"""
TAIL = f"""## What may change when a run goes on

`meal-gpu run --resume DIR --set KEY=VALUE` takes other values of these keys alone, since no query depends on them:
{', '.join(f'`{key}`' for key in MACHINE_KEYS)}.
"""
SECTIONS = {"": "The run", "data": "Images and masks", "model": "The network", "train": "Training",
            "query": "The rounds", "umap": "The embedding"}
"""Headings. A section that is not named here is headed by its name alone."""


def page() -> str:
    """The whole page, Markdown."""
    named = {"configs": ", ".join(f"`{name}`" for name in shipped()),
             "sweeps": ", ".join(f"`{name}`" for name in shipped(sweeps=True))}
    schema = Config.model_json_schema()
    parts = [HEAD.format(**named), _table("", Config, schema)]
    for name, field in Config.model_fields.items():
        if _is_section(field.annotation):
            parts.append(_table(name, field.annotation, schema["$defs"][field.annotation.__name__]))
    return "\n".join([*parts, TAIL])


def _table(section: str, model: type[Section], schema: dict[str, Any]) -> str:
    title = SECTIONS.get(section)
    heading = " · ".join(filter(None, [f"`{section}`" if section else "", title]))
    rows = [f"## {heading}", "", "| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    meaning = meanings(model)
    for name, field in model.model_fields.items():
        if _is_section(field.annotation):
            continue
        property_ = schema["properties"][name]
        cells = [f"`{section}.{name}`" if section else f"`{name}`", allowed(property_),
                 _value(property_.get("default")), meaning.get(name, "")]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*rows, ""])


def _is_section(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, Section)


def meanings(model: type[Section]) -> dict[str, str]:
    """The docstring below each field, as one line of Markdown."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)):
            found[field.target.id] = " ".join(str(after.value.value).replace("``", "`").split())
    return found


def allowed(schema: dict[str, Any]) -> str:
    """What a JSON schema lets through, in words."""
    if "anyOf" in schema:
        return " or ".join(allowed(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{_plain(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        parts = [allowed(part) for part in schema.get("prefixItems", [])]
        return f"[{', '.join(parts)}]" if parts else f"list of {allowed(schema.get('items', {}))}"
    bounds = [f"{sign} {schema[name]:,}" for names, sign in
              ((("minimum", "ge"), "≥"), (("exclusiveMinimum", "gt"), ">"), (("maximum", "le"), "≤"),
               (("exclusiveMaximum", "lt"), "<")) for name in names if name in schema]
    words = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "null": "`null`",
             "object": "keys and values", "string": "path" if schema.get("format") == "path" else "text"}
    return " ".join([words.get(str(kind), "any value"), " and ".join(bounds)]).strip()


def _value(value: Any) -> str:
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit(f"Usage: {COMMAND}")
    if len(sys.argv) == 2:
        Path(sys.argv[1]).write_text(page(), encoding="utf-8")
    else:
        print(page())


if __name__ == "__main__":
    main()
