"""One trial's training: with each of its seeds, from the epochs that there are."""

from digitcnn.runner.trial.seeds import Trainings
