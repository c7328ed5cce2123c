"""Write the generated parts of docs/: configuration.md, api.md, and tables of two others. `make docs`."""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from digitcnn import config
from digitcnn.config import Config
from experiments.parts import engines, parts

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
CONF = REPOSITORY / "conf"
COMMANDS: dict[str, type[Config]] = {
    "train": config.TrainConfig,
    "sweep": config.SweepConfig,
    "confirm": config.ConfirmConfig,
    "reproduce": config.ReproduceConfig,
    "report": config.ReportConfig,
    "status": config.ReportConfig,
    "stop": config.ReportConfig,
    "studies": config.StudiesConfig,
    "runs": config.RunsConfig,
    "diff": config.DiffConfig,
    "predict": config.PredictConfig,
    "delete": config.DeleteConfig,
    "records": config.RecordsConfig,
    "ui": config.UiConfig,
}
# Groups with one file for each choice; of the others every file sets the same keys.
_GROUPS = ("data", "model", "training", "augmentation", "tracking", "workers", "study", "experiment")
_INTRODUCTION = """# Configuration

Every key of every command, written by `make docs` from the schema (`digitcnn/config/`) and the comments of `conf/`.

A key is set on the command line as `KEY=VALUE`, a whole group as `GROUP=NAME`, the file `conf/GROUP/NAME.yaml`. What
Hydra's users know works: `--cfg job` shows the composed config, `--multirun` goes through lists of values,
`--config-dir DIR` adds a folder of your own configs, and `digitcnn -sc install=bash` installs tab completion.
`digitcnn COMMAND --help` shows a command's keys with their comments. An unknown key or a wrong value is one line that
names what is allowed.
"""
_API_INTRODUCTION = """# From a notebook

What `import digitcnn` offers, written by `make docs` from the docstrings of `digitcnn/api.py`.
[tour.ipynb](tour.ipynb) uses most of it, in two minutes. Importing digitcnn takes no time: TensorFlow and MLflow are
imported by what needs them.
"""
_SPACE = """
### Search space

`study.space` mirrors the config: `study.space.GROUP.KEY` holds the values that are tried for `GROUP.KEY`. Every key of
`model`, `training` and `augmentation` but `training.threads`, which a worker keeps, can be searched.

| value | meaning |
| --- | --- |
| `[16, 32, 64]` or `{choices: [16, 32, 64]}` | one of these values; the baseline's own joins them, also if it is null |
| `{low: 16, high: 64}` | both ends included; whole numbers if both ends are |
| `{low: 16, high: 64, step: 8}` | the same in steps |
| `{low: 0.0001, high: 0.1, log: true}` | drawn on a logarithmic scale |
| `null` | not searched: leaves an entry of the file out |

An entry on the command line replaces the file's entry as a whole. A study with another space, another objective or
another value that is not searched needs another `study.name`; `study.extends=NAME` takes the trials of an earlier one
along, as far as they lie in the new space and have the same other values.
"""


def configuration() -> str:
    """Return the page of all keys: the groups that commands share, then each command's own keys."""
    lines = [_INTRODUCTION]
    lines += ["| group | its files in `conf/` | taken by |", "| --- | --- | --- |"]
    taken = {name: _groups_of(name) for name in COMMANDS}
    for group in _GROUPS:
        files = ", ".join(f"`{path.stem}`" for path in sorted((CONF / group).glob("*.yaml")))
        commands = ", ".join(name for name, groups in taken.items() if group in groups)
        lines.append(f"| [`{group}`](#{group}) | {files} | {commands} |")
    for group in ("data", "model", "training", "augmentation", "tracking", "workers"):
        lines += ["", f"## {group}"]
        for path in sorted((CONF / group).glob("*.yaml")):
            schema = _member(group, path.stem)
            lines += ["", *textwrap.wrap(f"`{group}={path.stem}`: {_purpose(path)}", 120)]
            lines += ["", *_table(_rows(schema, f"{group}.", _comments(path, group)))]
    lines += ["", "## study", "", *_files("study"), "", "## experiment", "", *_files("experiment")]
    for name, schema in COMMANDS.items():
        path = CONF / f"{name}.yaml"
        lines += ["", f"## digitcnn {name}", "", *textwrap.wrap(_purpose(path), 120), ""]
        groups = [group for group in _groups_of(name) if group in _GROUPS]
        links = ", ".join(f"[`{group}`](#{group})" for group in groups)
        lines += [*textwrap.wrap(f"Groups: {links}.", 120), ""]
        shared = tuple(f"{group}." for group in groups if group != "study")
        comments = _comments(path, "")
        if name == "sweep":
            comments = _comments(CONF / "study" / "around_article.yaml", "") | comments
        rows = [row for row in _rows(schema, "", comments) if not row[0].startswith(shared)]
        lines += _table(rows)
        if name == "sweep":
            lines.append(_SPACE.rstrip("\n"))
    return "\n".join(lines) + "\n"


def _groups_of(command: str) -> list[str]:
    """Return the config groups in a command's defaults list."""
    entries = yaml.safe_load((CONF / f"{command}.yaml").read_text())["defaults"]
    return [group for entry in entries if isinstance(entry, dict) for group in entry]


def _member(group: str, choice: str) -> type[Config]:
    """Return the schema of a group; of `model` and `workers`, the one that the file's name chooses."""
    chosen: dict[str, dict[str, type[Config]]] = {
        "model": {"cnn": config.CnnConfig, "mlp": config.MlpConfig},
        "workers": {"local": config.LocalWorkers, "ray": config.RayWorkers},
    }
    if group in chosen:
        return chosen[group][choice]
    found: type[Config] = config.RunConfig.model_fields[group].annotation  # type: ignore[assignment]
    return found


def _purpose(path: Path) -> str:
    """Return the comment that a config file opens with, as one paragraph, without its examples."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    kept = [line.removeprefix("#").strip() for line in lines if "@package" not in line and not line.startswith("#   ")]
    return " ".join(kept)


def _files(group: str) -> list[str]:
    """Return a list item for each file of a group, with its purpose."""
    items = [f"- `{group}={path.stem}`: {_purpose(path)}" for path in sorted((CONF / group).glob("*.yaml"))]
    return [line for item in items for line in textwrap.wrap(item, 120, subsequent_indent="  ")]


def _comments(path: Path, prefix: str) -> dict[str, tuple[str, str]]:
    """Return the value and the comment of every key of a config file, by its dotted name."""
    found: dict[str, tuple[str, str]] = {}
    parents: list[tuple[int, str]] = []
    last = ""
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"( *)\"?(\w+)\"?:\s*(.*?)(?:\s+# (.*)|#\s*(.*))?", line)
        more = re.fullmatch(r" +# (.*)", line)
        if more and last:
            found[last] = (found[last][0], f"{found[last][1]} {more[1]}".strip())
        elif match:
            indent = len(match[1])
            parents = [parent for parent in parents if parent[0] < indent]
            names = [name for _, name in parents] + [match[2]]
            last = ".".join(([prefix] if prefix else []) + names)
            found[last] = (match[3], match[4] or match[5] or "")
            parents.append((indent, match[2]))
    return found


def _rows(schema: type[Config], prefix: str, comments: dict[str, tuple[str, str]]) -> list[tuple[str, ...]]:
    """Return a row per key of a schema: name, type, default, allowed values and comment."""
    described = schema.model_json_schema()
    return list(_walk(described, described, prefix, comments))


def _walk(
    part: dict[str, Any], whole: dict[str, Any], prefix: str, comments: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, ...]]:
    for name, field in part["properties"].items():
        key = f"{prefix}{name}"
        value, comment = comments.get(key, ("", ""))
        groups = [_resolved(option, whole) for option in field.get("anyOf", field.get("oneOf", [field]))]
        if groups[0].get("properties"):
            for group in groups:
                yield from _walk(group, whole, f"{key}.", comments)
            continue
        default = value or (_shown(field["default"]) if "default" in field else "")
        yield key, _type(groups), f"`{default}`" if default else "required", _allowed(groups), comment


def _resolved(option: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    reference = option.get("$ref")
    return whole["$defs"][reference.rpartition("/")[2]] if reference else option


def _type(options: list[dict[str, Any]]) -> str:
    """Return the types of a key in words: `whole number or null`."""
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    words |= {"null": "null", "array": "list", "object": "tree"}
    return " or ".join(dict.fromkeys(words[option["type"]] for option in options))


def _allowed(options: list[dict[str, Any]]) -> str:
    """Return the allowed values of a key: the words, the range, or what the schema says of a text."""
    said = []
    for option in options:
        item = option.get("items", option)
        if "enum" in item or "const" in item:
            said.append(", ".join(f"`{word}`" for word in item.get("enum", [item.get("const")])))
        low, high = item.get("minimum", item.get("exclusiveMinimum")), item.get("maximum")
        if low is not None:
            above = "above " if "exclusiveMinimum" in item else ""
            said.append(f"{above}{low:,} to {high:,}")
        if item["type"] == "string" and "description" in item:
            said.append(item["description"])
        if "minItems" in option:
            said.append(f"{option['minItems']} to {option['maxItems']} of them")
    return "; ".join(said)


def _shown(default: Any) -> str:
    return str(yaml.safe_dump(default, default_flow_style=True)).removesuffix("...\n").strip()


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    head = ["| key | type | default | allowed | |", "| --- | --- | --- | --- | --- |"]
    return [*head, *(f"| `{key}` | {' | '.join(_cell(cell) for cell in cells)} |" for key, *cells in rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# architecture.md


def picture() -> str:
    """Return the layers of the import contract as a drawing: a row per layer, with the libraries of each room."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    libraries: dict[str, list[str]] = {}
    for contract in contracts:
        for library in contract.get("protected_modules", []):
            rooms = (
                {".".join(name.split(".")[:2]) for name in contract["allowed_importers"]} if "." not in library else ()
            )
            for room in rooms:
                libraries.setdefault(room, []).append(library)
    width = 110
    rows = []
    for layer in ("experiments", *layers):
        cells = []
        for name in layer.split(" | "):
            owned = ", ".join(libraries.get(f"digitcnn.{name}", []))
            cells.append(f"{name} ({owned})" if owned else name)
        share = (width - 3 * (len(cells) - 1)) // len(cells)
        rows.append("| " + " | ".join(cell.ljust(share) for cell in cells).ljust(width) + " |")
    rule = "+-" + "-" * width + "-+"
    return "\n".join(["```text", rule, *(line for row in rows for line in (row, rule)), "```"])


def rooms() -> str:
    """Return each room with its modules, a line each, and its public names; and the modules below all rooms."""
    parts = ["### Below the rooms", "", *_module_table((REPOSITORY / "digitcnn").glob("*.py")), ""]
    for folder in sorted(path.parent for path in (REPOSITORY / "digitcnn").glob("*/__init__.py")):
        opened = ast.parse((folder / "__init__.py").read_text())
        public = _public_names(opened)
        parts += [f"### {folder.name}", "", *textwrap.wrap(ast.get_docstring(opened) or "", 120), ""]
        parts += _module_table(path for path in folder.rglob("*.py") if path != folder / "__init__.py")
        names = ", ".join(f"`{name}`" for name in public)
        parts += ["", *textwrap.wrap(f"Public: {names}.", 120), ""]
    return "\n".join(parts).rstrip("\n")


def _module_table(paths: Iterable[Path]) -> list[str]:
    """Return a table of modules: path below digitcnn/ and first line of the docstring."""
    rows = ["| module | |", "| --- | --- |"]
    for path in sorted(paths):
        module = ast.parse(path.read_text())
        if path.name != "__init__.py" or any(isinstance(node, ast.FunctionDef) for node in module.body):
            line = (ast.get_docstring(module) or "").partition("\n")[0]
            rows.append(f"| `{path.relative_to(REPOSITORY / 'digitcnn')}` | {_cell(line)} |")
    return rows


def _public_names(module: ast.Module) -> list[str]:
    """Return the names that a room's `__init__` imports, those for type checkers alone included."""
    nodes = [*module.body, *(node for part in module.body if isinstance(part, ast.If) for node in part.body)]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    return sorted(alias.name for node in imports for alias in node.names)


def _followed(reference: re.Match[str]) -> str:
    """Return a `room/module.py:name` with the module of the room that defines the name now, if exactly one does."""
    file, name = reference[1], reference[2]
    defines = re.compile(rf"^ *(?:def|class) {name}\b|^ *{name} = ", re.MULTILINE)
    package = REPOSITORY / "digitcnn"
    if (package / file).exists() and defines.search((package / file).read_text()):
        return reference[0]
    room = package / file.split("/")[0]
    found = [path for path in room.rglob("*.py") if defines.search(path.read_text())]
    return f"`{found[0].relative_to(package)}:{name}`" if len(found) == 1 else reference[0]


def architecture(text: str) -> str:
    """Return the page with its picture and rooms made anew, and references that follow functions which moved.

    The rest of the page is written by hand.
    """
    text = re.sub(r"`([\w/]+\.py):(\w+)`", _followed, text)
    return _filled(text, {"picture": picture(), "rooms": rooms()})


def _filled(text: str, parts: dict[str, str]) -> str:
    """Return a page with these parts of it made anew, by name."""
    for name, made in parts.items():
        begin, end = f"<!-- {name}: written by make docs -->", f"<!-- end of {name} -->"
        before, after = text.partition(begin)[0], text.partition(end)[2]
        text = f"{before}{begin}\n\n{made}\n\n{end}{after}"
    return text


# api.md


def api() -> str:
    """Return the page of what `import digitcnn` offers: each function and class with its docstring."""
    module = ast.parse((REPOSITORY / "digitcnn" / "api.py").read_text())
    lines = [_API_INTRODUCTION]
    for node in module.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        signature = _signature(node) if isinstance(node, ast.FunctionDef) else ""
        lines += [
            f"## digitcnn.{node.name}",
            "",
            *(
                ["```python", *textwrap.wrap(f"digitcnn.{signature}", 100, subsequent_indent="    "), "```", ""]
                if signature
                else []
            ),
        ]
        lines += [*_paragraphs(node), ""]
        members = [each for each in node.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")]
        if isinstance(node, ast.ClassDef):
            rows = [f"| `{_cell(_signature(each))}` | {_cell(' '.join(_paragraphs(each)))} |" for each in members]
            lines += ["| | |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def _signature(function: ast.FunctionDef) -> str:
    """Return a function's call with its types; of a property the name and its type."""
    returned = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    if any(isinstance(each, ast.Name) and each.id == "property" for each in function.decorator_list):
        return f".{function.name}{returned}"
    arguments = ast.unparse(function.args).removeprefix("self").removeprefix(", ")
    return f"{function.name}({arguments}){returned}"


def _paragraphs(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    return [each for part in (ast.get_docstring(node) or "").split("\n") for each in textwrap.wrap(part, 120) or [""]]


def pages() -> dict[Path, str]:
    """Return every generated page's text, by its path."""
    house, method = DOCS / "architecture.md", DOCS / "method.md"
    texts = {DOCS / "configuration.md": configuration(), DOCS / "api.md": api()}
    measured = {"parts": parts.table(), "engines": engines.table()}
    return {**texts, house: architecture(house.read_text()), method: _filled(method.read_text(), measured)}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(f"written: {path.relative_to(REPOSITORY)}")
