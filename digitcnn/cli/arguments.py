"""What a person types after a command, judged before Hydra composes a config from it: overrides are data.

A value is what was typed. It is no interpolation, it leads to no file outside conf/, and no key of Hydra's own is set.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep

from digitcnn.config import without_credentials
from digitcnn.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
_GROUPS = tuple(folder.name for folder in CONF.iterdir() if folder.is_dir())
# Their values are taken as they are typed: to Hydra 1234e567 is a number, and a comma or an equals sign grammar.
_TEXTS = ("data.path", "tracking.root", "tracking.uri")
_KEY = re.compile(r"(\+{0,2}|~)([A-Za-z_][\w-]*(?:[./][\w-]+)*)")
_OPTION = re.compile(r"[A-Za-z_][\w-]*")
# A path may have 4,096 bytes; Hydra's parser takes a second for 4,000 values in a list.
_LONGEST = 8000
_DEEPEST = 8
_MOST_SHOWN = 200
_MOST_RUNS = 1000


@dataclass(frozen=True)
class CommandLine:
    """What Hydra is given. `hidden` are texts that it is not shown: by key, what it sees instead and what was typed.

    `words` are lists that it is not shown at all, by key.
    """

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    hidden: dict[str, dict[str, str]] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)

    def restore(self, tree: dict[str, Any]) -> None:
        """Puts the typed texts back into a composed config."""
        tree |= self.words
        for key, texts in self.hidden.items():
            group, _, name = key.rpartition(".")
            holder = tree.get(group) if group else tree
            if isinstance(holder, dict) and isinstance(holder.get(name), str):
                holder[name] = texts.get(holder[name], holder[name])


def parse(arguments: Sequence[str], texts: Sequence[str], words: str | None = None) -> CommandLine:
    """The command line of some arguments; the values of the keys in `texts` are taken as they are typed.

    So are arguments that are no KEY=VALUE, as values of the key `words`, and what that key is given: a value, or a list
    in brackets. Flags may stand anywhere. Raises ConfigError, or HydraException for what is not Hydra's grammar.
    """
    flags, rest = _flags(arguments)
    line = CommandLine(flags)
    if words is not None:
        rest = _without_words(rest, words, line.words)
    runs = 1
    for argument in rest:
        for override in _whole_space_entry(argument):
            line.overrides.append(_written(override, (*_TEXTS, *texts), line.hidden))
            judged = parsed(line.overrides[-1])
            _judge(judged)
            runs *= _runs(judged)
            if runs > _MOST_RUNS:
                raise ConfigError(f"{judged.key_or_group}: gives more than the {_MOST_RUNS} runs of one command")
    return line


def _flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, which it wants before the overrides, and the rest. Its others lead elsewhere."""
    flags: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("-c", "--cfg"):
            flags.append(f"--cfg={next(words, '')}")
        elif word.startswith("-"):
            flags.append(word)
        else:
            rest.append(word)
    for flag in flags:
        if flag not in ("-h", "--help", "-m", "--multirun", "--cfg=job"):
            raise ConfigError(f"{without_credentials(flag)}: unknown flag; there are --help, --multirun and --cfg job")
    if len(flags) > 1:
        raise ConfigError(f"{' '.join(flags)}: must be one of them")
    return flags, rest


def _without_words(arguments: Sequence[str], key: str, words: dict[str, list[str]]) -> list[str]:
    """The arguments that are overrides; the others become values of the key."""
    overrides = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name == key and value.startswith("[") and value.endswith("]"):
            words.setdefault(key, []).extend(text for _, text in _texts(parsed(argument).value(), 0))
        elif equals and name == key:
            words.setdefault(key, []).append(value)
        elif equals and "/" not in name and _KEY.fullmatch(name):
            overrides.append(argument)
        else:
            words.setdefault(key, []).append(argument)
    return overrides


def _whole_space_entry(argument: str) -> list[str]:
    """Lets `study.space.training.epochs=[1,2]` replace an entry of the space as a whole, or add one.

    Hydra would merge the new value into the old one: a list of choices into a range is an error there.
    """
    entry = re.fullmatch(r"\+{0,2}(study\.space\.\w+\.\w+)=.+", argument, re.DOTALL)
    return [f"++{entry[1]}=null", "++" + argument.lstrip("+")] if entry else [argument]


def _written(argument: str, texts: Sequence[str], hidden: dict[str, dict[str, str]]) -> str:
    """The override in Hydra's grammar, its credentials hidden."""
    name, equals, value = argument.partition("=")
    key = _KEY.fullmatch(name)
    shown = without_credentials(argument)[:_MOST_SHOWN]
    if key is None or not (equals or key[1] == "~"):
        raise ConfigError(f"{shown}: must be KEY=VALUE, with a key such as training.epochs")
    if key[2].partition(".")[0].partition("/")[0] == "hydra":
        raise ConfigError(f"{key[2]}: is Hydra's own; where and how a command runs is settled")
    if len(argument) > _LONGEST:
        raise ConfigError(f"{key[2]}: has {len(argument)} characters; must have at most {_LONGEST}")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ConfigError(f"{shown}: must hold no control characters")
    if "://" in value and re.search(r"[\s'\"]", value):
        raise ConfigError(f"{key[2]}: an address must hold no spaces or quotes; write them as %20, %27 and %22")
    if key[1] == "~" or not ("://" in value or (key[2] in texts and value not in ("", "null"))):
        return argument
    seen = without_credentials(value).replace("${", "$ {")
    if seen != value:
        hidden.setdefault(key[2], {})[seen] = value
    return f"{name}={_quoted(seen)}"


def _quoted(text: str) -> str:
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def parsed(override: str) -> Override:
    try:
        return OverridesParser.create().parse_override(override)
    except RecursionError:
        raise ConfigError(f"{override[:40]}...: is nested too deeply") from None


def _judge(override: Override) -> None:
    key, value = override.key_or_group, override.value()
    for depth, text in _texts(value, 0):
        if depth > _DEEPEST:
            raise ConfigError(f"{key}: is nested more than {_DEEPEST} deep")
        if "${" in text:
            raise ConfigError(f"{key}={text}: must be a plain value; interpolations are not taken")
        # Hydra would read the file of any other name, wherever it is.
        if key in _GROUPS and not override.is_delete() and _OPTION.fullmatch(text) is None:
            raise ConfigError(f"{key}={text}: must be the name of a file in conf/{key}")


def _texts(value: Any, depth: int) -> Iterable[tuple[int, str]]:
    """Every text in a value, and how deep it lies."""
    if isinstance(value, ChoiceSweep):
        value = value.list
    if isinstance(value, QuotedString):
        yield depth, value.text
    elif isinstance(value, list | dict) and depth <= _DEEPEST:
        for part in itertools.chain(value, value.values() if isinstance(value, dict) else ()):
            yield from _texts(part, depth + 1)
    elif value is not None:
        yield depth, str(value)


def _runs(override: Override) -> int:
    """How many runs a multirun makes of an override."""
    value: Any = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if not isinstance(value, RangeSweep):
        return 1
    try:
        return sum(1 for _ in itertools.islice(value.range(), _MOST_RUNS + 1))
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ConfigError(f"{override.key_or_group}: is no range that can be walked ({error})") from None
