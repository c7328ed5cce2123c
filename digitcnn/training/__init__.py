"""Training: data, networks, backends, engines and the loop; knows neither MLflow nor Optuna."""

from digitcnn.training.backends import BACKEND_PACKAGES, check_installed, import_keras, thread_count
from digitcnn.training.data import load_splits, provide_arrays, read_arrays
from digitcnn.training.engines import make_engine
from digitcnn.training.engines.augmentation import draw_transforms
from digitcnn.training.engines.checkpoint import (
    CheckpointRefused,
    Checkpoints,
    SavedTraining,
    StoredCheckpoint,
    checkpoint_of_run,
    checkpoints_of,
    depends_on_length,
    identify_training,
    read_checkpoint,
    write_checkpoint,
)
from digitcnn.training.engines.optimizers import batches_per_epoch
from digitcnn.training.environment import (
    NUMERIC_PACKAGES,
    command_line,
    describe_environment,
    git_state,
    numeric_environment,
    package_versions,
    uncommitted_changes,
)
from digitcnn.training.loop import is_last, samples_per_epoch, train
from digitcnn.training.machine import (
    available_cores,
    check_limits,
    check_temporary_folder,
    oom_kills,
    resident_memory_mb,
    room_for_trainings,
    usable_cores,
    usable_memory_mb,
)
from digitcnn.training.network import (
    MAX_PARAMETERS,
    build_model,
    check_fits,
    count_multiplications,
    count_parameters,
    weights_sha256,
)
from digitcnn.training.variables import arithmetic_flags, repeatable_flags
