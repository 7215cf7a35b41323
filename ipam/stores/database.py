"""One SQLite file that several processes of this host write: making it, opening it, transactions, what went wrong.

What the tables mean is the caller's. WAL with synchronous=FULL: what a transaction wrote is on the disk when it ends.
WAL needs memory shared between the processes, so the directory must be on a disk of this host, never on a network
filesystem.

Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/rescode.html.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from conf.errors import CniError, StoreUnavailable, TryAgainLater
from ipam.stores.contract import Deadline

# Primary result codes of sqlite3.h; the module sqlite3 names them only from Python 3.11 on.
_SQLITE_BUSY = 5
_SQLITE_LOCKED = 6
_SQLITE_IOERR_SHMSIZE = 10 | 19 << 8
_DISK = "see the kernel log for the disk"
_DAMAGED = "drain the node, move the file and its -wal and -shm away, and let the pods start again"
_FULL = "free space on its filesystem"
_READ_ONLY = "make it writable for root"
_OTHER_DIRECTORY = 'set "dataDir" to a directory on a local disk'
_HINTS = {
    8: _READ_ONLY,  # SQLITE_READONLY
    10: _DISK,  # SQLITE_IOERR
    # SQLITE_CORRUPT, which SQLite makes of a read's EIO too.
    11: f"{_DISK}; if that is sound, {_DAMAGED}",
    13: _FULL,  # SQLITE_FULL
    14: "check the path and its permissions",  # SQLITE_CANTOPEN
    26: _DAMAGED,  # SQLITE_NOTADB
    # What a write beyond the space there is makes of the file that processes share.
    _SQLITE_IOERR_SHMSIZE: f"{_FULL}, or {_DISK}",
}
_OS_HINTS = {errno.EIO: _DISK, errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EROFS: _READ_ONLY}


class Database:
    """One file with one schema, opened at most once, every wait bounded by the deadline."""

    def __init__(self, path: Path, *, schema: str, version: int, deadline: Deadline) -> None:
        self.path = path
        self._schema = schema
        self._version = version
        self._deadline = deadline
        self._connected: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close it, if it was opened."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    def exists(self) -> bool:
        """Whether it was ever made; a file system that does not answer leaves that open.

        Raises: StoreUnavailable.
        """
        with self._translated("cannot be looked for"):
            return _is_there(self.path)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for one statement; no writer is waited for.

        Raises: StoreUnavailable, TryAgainLater.
        """
        with self._translated():
            yield self._connection()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock; commit at the end, roll back when anything is raised or the deadline has passed.

        Raises: StoreUnavailable, TryAgainLater.
        """
        with self._translated():
            db = self._connection()
            db.execute(f"PRAGMA busy_timeout = {int(self._deadline.remaining_s() * 1000)}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                # A disk may be so slow that whoever waited has left.
                self._require_time()
                db.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors; after a kill the next opener does it.
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def ensure(self) -> None:
        """Make the directory (0700) and the file (0600) unless they are there.

        It is made beside and linked into place: nobody ever opens half a database, and of many makers one wins.
        Switching to WAL in place would answer "busy" to the others without waiting.
        Raises: StoreUnavailable.
        """
        if self.exists():
            return
        with self._translated("cannot be made"):
            directory = self.path.parent
            directory.parent.mkdir(parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            draft = directory / f".{self.path.name}-{os.getpid()}-{secrets.token_hex(4)}"
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            try:
                self._write_schema(draft)
                with suppress(FileExistsError):
                    os.link(draft, self.path)
            finally:
                draft.unlink()
            _fsync_directory(directory)

    def _write_schema(self, draft: Path) -> None:
        with closing(sqlite3.connect(draft, isolation_level=None)) as db:
            # Before it has a WAL: what that holds would come into the file when it is closed, which fails silently.
            db.executescript(f"BEGIN; {self._schema} PRAGMA user_version = {self._version}; COMMIT;")
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StoreUnavailable(
                    f"{self.path} cannot be made",
                    details="its filesystem has no memory that processes share",
                    hint=_OTHER_DIRECTORY,
                )

    def require_writable(self) -> None:
        """Take the write lock and let go of it, or see that the file could be made; nothing is written.

        Raises: StoreUnavailable, TryAgainLater.
        """
        if self.exists():
            with self.transaction():
                return
        with self._translated("cannot be made"):
            directory = next(parent for parent in self.path.parents if _is_there(parent))
        if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
            raise StoreUnavailable(
                f"{self.path} cannot be made",
                details=f"{directory} is not a writable directory",
                hint=_OTHER_DIRECTORY,
            )

    def _connection(self) -> sqlite3.Connection:
        if self._connected is None:
            # mode=rw: sqlite3 would otherwise make an empty, world-readable file.
            uri = f"file:{quote(str(self.path))}?mode=rw"
            db = sqlite3.connect(uri, uri=True, timeout=self._deadline.remaining_s(), isolation_level=None)
            try:
                db.execute("PRAGMA synchronous = FULL")
                self._require_version(db)
                self._require_time()
            except BaseException:
                db.close()
                raise
            self._connected = db
        return self._connected

    def _require_version(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != self._version:
            raise StoreUnavailable(
                f"{self.path} has schema version {version}, this vferry knows {self._version}",
                hint='use the vferry that made it, or another "dataDir"',
            )

    def _require_time(self) -> None:
        if self._deadline.remaining_s() == 0:
            raise TryAgainLater(
                f"{self.path} was too slow",
                details=f"nothing was written within {self._deadline.seconds:g} s",
                hint=f'{_DISK} and for its load; "deadlineSeconds" raises the bound',
            )

    @contextmanager
    def _translated(self, failed: str = "cannot be used") -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            raise StoreUnavailable(
                f"{self.path} {failed}",
                details=f"{name} ({error.strerror}): {error.filename}",
                hint=_OS_HINTS.get(error.errno or 0, _OTHER_DIRECTORY),
            ) from error

    def _unavailable(self, error: sqlite3.Error) -> CniError:
        # Python 3.10 does not tell the code; there, a database was busy when the whole deadline went by.
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            code = _SQLITE_BUSY if self._deadline.remaining_s() == 0 else 0
        if code & 0xFF in (_SQLITE_BUSY, _SQLITE_LOCKED):
            return TryAgainLater(
                f"{self.path} was busy for {self._deadline.seconds:g} s",
                details=str(error),
                hint="another process holds its lock; 'fuser' on the file names it",
            )
        return StoreUnavailable(
            f"{self.path} cannot be used",
            details=f"{getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}",
            hint=_HINTS.get(code) or _HINTS.get(code & 0xFF, "check the file and its directory"),
        )


def _is_there(path: Path) -> bool:
    """Not Path.exists, which from Python 3.14 on takes any error for an absence: a DEL would succeed."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _fsync_directory(directory: Path) -> None:
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)
