"""The peer of benchmark row g: the study as the documentations of Optuna, Keras and MLflow show it, in one process.

`python -m experiments.benchmarks.idiomatic TRIALS EPOCHS TRAIN_SIZE VALIDATION_SIZE FOLDER`.
Same data, space, sampler and baseline as ours; an Optuna loop around Keras's own fit with MLflow's autologging.
"""

import sys
from pathlib import Path

import keras
import mlflow
import optuna
from keras import layers

from digitcnn.config import DataConfig
from digitcnn.training import load_splits


def study(trials: int, epochs: int, train_size: int, validation_size: int, folder: Path) -> None:
    """Run the trials one after the other."""
    splits = load_splits(DataConfig(train_size=train_size, validation_size=validation_size))
    x_train = splits.train.images[..., None].astype("float32") / 255
    x_validation = splits.validation.images[..., None].astype("float32") / 255
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment("idiomatic", artifact_location=(folder / "artifacts").as_uri())
    )
    mlflow.keras.autolog()

    def objective(trial: optuna.Trial) -> float:
        batch_size = trial.suggest_categorical("batch_size", [64, 125, 250, 500])
        conv1_filters = trial.suggest_int("conv1_filters", 16, 64, step=8)
        conv2_filters = trial.suggest_int("conv2_filters", 32, 128, step=16)
        model = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(conv1_filters, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(conv2_filters, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(512, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        with mlflow.start_run():
            mlflow.log_params(trial.params)
            history = model.fit(
                x_train,
                splits.train.labels,
                batch_size=batch_size,
                epochs=epochs,
                validation_data=(x_validation, splits.validation.labels),
                verbose=0,
            )
        return float(history.history["val_accuracy"][-1])

    opened = optuna.create_study(
        direction="maximize",
        storage=f"sqlite:///{folder}/optuna.db",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.NopPruner(),
    )
    opened.enqueue_trial({"batch_size": 250, "conv1_filters": 32, "conv2_filters": 64})
    opened.optimize(objective, n_trials=trials)


if __name__ == "__main__":
    trials, epochs, train_size, validation_size = (int(word) for word in sys.argv[1:5])
    study(trials, epochs, train_size, validation_size, Path(sys.argv[5]))
