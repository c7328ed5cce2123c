"""Arguments of a command: any text ends in 0, 1 or 2 with one line; texts arrive as they were typed."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from digitcnn.cli.arguments import parse_arguments, text_keys
from digitcnn.cli.command import KNOWN_ERRORS, tell
from digitcnn.cli.composition import CONF, config_of, set_up_hydra
from digitcnn.config import Config, PredictConfig, SweepConfig, known_keys
from tests.conftest import REPOSITORY
from tests.support.commands import run_here

HOSTILE = [
    *(
        "${oc.env:HOME}",
        "${oc.decode:'1'}",
        "${hydra:runtime.cwd}",
        "${now:%Y}",
        "$\\{oc.env:HOME\\}",
        "\\${oc.env:HOME}",
    ),
    *("'${oc.env:HOME}'", "${training.epochs}", "${..epochs}", "${${a}}", "${", "$\\{", "???", "{_target_: os.system}"),
    *("../../etc/passwd", "/etc/passwd", "~nobody/x", "-m", "--config-dir=/", "a\nb", "\x1b[2J", "\udcff", "\x00"),
    *("postgresql://u:p@h/d", "postgresql+psycopg://u:p@@h/d", "http://u:p@h", "file:///etc", "sqlite://"),
    *("range(1,9)", "choice(1,2)", "glob(*)", "interval(0,1)", "shuffle(range(1,9))", "sort(3,1)", "float(x)"),
    *("range(1,2,0)", "range(0.1,nan,0.1)", "str([1])", "int(9e999)", "json_str({})", "bool(7)", "choice(range(1,9))"),
    *("[" * 90 + "]" * 90, "{a:" * 90 + "1" + "}" * 90, "9" * 5000, "a" * 7990, "a" * 300, "-1", "1e400", "0x10"),
    *("nan", "-inf", "null", "true", "on", "007", "[]", "{}", "[1,2]", "1,2", "{low: 1, high: 2}", "{a: {b: 1}}", "''"),
    *('"', "'", "\\", "{low: 1, high: 5, step: 0}", "{choices: [[1]]}", "{1: 2}", "{null: 1}", "{[]: 1}", "[null]"),
    *("{true: 1}", "é漢🙂"),
]
KEYS = [
    *known_keys(SweepConfig),
    *(
        "data",
        "model",
        "training",
        "study",
        "tracking",
        "experiment",
        "study.space.training.epochs",
        "study.space.model",
    ),
    *("hydra", "hydra.run.dir", "hydra/launcher", "hydra/job_logging", "hydra.searchpath", "hydra.mode", "defaults"),
    *(
        "model@hydra",
        "model@_global_",
        "data@hydra.run:x",
        "_target_",
        "training._target_",
        "training.epochs.0",
        "",
        ".",
    ),
    *("..", "/", "model/cnn", "study.space", "study.space.training", "study.space.model.conv1_filters.low", "a$b", "é"),
    *("study.objective.0", "study.space.__class__", "model.name", "training..epochs", "_package_", "preview"),
]
FLAGS = [
    *("-m", "--multirun", "--cfg", "--cfg=job", "-c", "job", "all", "--cfg=hydra", "--resolve", "--info", "--nope"),
    *("--config-dir=/tmp", "--config-path", "--config-name=x", "-cd", "--package=x", "--multi", "-", "--", "", "="),
    *("=x", "~", "+", "++a", "~a=b", "-1", "-sc"),
]
values = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=12),
    st.text(alphabet="${}[]()'\"\\,:=@/. a1-", max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)
overrides = st.builds(
    "{}{}={}{}".format,
    st.sampled_from(["", "", "", "+", "++", "~", "+++", " "]),
    st.one_of(st.sampled_from(KEYS), st.text(max_size=8)),
    values,
    st.one_of(st.just(""), values),
)
typed = st.one_of(overrides, overrides, overrides, st.sampled_from(FLAGS), st.text(max_size=20))


def _compose(name: str, schema: type[Config], arguments: list[str]) -> Any:
    """The config that the arguments lead to, without a job: composed and validated."""
    line = parse_arguments(arguments, schema)
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        composed = hydra.compose(name, line.overrides)
    return config_of(composed, schema, line, Path("/here"))


@pytest.fixture(scope="module", autouse=True)
def _set_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    set_up_hydra(str(tmp_path_factory.mktemp("sweep")))


def _with_many(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Check so many examples, the same ones each time."""
    settings(max_examples=examples, derandomize=True, database=None, deadline=None)(given(strategy)(check))()


def _many(few: int, soak: int) -> pytest.MarkDecorator:
    """The number of examples, some of which take 0.1 s: few, and many more in make soak."""
    return pytest.mark.parametrize("examples", [few, pytest.param(soak, marks=pytest.mark.soak)])


@_many(150, 2000)
def test_arguments_of_any_kind_end_in_one_line_and_0_1_or_2(examples: int) -> None:
    """Composed and validated."""

    def check(arguments: list[str]) -> None:
        said, status = io.StringIO(), 0
        with contextlib.redirect_stderr(said):
            try:
                line = parse_arguments(arguments, SweepConfig)
                with hydra.initialize_config_dir(str(CONF), version_base=None):
                    composed = hydra.compose("sweep", line.overrides)
                try:
                    config_of(composed, SweepConfig, line, Path("/here"))
                # A command shows any other with its traceback.
                except KNOWN_ERRORS as error:
                    status = tell(error, SweepConfig)
            except Exception as error:
                status = tell(error, SweepConfig)
        lines = said.getvalue()
        assert status in (0, 1, 2)
        assert lines == "" if status == 0 else lines.startswith("error: ") and lines[:-1].isprintable()

    _with_many(examples, st.lists(typed, min_size=1, max_size=2), check)


@_many(250, 1300)
def test_command_ends_in_order_with_arguments_of_any_kind(examples: int, tmp_path: Path) -> None:
    """The whole command."""

    def check(arguments: list[str]) -> None:
        # Hydra writes where it is told to.
        assume(not any("hydra.run.dir" in argument for argument in arguments))
        ended = run_here("sweep", SweepConfig, lambda _: 0, *arguments, folder=tmp_path)
        assert ended.returncode in (0, 1, 2)
        assert ended.returncode == 0 or ended.stderr.startswith("error: ")
        assert "Traceback" not in ended.stderr
        assert ended.stderr.replace("\n", "").isprintable()
        assert list(tmp_path.iterdir()) == []

    _with_many(examples, st.lists(typed, min_size=1, max_size=2), check)


@_many(50, 500)
def test_text_keys_take_what_was_typed(examples: int) -> None:
    def check(tail: str) -> None:
        # No interpolation, and no address.
        name = "x" + tail.replace("${", "").replace("://", "")
        assert _compose("predict", PredictConfig, [f"run={name}"]).run == name

    _with_many(examples, st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), max_size=20), check)


@pytest.mark.parametrize("name", ["2024", "1e5", "on", "007", "null", "true", "1.0", "2024-01-01", "0x10", "-1"[1:]])
def test_text_keys_take_numbers_and_words_of_yaml_as_texts(name: str) -> None:
    assert _compose("sweep", SweepConfig, [f"study.name={name}"]).study.name == name
    assert _compose("sweep", SweepConfig, [f"study.name='{name}'"]).study.name == name


def test_text_keys_take_null_where_they_may_have_none() -> None:
    assert _compose("sweep", SweepConfig, ["study.timeout=null"]).study.timeout is None


def test_text_keys_are_those_of_the_schema() -> None:
    assert text_keys(SweepConfig) == {
        "data.path": False,
        "tracking.root": False,
        "tracking.uri": True,
        "tracking.experiment": False,
        "study.name": False,
        "study.timeout": True,
        "study.extends": True,
        "study.take": True,
        "workers.address": False,
        "workers.patience": False,
    }


def test_config_of_resolves_interpolations_and_resolvers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGITCNN_TEST", "ann")
    found = _compose(
        "sweep",
        SweepConfig,
        [
            "study.name=e${training.epochs}",
            "training.epochs=${model.conv1_kernel}",
            "tracking.root=${oc.env:NO_SUCH_VARIABLE,elsewhere}",
            "tracking.uri=https://host/${oc.env:DIGITCNN_TEST}/${study.name}",
        ],
    )
    assert (found.study.name, found.training.epochs, found.tracking.root) == ("e3", 3, "/here/elsewhere")
    assert found.tracking.uri == "https://host/ann/e3"


def test_arguments_replace_the_space_as_a_whole() -> None:
    found = _compose("sweep", SweepConfig, ["study.space={training: {epochs: {low: 2, high: 3}}}"])
    assert found.study.space == {"training": {"epochs": {"low": 2, "high": 3}}}
    found = _compose("sweep", SweepConfig, ["study.space.training={epochs: [1, 2]}"])
    assert found.study.space["training"] == {"epochs": [1, 2]}
    assert set(found.study.space["model"]) == {"conv1_filters", "conv2_filters"}


@pytest.mark.parametrize("target", ["train", "study", "ui"])
def test_make_passes_on_what_was_typed(target: str) -> None:
    typed = {
        *("data.path=/my data/x.npz", "study.space.training.epochs={low: 2, high: 8}", "study.name=it's"),
        *("tracking.root=$HOME/${oc.env:X}/$(id)`id`", "a=b\\c", "a.b=b\\ c", "c=x  y", "d=*;#&|", "training.epochs=3"),
    }
    line = ["make", "-n", "--old-file=.venv/complete", "PYTHON=python3 -x", target, *sorted(typed)]
    # Within `make test` they would say that this make is one of another's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    ended = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert set(shlex.split(ended.stdout)[2:]) == typed


@pytest.mark.parametrize("entry", ["[1, 2]", "{low: 2, high: 3}", "null"])
def test_arguments_replace_an_entry_of_the_space_as_a_whole(entry: str) -> None:
    found = _compose("sweep", SweepConfig, [f"study.space.training.epochs={entry}"])
    expected: dict[str, object] = {"[1, 2]": [1, 2], "{low: 2, high: 3}": {"low": 2, "high": 3}, "null": None}
    assert found.study.space["training"]["epochs"] == expected[entry]


def test_arguments_take_words_as_files_whatever_their_names() -> None:
    names = [
        "a.png",
        "x/b=c.png",
        "./y=2.png",
        "\udcff.png",
        "${x}.png",
        "-",
        "a b,[c",
        "[z].png",
        "a\nb",
        "back\\",
        "1e3",
    ]
    typed = [*names, "image=007", "image=[1,'x y']", "run=best"]
    found = _compose("predict", PredictConfig, typed)
    assert found.image == [*names, "007", "1", "x y"]
    assert found.run == "best"


@pytest.mark.parametrize(
    "override",
    [
        "study.constraints={parameters: {max: 200000}}",
        "study.constraints.parameters={max: 200000}",
        "study.constraints.parameters.max=200000",
    ],
)
def test_constraints_are_given_at_any_depth(override: str) -> None:
    assert _compose("sweep", SweepConfig, [override]).study.bounds() == {"parameters": {"max": 200000.0}}


def test_space_is_replaced_as_a_whole() -> None:
    space = {"training": {"batch_size": [10, 20]}}
    assert _compose("sweep", SweepConfig, ["study.space={training: {batch_size: [10, 20]}}"]).study.space == space
