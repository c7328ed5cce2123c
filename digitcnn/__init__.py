"""A hyperparameter study, done right, for the CNN digit classifier of a well-known article."""
