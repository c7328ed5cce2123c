"""Nobody gets in: credentials stay out of every record and message, overrides and records are data."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digitcnn import addresses, signals, sweep
from digitcnn.config import SweepConfig, known_keys
from digitcnn.errors import ConfigError
from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "experiments"))
import arguments
import command

# An address, and all that is shown of it.
SHOWN = [
    ("postgresql+psycopg://ann:secret@db/x", "postgresql+psycopg://***@db/x"),
    ("postgresql+psycopg://ann@db:5432/x", "postgresql+psycopg://***@db:5432/x"),
    ("postgresql+psycopg:///x?user=ann&password=secret", "postgresql+psycopg:///x?***"),
    ("postgresql+psycopg://ann:sec%40%3A%2Fret@db/x?host=/run", "postgresql+psycopg://***@db/x?***"),
    ("postgresql+psycopg://ann:se@c:r/et@db/x", "postgresql+psycopg://***"),
    ("postgresql+psycopg://ann:se/cret@db/x", "postgresql+psycopg://***"),
    ("postgresql+psycopg://ann:se?cret@db/x", "postgresql+psycopg://***"),
    ("postgresql+psycopg://ann:se#cret@db/x", "postgresql+psycopg://***"),
    ("postgresql+psycopg://ann:se?a=b&token=cret@db/x", "postgresql+psycopg://***"),
    ("http://u:secret@h:5000", "http://***@h:5000"),
    ("https://h/mlflow?token=secret", "https://h/mlflow?***"),
    ("http://h,http://u:secret@h2", "http://***"),
    ("http://127.0.0.1:5000/mlflow", "http://127.0.0.1:5000/mlflow"),
    ("sqlite:////records of a@b/optuna.db", "sqlite:////records of a@b/optuna.db"),
    ("file:///records/a@b", "file:///records/a@b"),
]


@pytest.mark.parametrize(("address", "shown"), SHOWN)
def test_an_address_is_shown_without_its_credentials(address: str, shown: str) -> None:
    assert addresses.without_credentials(address) == shown
    around = "'study.storage={}' failed (\"{}\"), see {} for more"
    assert addresses.without_credentials(around.format(address, address, address)) == around.format(shown, shown, shown)
    assert addresses.without_credentials(shown) == shown


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
    *(
        "postgresql://u:p@h/d",
        "postgresql+psycopg://u:p@@h/d",
        "http://u:p@h",
        "file:///etc",
        "databricks",
        "sqlite://",
    ),
    *(
        "range(1,99999999999)",
        "choice(1,2)",
        "glob(*)",
        "interval(0,1)",
        "shuffle(range(1,9))",
        "sort(3,1)",
        "float(x)",
    ),
    *("range(1,2,0)", "range(0.1,nan,0.1)", "str([1])", "int(9e999)", "json_str({})", "bool(7)", "choice(range(1,9))"),
    *("[" * 90 + "]" * 90, "{a:" * 90 + "1" + "}" * 90, "9" * 5000, "a" * 7990, "a" * 300, "-1", "1e400", "0x10"),
    *(
        "nan",
        "-inf",
        "null",
        "true",
        "[]",
        "{}",
        "[1,2]",
        "1,2",
        "{low: 1, high: 2}",
        "{a: {b: 1}}",
        "''",
        '"',
        "'",
        "\\",
    ),
    *(
        "{low: 1, high: 5, step: 0}",
        "{choices: [[1]]}",
        "{1: 2}",
        "{null: 1}",
        "{[]: 1}",
        "[null]",
        "{true: 1}",
        "é漢🙂",
    ),
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
    *(
        "-m",
        "--multirun",
        "--help",
        "-h",
        "--cfg",
        "--cfg=job",
        "-c",
        "job",
        "all",
        "--cfg=hydra",
        "--resolve",
        "--info",
    ),
    *("--config-dir=/tmp", "--config-path", "--config-name=x", "-cd", "--package=x", "--experimental-rerun=x.pickle"),
    *("--shell-completion", "--version", "--hydra-help", "--multi", "-", "--", "", "=", "=x", "~", "+", "++a", "~a=b"),
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


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(typed)
def test_whatever_is_typed_is_taken_or_refused_as_data(argument: str) -> None:
    with contextlib.suppress(ConfigError, HydraException):
        line = arguments.parse([argument], ())
        assert not any("${" in override or override.lstrip("+~").startswith("hydra") for override in line.overrides)
        assert line.flags in ([], [argument])


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), max_size=20))
def test_a_file_name_arrives_as_it_was_typed(tail: str) -> None:
    name = "x" + tail
    line = arguments.parse([f"run={name}"], ("run",))
    tree: dict[str, Any] = {"run": arguments.parsed(line.overrides[0]).value()}
    line.restore(tree)
    assert tree == {"run": name}


def _refuse_or_plan(typed: list[str], tmp_path: Path) -> None:
    """Runs the command in this process as far as its plan, and checks how it ended."""

    def plan(config: SweepConfig) -> int:
        sweep.plan(config)
        return 0

    before = (sys.argv, os.environ.get("HYDRA_FULL_ERROR"), Path.cwd())
    handlers = {number: signal.getsignal(number) for number in signals.ENDING}
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    output, errors = io.StringIO(), io.StringIO()
    os.chdir(empty)
    sys.argv = ["experiments/sweep.py", f"tracking.root={tmp_path}/records", *typed]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            pytest.raises(SystemExit) as ended,
        ):
            command.main("sweep", SweepConfig, plan)
    finally:
        sys.argv = before[0]
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if before[1] is not None:
            os.environ["HYDRA_FULL_ERROR"] = before[1]
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.chdir(before[2])
    text = errors.getvalue()
    if ended.value.code == 0:
        assert text == ""
    else:
        assert ended.value.code == 2, text
        assert text.startswith("error: ")
        assert text.endswith("\n")
        assert text[:-1].isprintable()
    assert "Traceback" not in output.getvalue()
    assert list(empty.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


several = st.lists(typed, min_size=1, max_size=3)
_whole = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@settings(_whole, max_examples=60)
@given(several)
def test_a_command_ends_with_0_or_2_and_leaves_nothing(tmp_path: Path, typed: list[str]) -> None:
    _refuse_or_plan(typed, tmp_path)


@pytest.mark.soak
@settings(_whole, max_examples=2000)
@given(several)
def test_2000_generated_commands_end_with_0_or_2_and_leave_nothing(tmp_path: Path, typed: list[str]) -> None:
    _refuse_or_plan(typed, tmp_path)
