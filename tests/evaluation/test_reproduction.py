"""Finding a run to reproduce, and judging the repeated run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import optuna
import pandas as pd
import pytest

from digitcnn import evaluation, study, tracking
from digitcnn.config import ReproduceConfig, StudyReference, SweepConfig
from digitcnn.errors import ConfigError
from digitcnn.evaluation import ComparedMetric, reproduction
from digitcnn.evaluation.reproduction import DRIFT, UPDATES, environment_differences, judge, tolerance
from digitcnn.files import sqlite_url
from experiments.drift.drift import PATH, ROUNDING, SEEDS, WRONG, Case, largest_drift
from tests.conftest import with_study
from tests.support.sweeps import work
from tests.support.trainers import InstantTrainer

ALLOWED = "must be champion, best with study=NAME, a run id, at least its first 6 characters, or a manifest's FILE.yaml"


def test_find_run_knows_champion_best_and_ids_only(sweep_config: SweepConfig, root: Path) -> None:
    work(with_study(sweep_config, trials=2, workers=1), InstantTrainer())
    opened = study.existing_study(root, "small")
    assert opened is not None
    foreign = optuna.create_study(study_name="foreign", storage=sqlite_url(root / "optuna.db"))
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    store = tracking.open_store(sweep_config.tracking)

    def find(reference: str, name: str = "small", key: str = "run") -> str:
        return evaluation.find_run(store, reference, StudyReference(name=name), sweep_config.tracking, key)

    best = max(opened.trials, key=lambda trial: trial.values[0]).user_attrs["run_id"]
    assert find("best") == find(best) == find(best[:6]) == best
    for reference, name, key, line in (
        ("best", "nowhere", "run", f"study.name=nowhere: no such study is recorded in {root}; there are small"),
        ("best", "foreign", "run", "study.name=foreign: no such study is recorded"),
        ("champion", "small", "run", "run=champion: there is none yet"),
        ("f" * 31, "small", "run", f"run={'f' * 31}: no such run is recorded"),
        ("12ab", "small", "run", f"run=12ab: {ALLOWED}"),
        ("Best", "small", "run", f"run=Best: {ALLOWED}"),
        ("a.yaml", "small", "runs", "runs=a.yaml: must be champion, best with study=NAME, a run id, or at least"),
    ):
        with pytest.raises(ConfigError) as caught:
            find(reference, name, key)
        assert str(caught.value).startswith(line)
    wanted = ReproduceConfig(run="best", study=StudyReference(name="foreign"), tracking=sweep_config.tracking)
    with pytest.raises(ConfigError, match="study.name=foreign: no such study is recorded"):
        evaluation.find_manifest(wanted)


def test_find_config_follows_a_run_to_the_one_that_was_trained(
    copied: SweepConfig, opened: study.OpenStudy, store: tracking.Store
) -> None:
    trained = str(study.read_trial(opened.trials[1]).run_id)
    same = tracking.create_training_run(store, copied.baseline, "same", {})
    tracking.copy_run(store, trained, same, "FINISHED")
    infeasible = tracking.create_training_run(store, copied.baseline, "infeasible", {})
    tracking.close_run(store, infeasible, "KILLED", "breaks study.constraints, and was not trained")
    # Then
    found = evaluation.find_config(same[:8], copied.tracking)
    assert found == evaluation.find_config(trained, copied.tracking)
    assert (found[0], found[1].training.batch_size) == (trained, opened.trials[1].params["training.batch_size"])
    for run_id, line in (
        (str(opened.parent_run_id), "is that of study small itself; name the run of a trial"),
        (infeasible, r"has no config.yaml \(breaks study.constraints, and was not trained\)"),
    ):
        with pytest.raises(ConfigError, match=f"^run={run_id}: {line}$"):
            evaluation.find_config(run_id, copied.tracking)


# The columns of tolerance's arguments that all of these have: a metric of 1,000 images after 20 updates.
NEAR = ComparedMetric(1, "train_loss", 0.5, 0.5001, tolerance("train_loss", 0.5, 0.9, 1000, 20))
FAR = ComparedMetric(1, "train_loss", 0.5, 0.51, tolerance("train_loss", 0.5, 0.9, 1000, 20))


def test_judge_gives_a_reason_for_its_verdict() -> None:
    threads = {"threads": "1 recorded, 2 now"}
    assert judge("a", "a", {}, ()) == ("IDENTICAL", ())
    assert judge("a", "b", threads, [NEAR]) == ("EQUIVALENT", ("threads: 1 recorded, 2 now",))
    what = "train_loss of epoch 1: 0.5 recorded, 0.5001 repeated, in the same environment"
    assert judge("a", "b", {}, [NEAR]) == ("DIFFERENT", (what,))
    assert judge("a", "b", {}, ()) == ("DIFFERENT", ("the weights differ, in the same environment",))
    verdict, reasons = judge("a", "b", threads, [NEAR, FAR])
    assert verdict == "DIFFERENT"
    assert reasons[0].startswith("train_loss of epoch 1: 0.5 recorded, 0.51 repeated, tolerance 0.00")
    nothing = ComparedMetric(1, "train_loss", 0.5, float("nan"), 1.0)
    assert judge("a", "b", {"cpu": "x"}, [nothing])[0] == "DIFFERENT"


def test_tolerance_is_a_multiple_of_the_measured_drift_and_at_most_that_of_independent_runs() -> None:
    first, last = UPDATES[0], UPDATES[-1]
    assert tolerance("train_loss", 0.5, 0.9, 10_000, first) == pytest.approx(0.5 * 1.5 * DRIFT["train_loss"][0])
    assert tolerance("train_loss", 0.5, 0.9, 10_000, 1) == tolerance("train_loss", 0.5, 0.9, 10_000, first)
    spread = (2 * 1000 * 0.9) ** 0.5
    expected = 1.5 * DRIFT["train_accuracy"][0] * spread / 10_000
    assert tolerance("train_accuracy", 0.9, 0.9, 10_000, first) == pytest.approx(expected)
    # At least five images.
    assert tolerance("train_accuracy", 0.9, 0.9, 500, first) == pytest.approx(5 / 500)
    # Three standard errors of the difference of two counts.
    assert tolerance("train_loss", 0.04, 0.99, 10_000, last + 1) == pytest.approx(3 * 0.04 * (2 / 100) ** 0.5)
    expected = 3 * (2 * 0.99 * 0.01 / 10_000) ** 0.5
    assert tolerance("test_accuracy", 0.99, 0.99, 10_000, first) == pytest.approx(expected)
    assert tolerance("test_accuracy", 1.0, 1.0, 100, first) > 0


@pytest.fixture(scope="module")
def measured() -> pd.DataFrame:
    """The trainings of drift.csv."""
    return pd.read_csv(PATH)


def _verdicts(rows: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """The verdict on each measured training, by precision and case."""
    found: dict[tuple[str, str], list[str]] = {}
    for (precision, case, _), part in rows.groupby(["precision", "case", "seed"], sort=False):
        recorded = part.set_index(["epoch", "metric"])["reference"].to_dict()
        metrics = [
            ComparedMetric(
                row.epoch,
                row.metric,
                row.reference,
                row.value,
                tolerance(
                    row.metric,
                    min(row.reference, row.value),
                    recorded[row.epoch, row.metric.replace("loss", "accuracy")],
                    10_000,
                    200 * row.epoch,
                ),
            )
            for row in part.itertuples()
        ]
        found.setdefault((precision, case), []).append(judge("a", "b", {"threads": "other"}, metrics)[0])
    return found


KINDS = {"rounding": ROUNDING, "wrong": WRONG}


def _all(cases: Iterable[Case], verdict: str) -> dict[tuple[str, str], list[str]]:
    return {(each, case.name): [verdict] * SEEDS[each] for case in cases for each in case.precisions}


def test_what_only_rounds_is_equivalent_and_another_training_is_different(measured: pd.DataFrame) -> None:
    """All 100 and more of either kind."""
    assert _verdicts(measured) == _all(ROUNDING, "EQUIVALENT") | _all(WRONG, "DIFFERENT")


def test_seeds_that_the_drift_was_not_measured_with_are_judged_as_well(
    measured: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each seed by the drift of all others: of the trainings that only round, one in bfloat16 lies outside."""
    found: Counter[tuple[str, str]] = Counter()
    for seed in range(max(SEEDS.values())):
        drift = largest_drift(measured[measured["seed"] != seed])
        monkeypatch.setattr(reproduction, "DRIFT", drift)
        for (_, case), verdicts in _verdicts(measured[measured["seed"] == seed]).items():
            (kind,) = [name for name, cases in KINDS.items() if case in [each.name for each in cases]]
            found.update((kind, each) for each in verdicts)
    total = {name: sum(SEEDS[each] for case in cases for each in case.precisions) for name, cases in KINDS.items()}
    assert found["wrong", "DIFFERENT"] == total["wrong"]
    assert found["rounding", "EQUIVALENT"] == total["rounding"] - 1


def test_drift_is_the_largest_that_was_measured(measured: pd.DataFrame) -> None:
    largest = largest_drift(measured)
    assert [200 * epoch for epoch in sorted(measured["epoch"].unique())] == list(UPDATES)
    assert largest.keys() == DRIFT.keys()
    for name, drift in DRIFT.items():
        assert list(drift) == pytest.approx(largest[name], rel=0.02)


ENVIRONMENT = {
    "platform": "Linux-6.8.0-45-generic-x86_64-with-glibc2.36",
    "cpu": "Fast",
    "threads": 2,
    "backend": "tensorflow",
    "python": "3.11.7",
    "flags": {},
    "packages": {"keras": "3.15.1", "numpy": "2.4.6", "tensorflow": "2.21.0", "mlflow": "3.13.0", "optuna": "5.0.0"},
    "git": {"commit": "a" * 40, "dirty": False},
}


def test_only_what_can_change_a_number_is_a_difference() -> None:
    packages = ENVIRONMENT["packages"]
    assert isinstance(packages, dict)
    same = ENVIRONMENT | {"platform": "Linux-6.9.1-cloud-x86_64-with-glibc2.36", "python": "3.11.9"}
    same |= {"packages": packages | {"mlflow": "3.14.0", "optuna": "5.1.0", "hydra-core": "1.4"}, "cpu_flags": "avx2"}
    assert environment_differences(ENVIRONMENT, same) == {}
    other = ENVIRONMENT | {"packages": packages | {"numpy": "2.5.0"}, "threads": 1}
    assert set(environment_differences(ENVIRONMENT, other)) == {"version.numpy", "threads"}
    flags = [ENVIRONMENT | {"cpu_flags": each} for each in ("avx2 fma", "avx2 avx512f fma")]
    assert environment_differences(*flags) == {"cpu_flags": "avx2 fma recorded, avx2 avx512f fma now"}
    set_by = [{"OMP_DYNAMIC": "true", "MKL_CBWR": "AVX2"}, {"OMP_DYNAMIC": "false", "MKL_CBWR": "AVX2"}]
    variables = [ENVIRONMENT | {"flags": each} for each in set_by]
    assert environment_differences(*variables) == {"flags.OMP_DYNAMIC": "true recorded, false now"}
    commit = ENVIRONMENT | {"git": {"commit": "b" * 40, "dirty": True}}
    assert environment_differences(ENVIRONMENT, commit) == {
        "code": "commit aaaaaaaaaa recorded, commit bbbbbbbbbb with uncommitted changes now"
    }
