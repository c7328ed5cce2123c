"""All that a command and its workers import, for the process from which tests fork them."""

import importlib
import sys

from digitcnn.cli.program import COMMANDS
from digitcnn.training.variables import settle_variables

settle_variables("tensorflow", 1)
for name in (
    *(f"digitcnn.cli.commands.{each}" for each in COMMANDS),
    *("tensorflow", "mlflow.keras", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.db.utils"),
    *("mlflow.pyfunc", "opentelemetry.sdk.trace", "alembic.command", "sqlalchemy.dialects.sqlite"),
    *("matplotlib.backends.backend_agg", "plotly.graph_objs._figure", "plotly.offline", "optuna.visualization"),
    *("optuna.importance", "sklearn.ensemble", "digitcnn.training.engines.fast", "tests.support.processes"),
):
    importlib.import_module(name)
# The backend and its threads are settled where Keras is imported: that is for each process that is forked.
del sys.modules["keras"]
