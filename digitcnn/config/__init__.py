"""Configuration: every command's schema, its validation, one-line messages and addresses."""

from digitcnn.config.commands import (
    ConfirmConfig,
    PredictConfig,
    ReportConfig,
    ReproduceConfig,
    StudyReference,
    SweepConfig,
    UiConfig,
)
from digitcnn.config.loading import Config, flatten, known_keys, load_config, nearest_key, nested
from digitcnn.config.schema import (
    Backend,
    CnnConfig,
    Count,
    DataConfig,
    FilePath,
    MlpConfig,
    ModelConfig,
    RunConfig,
    StudyConfig,
    TrackingConfig,
    TrainingConfig,
    expand_user,
    parse_duration,
)
from digitcnn.config.urls import value_without_credentials, without_credentials

__all__ = [
    "Backend",
    "CnnConfig",
    "Config",
    "ConfirmConfig",
    "Count",
    "DataConfig",
    "FilePath",
    "MlpConfig",
    "ModelConfig",
    "PredictConfig",
    "ReportConfig",
    "ReproduceConfig",
    "RunConfig",
    "StudyConfig",
    "StudyReference",
    "SweepConfig",
    "TrackingConfig",
    "TrainingConfig",
    "UiConfig",
    "expand_user",
    "flatten",
    "known_keys",
    "load_config",
    "nearest_key",
    "nested",
    "parse_duration",
    "value_without_credentials",
    "without_credentials",
]
