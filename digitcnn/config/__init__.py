"""Configuration: every command's schema, its validation, one-line messages and addresses."""

from digitcnn.config.commands import (
    MAX_SEEDS,
    ConfirmConfig,
    DeleteConfig,
    DiffConfig,
    PredictConfig,
    RecordsConfig,
    ReportConfig,
    ReproduceConfig,
    RunsConfig,
    StudiesConfig,
    StudyChoice,
    StudyReference,
    SweepConfig,
    TrainConfig,
    UiConfig,
)
from digitcnn.config.fields import Backend, Count, FilePath, Precision, expand_user, listed, parse_duration
from digitcnn.config.loading import AnyConfig, Config, flatten, known_keys, load_config, nearest_key, nested
from digitcnn.config.schema import (
    AugmentationConfig,
    CnnConfig,
    DataConfig,
    LocalWorkers,
    MlpConfig,
    ModelConfig,
    RayWorkers,
    RunConfig,
    StudyConfig,
    TrackingConfig,
    TrainingConfig,
    WorkersConfig,
)
from digitcnn.config.urls import value_without_credentials, without_credentials
