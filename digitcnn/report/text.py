"""The words of a report: sentences and tables, for its page and for its summary in Markdown."""

import shlex
from collections.abc import Iterable, Sequence

import pandas as pd

from digitcnn import evaluation, study
from digitcnn.formatting import format_interval, format_p, format_percent, format_points, named_null, printable
from digitcnn.records import Column, Metric, is_maximized
from digitcnn.report import charts
from digitcnn.report.record import GONE, Confirmation, StudyRecord
from digitcnn.study import Choices, Range

MAX_ROWS = 100
ABLATION = (
    "What each change from the baseline to the best trial brings, made alone in the baseline, and in the trial, "
    "where it is compared with the trial without it."
)
_ROWS_OF_SUMMARY = 5
_STATUS = {
    "RUNNING": "a sweep is at work on it, or was cut off",
    "KILLED": "the last sweep was interrupted; the same command resumes it",
    "FAILED": "the last sweep was ended by a failure; the same command resumes it",
    GONE: "its records in MLflow are gone; the same command begins new ones",
}


def state(found: StudyRecord) -> str:
    """Return how many trials the study has finished, and how its last sweep ended."""
    counts = found.table[Column.STATE].value_counts() if len(found.table) else pd.Series(dtype=int)
    # How many were asked for is recorded there alone.
    asked = "" if found.status == GONE else f" of {found.total:,}"
    text = f"{found.finished:,}{asked} trials finished"
    if len(counts):
        text += f" ({', '.join(f'{number:,} {name}' for name, number in counts.items())})"
    ending = _STATUS.get(found.status)
    return f"{text}; {ending}." if ending else f"{text}."


def question(found: StudyRecord) -> str:
    """Return the study's question: which values of its parameters serve its objectives."""
    wanted = [
        f"{'higher' if is_maximized(name) else 'lower'} {charts.title_of(name).partition(' (')[0]}"
        for name in found.objectives
    ]
    parameters = listed(found.space)
    if len(wanted) == 1:
        return f"Which values of {parameters} give a {wanted[0]} than the baseline's?"
    return f"Which values of {parameters} are the best compromises between {listed(f'a {each}' for each in wanted)}?"


def listed(words: Iterable[str]) -> str:
    """Return words as a sentence lists them: a, b and c."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def space(found: StudyRecord) -> pd.DataFrame:
    """Return the searched parameters as texts, with the values of the baseline, the confirmed trials and the best."""
    names = [] if found.confirmation is None else found.confirmation.table[Column.CONFIG].iloc[1:].tolist()
    best = study.best_trial_number(found.table)
    if best is not None and f"trial {best}" not in names:
        names.append(f"trial {best}")
    values = [found.study.get_trials(deepcopy=False)[int(name.split()[1])].params for name in names]
    body = []
    for name, described in found.space.items():
        searched = Choices(tuple(described)) if isinstance(described, list) else Range(**described)
        cells = [study.format_cell(name, named_null(each[name])) for each in (found.baseline, *values)]
        body.append([name, str(searched), *cells])
    return pd.DataFrame(body, columns=["parameter", "searched", "baseline", *names])


def fixed(found: StudyRecord) -> list[str]:
    """Return all values that are not searched, as KEY=VALUE."""
    return [f"{key}={named_null(value)}" for key, value in found.baseline.items() if key not in found.space]


def abstract(found: StudyRecord) -> list[str]:
    """Return the finding in a few sentences: the confirmation's, or the search's with its reservation."""
    if found.confirmation is None:
        alone = "This is the search alone, which decides nothing: it has not been confirmed yet."
        return [of_search(found)[0], *([] if found.completed.empty else [alone])]
    table = found.confirmation.table
    *configs, decided, basis = evaluation.verdict_sentences(table)
    of_leading = configs[evaluation.leading_row(table)]
    return [f"{line[0].upper()}{line[1:]}." for line in (decided, of_leading, configs[0], basis)]


def of_search(found: StudyRecord) -> list[str]:
    """Return the search's best trial beside the baseline, and how much that is worth."""
    completed = found.completed
    if completed.empty:
        return ["No trial has completed yet."]
    lines = [f"In the search, {study.best_against_baseline(found.table, found.objectives)}."]
    if len(found.objectives) > 1:
        front = int((completed[Column.RANK] == 1).sum())
        of = f"{len(completed):,} completed trials make up the Pareto front of {listed(found.objectives)}"
        lines.append(f"{front:,} of {of}.")
    if found.confirmation is None:
        return [*lines, f"{_chance(found)} What decides it: {_of_study(found, 'confirm')}"]
    if found.unconfirmed is not None:
        lines.append(
            f"Trial {found.unconfirmed}, now the first of the leaderboard, is not among the confirmed ones: "
            "confirm again."
        )
    return lines


def _chance(found: StudyRecord) -> str:
    images = int(found.baseline["data.validation_size"])
    accuracy = float(found.completed[Metric.VALIDATION_ACCURACY].iloc[0])
    error = format_percent(evaluation.standard_error(accuracy, images))
    each = "One run each decides" if found.seeds == 1 else "Means of a few seeds decide"
    return (
        f"{each} nothing: the standard error of an accuracy of {format_percent(accuracy)} % is {error} "
        f"points (binomial, n = {images:,} images), and the first of {len(found.completed):,} is the luckiest as well."
    )


def confirmed_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return a confirmation's table as texts; a config that diverged has its verdict alone."""
    body = []
    for _, row in table.iterrows():
        if row["n"] == 0:
            body.append([row[Column.CONFIG], "0", *[""] * 9, evaluation.verdict_of_row(row)])
            continue
        compared = [""] * 5
        if row[Column.CONFIG] != "baseline":
            compared = [
                format_points(row[Column.DIFFERENCE]),
                format_interval(row[Column.DIFFERENCE_LOW], row[Column.DIFFERENCE_HIGH], signed=True),
                format_p(row[Column.P]),
                evaluation.format_superiority(row),
                f"{row[Column.ONLY_CANDIDATE_RIGHT]}, {row[Column.ONLY_BASELINE_RIGHT]}",
            ]
        body.append(
            [
                row[Column.CONFIG] + (" (champion)" if row[Column.CHAMPION] else ""),
                str(row["n"]),
                f"{format_percent(row['mean'])} %",
                format_percent(row["sd"]),
                format_interval(row["low"], row["high"]),
                *compared,
                f"{row[Metric.CPU_SECONDS]:.1f}",
                evaluation.verdict_of_row(row),
            ]
        )
    head = ["config", "n", "mean", "sd", "95 % interval", "difference (points)", "simultaneous interval", "p"]
    head += ["beats the baseline", "right alone, wrong alone", "CPU s", "verdict"]
    return pd.DataFrame(body, columns=head)


def basis(confirmation: Confirmation) -> str:
    """Return what the verdicts rest on, and what differs between the runs."""
    lines = [evaluation.basis_sentence(confirmation.table), *evaluation.mixed_runs(confirmation.runs)]
    return " ".join(f"{line[0].upper()}{line[1:]}." for line in lines)


def ranking(table: pd.DataFrame, most: int = MAX_ROWS) -> pd.DataFrame:
    """Return the first rows of a leaderboard as texts."""
    rows = table.head(most).to_dict("records")
    texts = [[study.format_cell(str(name), value) for name, value in row.items()] for row in rows]
    return pd.DataFrame(texts, columns=[study.column_heading(str(name)) for name in table.columns])


def of_champion(found: StudyRecord, wrong: int, images: int) -> str:
    """Return the champion's name and run, and how many of the test images it has wrong."""
    if found.confirmation is None:
        return f"There is no champion yet: {_of_study(found, 'confirm')} finds it."
    manifest = found.confirmation.manifest
    name = "the baseline" if found.confirmation.champion == "baseline" else found.confirmation.champion
    return (
        f"The champion is {name}. Its model, of run {manifest.run_id} with seed {manifest.config.training.seed}, "
        f"has {wrong} of {images:,} test images wrong."
    )


def commands(found: StudyRecord) -> list[str]:
    """Return the recorded commands, and those that lead on from here."""
    # A study whose own run is gone is confirmed once a sweep has begun another.
    further = [_of_study(found, each) for each in ("confirm", "report") if each == "report" or found.status != GONE]
    if found.confirmation is not None:
        run = f"run={found.confirmation.manifest.run_id}"
        further = [further[1], shlex.join(["digitcnn", "reproduce", run, *found.place])]
    return list(dict.fromkeys([*map(_one_command, found.commands), *further]))


def _of_study(found: StudyRecord, command: str) -> str:
    """Return a command on the study, with the place of its records."""
    return shlex.join(["digitcnn", command, f"study={found.study.study_name}", *found.place])


def _one_command(recorded: str) -> str:
    """Return a recorded command as one line, which a shell takes for one command whatever was recorded."""
    try:
        words = shlex.split(recorded)
    except ValueError:
        words = [recorded]
    return printable(shlex.join(words))


def environment(found: StudyRecord) -> pd.DataFrame:
    """Return the runs' environments; where they differ, every value with its number of runs."""
    body = [
        [name, evaluation.values_with_runs(values) if len(values) > 1 else next(iter(values))]
        for name, values in found.environment.items()
    ]
    return pd.DataFrame(body, columns=["what", "recorded by the runs"])


def summary(found: StudyRecord, early: str = "") -> str:
    """Return the report in short, as Markdown for a README; `early` says what early epochs tell of the end."""
    confirmed = []
    if found.confirmation is not None:
        confirmed = evaluation.verdict_sentences(found.confirmation.table)
        confirmed += evaluation.mixed_runs(found.confirmation.runs)
    lines = [f"# Study {found.study.study_name}", "", state(found), "", question(found), ""]
    lines += [f"- {_escaped(line)}" for line in [*confirmed, *of_search(found), *filter(None, [early])]]
    if len(found.table):
        first = ranking(found.table.drop(columns=[Column.RUN_ID, Column.NOTE]), _ROWS_OF_SUMMARY)
        lines += ["", markdown_of(first)]
    if found.ablation is not None:
        lines += ["", ABLATION, "", markdown_of(evaluation.ablation_texts(found.ablation))]
    return "\n".join([*lines, "", "```bash", *commands(found), "```", ""])


def markdown_of(texts: pd.DataFrame) -> str:
    """Return a table of texts in Markdown."""
    return markdown_table(texts.columns.tolist(), texts.to_numpy().tolist())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown of texts that may hold anything."""
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in (head, ["---"] * len(head), *rows))


def _escaped(text: str) -> str:
    # Markdown would take them for a table's bar, for HTML and for a row's end.
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
