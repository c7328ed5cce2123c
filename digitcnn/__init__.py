"""A hyperparameter study, done right, for the CNN digit classifier of a well-known article."""

import logging

# Where a program that imports digitcnn has configured no logging, Python would print its warnings on standard error.
logging.getLogger(__name__).addHandler(logging.NullHandler())
