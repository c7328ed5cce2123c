"""A user's environment at its worst: variables and files that libraries obey, planted at once."""

from __future__ import annotations

import json
from pathlib import Path

# Each of them changed a result, or ended a command, of some version of the libraries or of digitcnn.
VARIABLES = {
    "KERAS_BACKEND": "torch",
    "KERAS_MAX_EPOCHS": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
    "KERAS_NNX_ENABLED": "1",
    "KERAS_TORCH_DEVICE": "meta",
    "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "1",
    "TF_XLA_FLAGS": "--tf_xla_no_such_flag=8",
    "XLA_FLAGS": "--xla_no_such_flag=1",
    "TF_JITRT_FLAGS": "--no_such_flag",
    "TF_ENABLED_DEVICE_TYPES": "GPU",
    "TF_NUM_INTRAOP_THREADS": "7",
    "TF_NUM_INTEROP_THREADS": "7",
    "OMP_NUM_THREADS": "7",
    "TF_DETERMINISTIC_OPS": "0",
    "TF_SET_ONEDNN_FPMATH_MODE": "BF16",
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1",
    "TF_USE_DEEP_CONV2D": "1",
    "TF_ENABLE_ZENDNN_OPTS": "1",
    "TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL": "0",
    "TF_OVERRIDE_GLOBAL_THREADPOOL": "1",
    "TF_OPTIONALS_IN_GRADIENTS": "1",
    "TF_CPU_ALLOCATOR_USE_BFC": "1",
    "TF_CPU_BFC_MEM_LIMIT_IN_MB": "1",
    "TF_MKL_ALLOC_MAX_BYTES": "many",
    "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": "/nonexistent",
    "TF_CONFIG": '{"cluster": {"worker": ["127.0.0.1:9"]}}',
    "AUTOGRAPH_STRICT_CONVERSION": "1",
    "CUDA_VISIBLE_DEVICES": "0",
    "ONEDNN_VERBOSE": "2",
    "DNNL_VERBOSE": "2",
    "JAX_ENABLE_X64": "1",
    "JAX_PLATFORMS": "tpu",
    "HDF5_DRIVER": "nonsense",
    "HDF5_VOL_CONNECTOR": "nonsense",
    "MPLBACKEND": "nonsense",
    "MPLCONFIGDIR": "/dev/null/matplotlib",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "MLFLOW_REGISTRY_URI": "http://127.0.0.1:9",
    "MLFLOW_RUN_ID": "0" * 32,
    "MLFLOW_EXPERIMENT_ID": "77",
    "MLFLOW_EXPERIMENT_NAME": "another",
    "MLFLOW_ACTIVE_MODEL_ID": "m-1",
    "MLFLOW_RUN_CONTEXT": '{"planted": "pl4nted"}',
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
    "MLFLOW_ENABLE_WORKSPACES": "true",
    "MLFLOW_WORKSPACE": "another",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH": "3",
    "MLFLOW_SQLALCHEMYSTORE_ECHO": "true",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NoSuchPool",
    "MLFLOW_READ_REPLICA_BACKEND_STORE_URI": "sqlite:////nonexistent/x.db",
    "MLFLOW_LOCK_MODEL_DEPENDENCIES": "true",
    "MLFLOW_LOGGING_LEVEL": "DEBUG",
    "MLFLOW_DISABLE_TELEMETRY": "false",
    "MLFLOW_BACKEND_STORE_URI": "sqlite:////nonexistent/x.db",
    "MLFLOW_REGISTRY_STORE_URI": "sqlite:////nonexistent/x.db",
    "MLFLOW_ARTIFACTS_ONLY": "true",
    "MLFLOW_STATIC_PREFIX": "/elsewhere",
    "MLFLOW_SERVER_ALLOWED_HOSTS": "*",
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
    "MLFLOW_HOST": "0.0.0.0",
    "MLFLOW_PORT": "9",
    "MLFLOW_WORKERS": "7",
    "MLFLOW_UVICORN_OPTS": "--no-such-option",
    "UVICORN_ROOT_PATH": "/elsewhere",
    "UVICORN_UDS": "/nonexistent/socket",
    "OPTUNA_STORAGE": "sqlite:////nonexistent/x.db",
    "PLOTLY_RENDERER": "nonsense",
    "GIT_DIR": "/nonexistent",
    "GIT_WORK_TREE": "/nonexistent",
    "PYTHONHASHSEED": "5",
    "PYTHONWARNINGS": "error",
    "PYTHONOPTIMIZE": "1",
    "http_proxy": "http://127.0.0.1:9",
    "FORCE_COLOR": "1",
    "LC_ALL": "C",
    "TZ": "Asia/Kathmandu",
}


def plant(folder: Path) -> dict[str, str]:
    """Return the planted variables, of which some name a home folder with files of Keras, matplotlib and Git."""
    home = folder / "home"
    settings = {"image_data_format": "channels_first", "floatx": "float64", "epsilon": 0.1, "backend": "torch"}
    drawn = "savefig.format: pdf\ntext.usetex: true\nfigure.dpi: 9\nno.such.key: 1\n"
    files = {
        ".keras/keras.json": json.dumps({**settings, "nnx_enabled": True}),
        ".config/matplotlib/matplotlibrc": drawn,
        "matplotlibrc": drawn,
        ".mlflow/credentials": "[mlflow]\nmlflow_tracking_username = ann\n",
        ".gitconfig": "[status]\n\tshowUntrackedFiles = no\n",
    }
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return VARIABLES | {"HOME": str(home), "KERAS_HOME": f"{home}/.keras", "MATPLOTLIBRC": str(home)}
