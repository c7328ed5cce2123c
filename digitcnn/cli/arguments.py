"""Parse what is typed after a command into flags and overrides in Hydra's grammar; texts are taken as typed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from digitcnn.config import Config, known_keys, value_without_credentials, without_credentials
from digitcnn.errors import ConfigError
from digitcnn.formatting import printable

# What follows the name of a secret, typed as KEY=VALUE or within braces, up to the end: values may hold spaces.
_SECRET_NAME = r"(?:env_set|password|token|secret)"
_SECRET = re.compile(
    rf"((?<![\w./-])[\w.]*{_SECRET_NAME}[\w.]*=|[{{,]\s*['\"]?[\w.]*{_SECRET_NAME}[\w.]*['\"]?\s*:).*",
    re.IGNORECASE | re.DOTALL,
)
_TREES = r"\+{0,2}(study\.(?:space(?:\.\w+){0,2}|constraints(?:\.\w+)?))=.+"
_KEY = re.compile(r"(?:\+{0,2}|~)([A-Za-z_][\w-]*(?:[./@:][\w-]+)*)")


@dataclass(frozen=True)
class CommandLine:
    """A command line in Hydra's grammar: flags by their names, and overrides.

    `words` are lists that Hydra is not shown, by key: names of files need not be text, and may be thousands.
    """

    flags: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)

    def argv(self) -> list[str]:
        """Return the arguments for hydra.main: overrides first, so that no flag takes one of them for its value."""
        options = {f"--{name.replace('_', '-')}": value for name, value in self.flags.items() if value}
        return [*self.overrides, *(name if value is True else f"{name}={value}" for name, value in options.items())]


def parse_arguments(arguments: Sequence[str], schema: type[Config]) -> CommandLine:
    """Return the command line of what was typed; flags may stand anywhere.

    Text keys of the schema take what was typed: 007, 1e5 and on are texts, and quotes and interpolations are Hydra's.
    Arguments that are no KEY=VALUE are values of the schema's key `WORDS`, if there is one. Raises ConfigError.
    """
    flags = parse_flags(arguments)
    rest: list[str] = flags.pop("overrides")
    line = CommandLine(flags)
    if schema.WORDS is not None:
        rest = _without_words(rest, schema.WORDS, line.words)
    multirun = flags["multirun"] or any(argument.startswith("hydra.mode=") for argument in rest)
    texts = text_keys(schema)
    groups = {key.partition(".")[0] for key in known_keys(schema) if "." in key}
    for argument in rest:
        group, _, value = argument.partition("=")
        if value == "null" and group in groups:
            raise ConfigError(f"{argument}: must be the name of a file in conf/{group}")
        # Hydra takes null in a defaults list, and not here.
        written = "~experiment" if argument == "experiment=null" else _written(argument, texts, multirun)
        line.overrides.extend(_whole_tree(written))
    return line


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Return Hydra's flags by name, and the other arguments as `overrides`. Raises ConfigError for unknown flags."""

    def refuse(message: str) -> NoReturn:
        key = re.search(r"unrecognized arguments: --?(\w[\w.]+)", message)
        hint = f"a key is written {key[1]}=VALUE; " if key else ""
        raise ConfigError(f"{message}; {hint}--hydra-help lists Hydra's flags")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    flags = vars(parser.parse_intermixed_args(list(arguments)))
    if flags["config_path"] and "://" not in flags["config_path"]:
        # Hydra takes it from where its main is: that is nowhere a person knows.
        flags["config_path"] = str(Path(flags["config_path"]).absolute())
    return flags


def text_keys(schema: type[Config]) -> dict[str, bool]:
    """Return the dotted names of the schema's keys that hold a text, and whether null is no text there."""
    return {key: type(None) in types for key, types in known_keys(schema).items() if str in types}


def _without_words(arguments: Sequence[str], key: str, words: dict[str, list[str]]) -> list[str]:
    """Return the arguments that are overrides; the others become values of the key."""
    overrides = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name == key:
            words.setdefault(key, []).extend(_listed(value))
        elif equals and "/" not in name and _KEY.fullmatch(name):
            overrides.append(argument)
        else:
            words.setdefault(key, []).append(argument)
    return overrides


def _listed(value: str) -> list[str]:
    """Return the texts of a list in brackets, or what was typed as the only one."""
    override = _parsed(f"key={value}") if value.startswith("[") else None
    texts = override.value() if override is not None else None
    return [str(text) for text in texts] if isinstance(texts, list) else [value]


def _whole_tree(argument: str) -> list[str]:
    """Let `study.space={...}` and `study.space.training.epochs=[1,2]` replace what was there as a whole.

    Hydra would merge the new value into the old one: the search would go on over the old keys, and a list of choices in
    a range is an error there. The two keys are written differently, since a multirun keeps the last value of each
    spelling alone. The same of the constraints, which need not be there to be set.
    """
    if re.match(r"study\.constraints\.\w+\.\w+=", argument):
        return [f"++{argument}"]
    entry = re.fullmatch(_TREES, argument, re.DOTALL)
    return [f"++{entry[1]}=null", argument.lstrip("+")] if entry else [argument]


def _written(argument: str, texts: Mapping[str, bool], multirun: bool) -> str:
    """Return the override in Hydra's grammar."""
    name, equals, value = argument.partition("=")
    key = _KEY.fullmatch(name)
    if key is None or not equals or name.startswith("~") or key[1] not in texts:
        return argument
    text = _text(argument, value, texts[key[1]], multirun)
    return argument if text is None else f"{name}={_quoted(text)}"


def _text(argument: str, typed: str, null: bool, multirun: bool) -> str | None:
    """Return the text that a text key is given, or None if Hydra is to read it: null, sweeps, interpolations."""
    override = _parsed(argument)
    if override is None:
        return typed
    value = override.value()
    if isinstance(value, str):
        quoted = len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "'\""
        return value if quoted and "${" not in typed else None if value == typed or "${" in typed else typed
    return None if typed == "" or (value is None and null) or (multirun and override.is_sweep_override()) else typed


def words_of(values: Mapping[str, object]) -> list[str]:
    """Return a program's keys and values as they would be typed; __ in a key stands for a dot."""
    return [
        f"{key.replace('__', '.')}={value if isinstance(value, str) else _in_grammar(value)}"
        for key, value in values.items()
    ]


def _in_grammar(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_in_grammar(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_in_grammar, value)) + "]"
    if isinstance(value, str):
        return _quoted(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except Exception:
        # Whatever its grammar does not take; what that is, Hydra says itself when it composes.
        return None


def without_typed_credentials(argument: str) -> str:
    """Return an argument without credentials."""
    key = argument[: argument.find("=") + 1]
    key = "" if "://" in key else key
    value = argument.removeprefix(key)
    # In a list, a mapping or an interpolation an address has an end.
    hide = without_credentials if value.startswith(("[", "{", "$")) else value_without_credentials
    return key + hide(value)


def without_secrets(text: str) -> str:
    """Return the text without what follows the name of a secret."""
    return _SECRET.sub(r"\1***", text)


def describe_unreadable(error: OverrideParseException) -> str:
    """Return a line for an override that Hydra's grammar does not take; of a secret nothing of what was typed."""
    override = showable(error.override)
    name, equals, value = error.override.partition("=")
    if not equals or name.split() != [name]:
        return f"{override}: must be KEY=VALUE, without spaces around ="
    if override != printable(error.override):
        return f"cannot be read: {override}"
    if any(value.count(one) != value.count(other) for one, other in ("[]", "{}", "()")):
        return f"{override}: has a bracket without its other half; in a shell, put KEY=VALUE in quotes as a whole"
    reason = str(error).partition("See https://hydra.cc")[0].partition("expecting {")[0].splitlines()
    if "LexerNoViableAltException" in str(error):
        reason = ["holds a character that Hydra takes only within quotes"]
    return f"{override}: {' '.join(reason[-1:]).strip()}"


def showable(text: str) -> str:
    """Return the text as one line that holds no secrets and that a terminal does not obey."""
    return printable(without_secrets(without_credentials(text)))
