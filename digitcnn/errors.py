"""Errors that end a command with one line: a person's mistake, a failing machine, a loss that is no number, or done."""

# How the line of a failing machine ends where it says what it spared.
RECORDS_SAFE = "what had been recorded is safe"


class ConfigError(Exception):
    """A person's mistake. The message is one line: the key, the value and what is allowed. Exit status 2."""


class MachineError(Exception):
    """A failure of the machine. The message is one line: what failed and what is safe. Exit status 1."""


class StoreAway(MachineError):
    """A store that does not answer for now, and was not waited for any longer."""


class TrainingDiverged(Exception):
    """The loss became NaN or infinite: the run has no result. Trying again would give the same."""


class AlreadyRecorded(Exception):
    """The work of a job is recorded. The message is one line. Exit status 0."""
