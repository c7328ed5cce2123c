"""Many hosts on one study: a store on a PostgreSQL server with one lock, heartbeats, and patience while it is away."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy import Connection, text
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
    TimeoutError,
)

from digitcnn.addresses import without_credentials
from digitcnn.errors import ConfigError, StoreAway
from digitcnn.processes import this_host

# A process says this often that it is at work on its trials; after the grace without a word the others take them over.
HEARTBEAT_SECONDS = 10.0
GRACE_SECONDS = 60.0
# How long a server that has gone away is waited for.
PATIENCE_SECONDS = 120.0
_RETRY_SECONDS = 0.5
# A host that stalls in a transaction, or while it holds the lock, is cut off after so long: what it holds is let go.
_HOLD_SECONDS = 20
# The first of the two numbers that an advisory lock of PostgreSQL has; the second stands for the study.
_LOCK, _PRESENCE, _ALONE = 1_684_629_353, 1_684_629_354, 1_684_629_355
_HELD = (
    "FROM pg_locks WHERE locktype = 'advisory' AND classid = :kind AND objid = :name "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
# A dead connection is noticed within 30 s. In UTC no heartbeat jumps by an hour with the server's daylight saving time.
_CONNECTION = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
    # The server, too, notices within 30 s that a host is gone: only then does it give back the locks of that host.
    "options": f"-c TimeZone=UTC -c idle_in_transaction_session_timeout={_HOLD_SECONDS}s "
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=4",
}

Result = TypeVar("Result")


class LockLost(StorageInternalError):
    """The server took the study's lock away before it was given back: another host may have held it meanwhile."""


def is_away(error: Exception) -> bool:
    """Whether an error comes from a server that cannot be reached, restarts, or has ended the connection."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    # TimeoutError: all connections of the pool are held by threads that wait for the server.
    away = OperationalError | InterfaceError | PendingRollbackError | TimeoutError
    return (
        isinstance(error, LockLost)
        or isinstance(cause, away)
        or (isinstance(cause, DBAPIError) and cause.connection_invalidated)
    )


class SharedStorage(optuna.storages.RDBStorage):
    """An Optuna store on a PostgreSQL server.

    Its methods do not fail while the server is away, but wait for it, once it has been reached; StoreAway is raised
    after PATIENCE_SECONDS, or at once when `hurried` is set.
    """

    def __init__(self, url: str) -> None:
        self.hurried = threading.Event()
        self._patient = False
        self._presence: Connection | None = None
        self._present_under: str | None = None
        gate = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=_CONNECTION)
        with gate.begin() as connection:
            # Two hosts that begin at once would both create the tables.
            connection.execute(text("SELECT pg_advisory_xact_lock(:kind, 0)"), {"kind": _LOCK})
            # The server has connections for about a hundred processes, and each thread needs one for milliseconds.
            pool = {"pool_size": 3, "max_overflow": 3, "pool_timeout": 60, "pool_pre_ping": True}
            super().__init__(url, engine_kwargs={**pool, "connect_args": _CONNECTION})
        self._last_away = time.monotonic()
        self._patient = True

    @staticmethod
    def has_studies(url: str) -> bool:
        """Whether a database has the tables of Optuna."""
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=_CONNECTION)
        return sqlalchemy.inspect(engine).has_table("studies")

    def patiently(self, work: Callable[[], Result]) -> Result:
        """The result of some work, which is begun again whenever the server goes away in it."""
        deadline: float | None = None
        while True:
            try:
                return work()
            except (StorageInternalError, SQLAlchemyError) as error:
                if not self._patient or not is_away(error):
                    raise
                self._last_away = time.monotonic()
                deadline = deadline or self._last_away + PATIENCE_SECONDS
                if self._last_away >= deadline or self.hurried.is_set():
                    cause = without_credentials(str(error.__cause__ or error)).splitlines()[0]
                    place = without_credentials(self.url)
                    raise StoreAway(
                        f"the study's store {place} went away and did not come back in time: {cause}; "
                        "what had been recorded is safe"
                    ) from None
            time.sleep(_RETRY_SECONDS)

    @contextlib.contextmanager
    def lock(self, study: str) -> Iterator[None]:
        """Holds the lock that a study has among all hosts.

        Raises LockLost at the end if the server took it away: what was done inside may not have been done alone.
        """
        connection = self.patiently(lambda: self._locked(study))
        try:
            yield
        finally:
            try:
                connection.commit()
            except SQLAlchemyError as error:
                raise LockLost from error
            finally:
                with contextlib.suppress(SQLAlchemyError):
                    connection.close()

    def _locked(self, study: str) -> Connection:
        connection = self.engine.connect()
        try:
            connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_HOLD_SECONDS}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:kind, :name)"), _keys(_LOCK, study))
        except BaseException:
            connection.close()
            raise
        return connection

    def silent_trials(self, study_id: int) -> list[int]:
        """The running trials of which nobody has been heard for the grace. For the holder of the lock.

        A trial gets its first heartbeat under the lock that it is begun under, so that one without any was begun by a
        process that died in between. None is taken for silent after less than the grace of contact with the server:
        while it was away, nobody could be heard.
        """
        if time.monotonic() - self._last_away < GRACE_SECONDS:
            return []
        query = text(
            "SELECT trial_id FROM trials LEFT JOIN trial_heartbeats USING (trial_id) "
            "WHERE study_id = :study AND state = 'RUNNING' "
            "AND (heartbeat IS NULL OR heartbeat < LOCALTIMESTAMP - make_interval(secs => :grace)) ORDER BY trial_id"
        )

        def ask() -> list[int]:
            with self.engine.connect() as connection:
                return list(connection.execute(query, {"study": study_id, "grace": GRACE_SECONDS}).scalars())

        return self.patiently(ask)

    def be_present(self, run_id: str) -> None:
        """Says to the others that this process works under a study's run, until it leaves or dies. For one thread."""
        self._present_under = run_id
        self.stay_present()

    def stay_present(self) -> None:
        """Says it again if the connection that said it was lost. For one thread."""
        self.patiently(self._be_present)

    def _be_present(self) -> None:
        if self._present_under is None:
            return
        if self._presence is not None:
            try:
                self._presence.execute(text("SELECT 1"))
                return
            except SQLAlchemyError:
                with contextlib.suppress(SQLAlchemyError):
                    self._presence.close()
                self._presence = None
        connection = self._own_session()
        connection.execute(text("SELECT pg_advisory_lock_shared(:kind, :name)"), _keys(_PRESENCE, self._present_under))
        self._presence = connection

    def others_are_present(self, run_id: str) -> bool:
        """Whether other processes work under a study's run."""

        def ask() -> int:
            with self.engine.connect() as connection:
                return int(connection.execute(text(f"SELECT count(*) {_HELD}"), _keys(_PRESENCE, run_id)).scalar_one())

        self.be_present(run_id)
        return self.patiently(ask) > 1

    def _own_session(self) -> Connection:
        """A session outside the pool and without a transaction: closing it gives back the locks that it took."""
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        return connection

    @contextlib.contextmanager
    def alone(self, study: str) -> Iterator[Callable[[], None]]:
        """While the body runs, no other process among all hosts can be alone on that study.

        Gives a function that makes sure of it: a server that restarted has let the lock go, and it is taken again.
        Both raise ConfigError, naming the other, if another process has it.
        """
        session: Connection | None = None
        one_at_a_time = threading.Lock()

        def make_sure() -> None:
            nonlocal session
            with one_at_a_time:
                session = self.patiently(lambda: self._alone(session, study))

        try:
            make_sure()
            yield make_sure
        finally:
            if session is not None:
                with contextlib.suppress(DBAPIError):
                    session.close()

    def _alone(self, session: Connection | None, study: str) -> Connection:
        if session is not None:
            try:
                session.execute(text("SELECT 1"))
                return session
            except SQLAlchemyError:
                session.close()
        session, keys = self._own_session(), _keys(_ALONE, study)
        # The others see it, whoever they are on the server.
        session.execute(text("SELECT set_config('application_name', :host, false)"), {"host": this_host()})
        if session.execute(text("SELECT pg_try_advisory_lock(:kind, :name)"), keys).scalar_one():
            return session
        others = text(f"SELECT application_name FROM pg_stat_activity WHERE pid IN (SELECT pid {_HELD})")
        holder = session.execute(others, keys).scalar() or "another process"
        session.close()
        raise ConfigError(f"study.name={study}: {holder}, is at work on this study alone; wait for it, or end it")

    def leave(self) -> None:
        """Ends this process's presence."""
        self._present_under = None
        if self._presence is not None:
            with contextlib.suppress(SQLAlchemyError):
                self._presence.close()
            self._presence = None


def _keys(kind: int, name: str) -> dict[str, int]:
    # Two with one number would wait for each other, or refuse each other.
    return {"kind": kind, "name": zlib.crc32(name.encode()) & 0x7FFF_FFFF}


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: SharedStorage, *arguments: Any, **named: Any) -> Any:
        return self.patiently(lambda: method(self, *arguments, **named))

    return call


# All that a study at work calls and that can be done twice. Not the creation of trials: an answer that got lost on
# its way would make two of one, so that is done again as a whole, under the lock.
for _name in (
    *("get_study_id_from_name", "get_study_name_from_id", "get_study_directions", "get_study_user_attrs"),
    *("get_study_system_attrs", "set_study_user_attr", "set_study_system_attr", "get_trial", "_get_trials"),
    *("get_trial_id_from_study_id_trial_number", "_get_best_trial_id", "_set_trial_param", "set_trial_state_values"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr", "record_heartbeat"),
):
    setattr(SharedStorage, _name, _patient(getattr(optuna.storages.RDBStorage, _name)))


@contextlib.contextmanager
def beating(storage: SharedStorage, trials: set[int], failed: Callable[[Exception], None]) -> Iterator[None]:
    """While the body runs, tells the others that this process is at work, and on these trials, by their ids.

    `failed` is called if the server has gone for good.
    """
    over = threading.Event()

    def beat() -> None:
        try:
            while not over.wait(HEARTBEAT_SECONDS):
                for trial_id in list(trials):
                    storage.record_heartbeat(trial_id)
                storage.stay_present()
        except Exception as error:
            failed(error)

    thread = threading.Thread(target=beat, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
