"""Set Hydra up, from where configs are found to how they are read, and type the config that it composes."""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.conf import HydraConf, RunDir, SweepDir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from digitcnn.cli.arguments import CommandLine, describe_unreadable, parse_arguments, text_keys
from digitcnn.config import (
    AnyConfig,
    Config,
    PredictConfig,
    RunsConfig,
    SweepConfig,
    expand_user,
    known_keys,
    load_config,
    nearest_key,
)
from digitcnn.errors import ConfigError

_UNKNOWN = re.compile(r"Could not override '([^']+)'")
# In a checkout digitcnn/conf is a link to conf/, in a wheel a folder.
CONF = Path(str(importlib.resources.files("digitcnn") / "conf")).resolve()


class _OurConfigs(SearchPathPlugin):
    """Finds the configs of digitcnn behind those of --config-path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("digitcnn", f"file://{CONF}")


# The texts of the config files that were read and are not ours, by their paths.
_READ: dict[Path, str] = {}
# The last words of every command's keys that hold a text.
_TEXTS = tuple({key.rpartition(".")[2] for kind in (SweepConfig, PredictConfig, RunsConfig) for key in text_keys(kind)})


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """Reads YAML as OmegaConf does, but text keys as they are written: 007, 1e5 and on are texts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        for key, value in node.value:
            if key.value in _TEXTS and value.tag.endswith((":int", ":float", ":bool")):
                value.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


class FileConfigSource(file_config_source.FileConfigSource):
    """Reads config files as editors write them: UTF-8, with or without a byte order mark, which would hide a package.

    Of the same name as Hydra's: its registry takes another class for a scheme only if it is called alike.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        text, content = read_config(path)
        if not path.is_relative_to(CONF):
            _READ[path] = text
        try:
            header = self._get_header_dict(text[:512])
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
        return ConfigResult(self.provider, f"file://{self.path}", OmegaConf.create(content), header)


def read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a config file and its keys and values. Raises ConfigError, which names the file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: must be UTF-8; save it in that encoding") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    stream = io.StringIO(text, newline=None)
    # YAML's own messages name it.
    stream.name = str(path)
    try:
        content = yaml.load(stream, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path}: must hold keys and values")
    return text, content or {}


def set_up_hydra(sweep_folder: str) -> None:
    """Let Hydra find and read our configs, stay where it was started and write nothing, unless it is told to.

    `sweep_folder` is where a multirun's own files go: it cannot do without.
    """
    _READ.clear()
    # Of a folder in hydra.searchpath that is not there: else a file of another folder might be taken for one of it.
    warnings.filterwarnings("error", message="provider=.* is not available", category=UserWarning)
    Plugins.instance().register(_OurConfigs)
    SourcesRegistry.instance().types["file"] = FileConfigSource
    defaults = [{"job_logging": "none"} if "job_logging" in entry else entry for entry in HydraConf().defaults]
    settings = HydraConf(
        defaults=defaults, run=RunDir("."), sweep=SweepDir(sweep_folder, "${hydra.job.num}"), output_subdir=None
    )
    ConfigStore.instance().store(group="hydra", name="config", node=settings, provider="hydra")


def config_of(composed: DictConfig, schema: type[AnyConfig], line: CommandLine, folder: Path) -> AnyConfig:
    """Return the resolved, typed config of what Hydra composed; relative paths are taken from the folder.

    Raises ConfigError, or OmegaConf's errors for what cannot be resolved.
    """
    plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items()} | line.words
    for group, holder in values.items():
        for key in holder if isinstance(holder, dict) else ():
            if group == "experiment" or key in schema.model_fields:
                hint = (
                    f"a file that sets {key} begins with the line # @package _global_ and has {key} at its left margin"
                )
                raise ConfigError(f"{group}.{key} is no key; {hint}{_place(key)}")
    values.pop("experiment", None)
    for group, key, packaged in (("tracking", "root", None), ("data", "path", "mnist")):
        holder = values.get(group)
        if not isinstance(holder, dict) or not isinstance(holder.get(key), str):
            continue
        # An address is refused as it was written: joined with the folder it would no longer look like one.
        if holder[key] not in ("", packaged) and "://" not in holder[key]:
            holder[key] = str(folder / expand_user(holder[key]))
    try:
        return load_config(schema, values)
    except ConfigError as error:
        key = re.match(r"[\w.]*", str(error))
        raise ConfigError(f"{error}{_place(key[0] if key else '', line)}") from None


def _named_by_key(text: str) -> str:
    """Return OmegaConf's message with its key in front, and where a file of one's own sets it."""
    text = re.sub(r" object_type=\w+| full_key:(?= object_type| *\)?$)", "", text)
    found = re.fullmatch(r"(.*?) full_key: ([\w.]+)(.*)", text)
    return text if found is None else f"{found[2]}: {found[1]}{found[3]}{_place(found[2])}"


def _place(key: str, line: CommandLine | None = None) -> str:
    """Return where a file of one's own sets a key that was not typed, as the end of a message, or an empty text."""
    if line is not None and any(each.lstrip("+").startswith(f"{key}=") for each in line.overrides):
        return ""
    sets = re.compile(rf"\s*['\"]?{re.escape(key.rpartition('.')[2])}['\"]?\s*:|.*[{{,]\s*{re.escape(key)}\s*:")
    for path, text in reversed(_READ.items()):
        for number, each in enumerate(text.splitlines(), start=1):
            if sets.match(each):
                return f" ({path}, line {number})"
    return ""


def adds_unlisted(error: HydraException, schema: type[Config], line: CommandLine) -> bool:
    """Return True if Hydra refused a key of the schema because no config file lists it, and the line adds it now."""
    lacking = _UNKNOWN.search(str(error))
    if lacking is None or (lacking[1] not in known_keys(schema) and not lacking[1].startswith("study.space.")):
        return False
    before, start = line.overrides[:], f"{lacking[1]}="
    line.overrides[:] = [f"++{each}" if each.startswith(start) else each for each in before]
    return line.overrides != before


def hydra_line(error: Exception, schema: type[Config]) -> str:
    """Return an error of Hydra's or OmegaConf's as one line, which names the key and what is allowed."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return describe_unreadable(error)
    unknown = _UNKNOWN.search(text)
    if unknown and unknown[1] in known_keys(schema):
        return f"{unknown[1]}: not every config of this multirun lists it; write ++{unknown[1]}=VALUE"
    if unknown:
        return f"{unknown[1]}: unknown key; {nearest_key(unknown[1], known_keys(schema))}"
    missing = re.search(r"Could not find '([^']+)'\n\nAvailable options in '([^']+)':\n((?:\t.*\n?)+)", text)
    if missing:
        group, _, option = missing[1].rpartition("/")
        address = re.match(r"(.+?)/[\w+.-]+:/", missing[1])
        if address:
            group, option = address[1], "***"
        return f"{group}={option}: no such file in conf/{group}; must be one of {', '.join(missing[3].split())}"
    several = re.match("Ambiguous value for argument '(.+)'\n", text)
    if several:
        return (
            f"{several[1]}: several values; to train with each add --multirun, a list is [1,2], decimals have a point"
        )
    cause = f" ({error.__cause__})" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return _named_by_key(" ".join((text + cause).split()))


@contextlib.contextmanager
def apart_from_hydra() -> Iterator[None]:
    """Let no program that Hydra runs decide what is done in the body, and give it its Hydra back at the end."""
    # Which registers the readers of config files.
    Plugins.instance()
    configs, readers, version = ConfigStore.instance().repo["hydra"], SourcesRegistry.instance().types, VersionBase()
    kept = dict(configs), dict(readers), version.version_base
    program, job = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().hydra = HydraConfig.instance().cfg = None
    try:
        with warnings.catch_warnings():
            yield
    finally:
        configs.update(kept[0])
        readers.update(kept[1])
        version.version_base = kept[2]
        # Not the same instance: composing has put another one there.
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = program, job


def compose_command(name: str, schema: type[AnyConfig], words: Sequence[str]) -> AnyConfig:
    """Return the config that a command has with these words after it. Raises ConfigError, with one line."""
    line = parse_arguments(words, schema)
    set_up_hydra(".")
    try:
        with hydra.initialize(version_base=None, config_path=None):
            while True:
                try:
                    return config_of(hydra.compose(name, line.overrides), schema, line, Path.cwd())
                except HydraException as error:
                    if not adds_unlisted(error, schema, line):
                        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_line(error, schema)) from None
