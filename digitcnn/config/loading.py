"""Loading: plain nested values become a typed config, or one line that names the wrong key and what is allowed."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from digitcnn.config.urls import value_without_credentials
from digitcnn.errors import ConfigError
from digitcnn.formatting import named_null

# An error names the value, but not all of a long one.
_MAX_SHOWN = 200
# Keys that have another name now.
_RENAMED = {"study.workers": "workers.count", "confirm.workers": "workers.count"}


class Config(BaseModel):
    """A frozen, strict value: an unknown key or a wrong type is an error, nothing is converted."""

    # The key whose values are typed alone, as files after predict are; of a command's schema.
    WORDS: ClassVar[str | None] = None
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


AnyConfig = TypeVar("AnyConfig", bound=Config)


def load_config(kind: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """Return the typed config of plain nested values, such as a composed YAML tree.

    Raises ConfigError with one line that names the first wrong key, its value and what is allowed.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(kind, error)) from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inverse of `flatten`, for names of at most one dot."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, key = name.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[key] = value
    return tree


def known_keys(kind: type[BaseModel], prefix: str = "") -> dict[str, list[Any]]:
    """Return the types of every key of a config by its dotted name, those of each network included."""
    keys: dict[str, list[Any]] = {}
    for name, field in kind.model_fields.items():
        inner = [known_keys(group, f"{prefix}{name}.") for group in _configs(field.annotation)]
        for each in inner or [{f"{prefix}{name}": _types(field.annotation)}]:
            keys |= each
    return keys


def nearest_key(name: str, names: Collection[str]) -> str:
    """Return a hint that names the nearest of some keys, or those of its group, or the groups."""
    if name in _RENAMED:
        return f"is now {_RENAMED[name]}"
    # A key without its group, such as batch_size, means the one key that ends so.
    same_end = [known for known in names if known.endswith(f".{name}")]
    close = same_end if len(same_end) == 1 else difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    if close:
        return f"did you mean {close[0]}?"
    groups = list(dict.fromkeys(known.partition(".")[0] for known in names))
    same_group = [known for known in names if known.startswith(name.partition(".")[0] + ".")]
    return f"known keys: {', '.join(same_group or groups)}"


def _types(annotation: Any) -> list[Any]:
    """Return the types of a union or an annotated type; what a list or a mapping holds has no name of its own."""
    parts = () if get_origin(annotation) in (list, dict) else get_args(annotation)
    return [annotation, *(each for part in parts if not isinstance(part, str) for each in _types(part))]


def _configs(annotation: Any) -> list[type[BaseModel]]:
    return [each for each in _types(annotation) if isinstance(each, type) and issubclass(each, BaseModel)]


def _typed_key(kind: type[BaseModel], location: Sequence[int | str]) -> tuple[str, Collection[str], list[str]]:
    """Return the key of an error's location as a person types it, the keys known there, and the names it chooses from.

    Pydantic's location also names the chosen one of several configs, such as `cnn` in model.cnn.conv1_filters.
    """
    parts: list[str] = []
    holder: type[BaseModel] | None = kind
    keys = known_keys(kind)
    choices: dict[str, type[BaseModel]] = {}
    # Pydantic adds to the key of a mapping that it is one.
    for part in (str(part) for part in location if part != "[key]"):
        if part in choices:
            holder, choices = choices[part], {}
            keys = known_keys(holder, f"{'.'.join(parts)}.")
            continue
        parts.append(part)
        field = holder.model_fields.get(part) if holder else None
        configs = _configs(field.annotation) if field else []
        holder = configs[0] if len(configs) == 1 else None
        choices = {config.model_fields["name"].default: config for config in configs} if len(configs) > 1 else {}
    return ".".join(parts), keys, list(choices)


def _one_line(kind: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key, keys, choices = _typed_key(kind, problem["loc"])
    value = problem["input"]
    if problem["type"] == "extra_forbidden":
        group = key.partition(".")[0]
        hint = f"only another {group}=NAME has it" if key in known_keys(kind) else nearest_key(key, keys)
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    if choices:
        chosen = value.get("name") if isinstance(value, Mapping) else None
        return f"{key}.name={chosen}: must be one of {', '.join(choices)}"
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        problem["msg"] = "must hold keys and values"
    shown = value_without_credentials(str(named_null(value)))
    shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
    if key == "tracking.uri" and "://" not in shown:
        shown = "***"
    allowed = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must", 1)
    return f"{key}={shown}: {allowed}" if key else allowed
