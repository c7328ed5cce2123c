"""A hyperparameter study, done right, for the CNN digit classifier of a well-known article."""

import logging

# Who uses the library without a handler of their own sees none of its messages, on standard error either.
logging.getLogger(__name__).addHandler(logging.NullHandler())
