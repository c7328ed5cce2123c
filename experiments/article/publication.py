"""Publish the study from the records into a folder: tables as CSV, the champion, the figure and RESULTS.md."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import pandas as pd

from digitcnn import study, tracking
from digitcnn.config import Config, FilePath, TrackingConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation import write_manifest
from digitcnn.files import write_atomically
from experiments.article import collection, provenance, results
from experiments.article.collection import Part

logger = logging.getLogger(__name__)

_SAFE = "the runs are recorded"


class PublishConfig(Config):
    """The records that are read and the folder that the results are written to.

    `from_tables`: no records are read; RESULTS.md and the figure are made again from the tables in the folder.
    """

    folder: FilePath = "experiments/results"
    from_tables: bool = False
    tracking: TrackingConfig = TrackingConfig()


def publish(config: PublishConfig) -> Path:
    """Write the tables, the champion's manifest, the figure and RESULTS.md; return the path of RESULTS.md.

    A part that is not recorded here, or not whole, stays as it was published before, if it was, and is logged.
    Raises ConfigError if there is no other part. Nothing is written before all is made.
    """
    folder = Path(config.folder)
    with tracking.store_errors(config.tracking), study.storage_errors(config.tracking.folder):
        store = tracking.open_recorded(config.tracking, "publish")
        parts, missing = collection.collect_parts(store, config.tracking)
    if not parts:
        for reason in missing.values():
            logger.warning(f"not published: {reason}")
        raise ConfigError(f"publish: nothing that it publishes is recorded in {config.tracking.folder}")
    before = _kept_tables(folder, {name for part in parts for name in part.tables})
    for question, reason in missing.items():
        logger.warning(f"{'left as it was published' if results.has(before, question) else 'not published'}: {reason}")
    tables = {name: table for part in parts for name, table in part.tables.items()}
    tables["provenance"] = _joined_provenance(parts, before.get("provenance"))
    written = {name: table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()}
    # From the files' text, as anybody else makes it.
    published = before | {
        name: results.parse_table(name, io.StringIO(text), tables.get(f"{name}_runs")) for name, text in written.items()
    }
    contents = {f"{name}.csv": text for name, text in written.items()} | _rendered(published)
    for part in parts:
        for name, champion in part.champions.items():
            write_manifest(champion, folder / name, "A champion of the published studies: RESULTS.md.")
    return _write(folder, contents)


def publish_from_tables(folder: Path) -> Path:
    """Write the figure and RESULTS.md again from the tables in the folder alone; return the path of RESULTS.md.

    Raises ConfigError if there are no tables, or not as publish wrote them.
    """
    tables = _kept_tables(folder, frozenset())
    if not tables:
        raise ConfigError(f"folder={folder}: has no tables; from_tables=false writes them from the records")
    return _write(folder, _rendered(tables))


def _rendered(tables: Mapping[str, pd.DataFrame]) -> dict[str, str | bytes]:
    """Return the figure, if its tables are there, and the text, by file name."""
    from experiments.article import figures

    picture = figures.draw(tables)
    contents: dict[str, str | bytes] = {} if picture is None else {"results.png": picture}
    return contents | {"RESULTS.md": results.render_text(tables)}


def _write(folder: Path, contents: Mapping[str, str | bytes]) -> Path:
    """Write files in their order. The text comes last: the files that it links to exist by then."""
    for name, content in contents.items():
        write_atomically(folder / name, content, _SAFE)
    return folder / "RESULTS.md"


def _kept_tables(folder: Path, renewed: Set[str]) -> dict[str, pd.DataFrame]:
    """Return the folder's tables except the renewed ones. Raises ConfigError if they are not as publish wrote them."""
    try:
        tables = results.read_tables(folder, renewed)
        if tables:
            _rendered(tables)
    except (OSError, MachineError):
        raise
    # A corrupt or foreign file can fail in any way that keeps the text or the figure from being made.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"folder={folder}: the tables in it are not as publish wrote them ({reason}); "
            "restore them, or publish into another folder"
        ) from error
    return tables


def _joined_provenance(parts: Sequence[Part], before: pd.DataFrame | None) -> pd.DataFrame:
    """Return the provenance rows of these parts, and of those that stay as they were published before."""
    made = [row for part in parts for row in part.made]
    renewed = {row["part"] for row in made}
    kept = [] if before is None else [row for row in before.to_dict("records") if row["part"] not in renewed]
    return pd.DataFrame([*made, *kept], columns=list(provenance.COLUMNS)).sort_values("part", kind="stable")
