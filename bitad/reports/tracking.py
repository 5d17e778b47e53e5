"""Sends the figures of a run to TensorBoard, MLflow or Weights & Biases, during the training or afterwards.

The training writes ``metrics.jsonl`` and knows nothing of this. A tracker that is down, slow or full cannot stop it,
and what was not sent is still in the file. Each record is sent once, so a resumed run is one curve: where it repeats
steps after its last checkpoint, TensorBoard shows the later values, the others keep the first. Both are equal to the
bit unless the configuration was changed.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bitad.config.loading import KEYS_OF_PATHS, load_run_config
from bitad.config.names import TrackerName
from bitad.config.schema import Config
from bitad.runtime.files import read_json, write_json
from bitad.runtime.log import log, shortlist
from bitad.training.metrics import METRICS, read_metrics, scalars

TRACKED = "track.json"  # of a run directory: the names of the run at the trackers
EVENTS_FOLDER = "tensorboard"  # of a run directory
SECONDS_BETWEEN_LOOKS = 5.0

Record = Mapping[str, Any]
Key = tuple[str, int]  # the kind and the step of a record
_BATCH = 50  # records in a request of at most 1000 figures
# The figure by which two records of one step are compared.
_MAIN_FIGURE = {"training": "loss", "evaluation": "average_map"}


class TrackerError(ConnectionError):
    """A tracker does not answer or refuses the figures."""


class Tracker(ABC):
    """Where the figures of a run go.

    Args:
        directory: of the run.
        config: of the run.
        url: of the server; None: the client's own setting.
        project: what groups runs there.

    Raises:
        TrackerError: it cannot be reached.
    """

    @abstractmethod
    def __init__(self, directory: Path, config: Config, *, url: str | None, project: str) -> None: ...

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the figures can be seen."""

    def sent_before(self, records: Sequence[Record]) -> dict[Key, float | None]:
        """The records that earlier commands have sent, with their main figure where it is known."""
        return {}

    def take_back(self, step: int) -> bool:
        """Hides what was sent of a step and later ones; False if the tracker cannot."""
        return False

    @abstractmethod
    def send(self, records: Sequence[Record]) -> None:
        """Sends records, all or none of them. Raises TrackerError."""

    @abstractmethod
    def close(self, *, has_finished: bool) -> None:
        """Ends this command's part; ``has_finished``: so has the run."""


class TensorBoard(Tracker):
    """Writes event files into a folder. Each command writes all records again, and hides those of earlier ones."""

    def __init__(self, directory: Path, config: Config, *, url: str | None, project: str) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder = directory / EVENTS_FOLDER
        self._writer = EventFileWriter(str(self.folder))
        self.take_back(0)

    @property
    def place(self) -> str:
        return f"{self.folder}; see it with: tensorboard --logdir {self.folder.parent.parent}"

    def take_back(self, step: int) -> bool:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=start))
        self._writer.flush()
        return True

    def send(self, records: Sequence[Record]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for record in records:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in _figures(record)]
            event = Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values))
            self._writer.add_event(event)
        self._writer.flush()

    def close(self, *, has_finished: bool) -> None:
        self._writer.close()


class MLflow(Tracker):
    """A run of an MLflow server, or of a folder or database that MLflow writes."""

    def __init__(self, directory: Path, config: Config, *, url: str | None, project: str) -> None:
        # The client waits for minutes by default; here what could not be sent is sent later.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        with self._errors("MLflow"):
            self._client = MlflowClient(tracking_uri=url)
            self._url: str = self._client.tracking_uri
        with self._errors(f"MLflow at {self._url}"):
            found = self._client.get_experiment_by_name(project)
            self._experiment = self._client.create_experiment(project) if found is None else found.experiment_id
            names = _names(directory)
            known = names.get("mlflow", {})
            if known.get("url") == self._url and self._exists(known["run"]):
                self._run: str = known["run"]
                self._client.update_run(self._run, status="RUNNING")
                return
            self._run = self._client.create_run(self._experiment, run_name=directory.name).info.run_id
            write_json({**names, "mlflow": {"url": self._url, "run": self._run}}, directory / TRACKED)
            parameters = [Param(key, value[:500]) for key, value in _parameters(config).items()]
            for start in range(0, len(parameters), 100):  # as many as a request may have
                self._client.log_batch(self._run, params=parameters[start : start + 100])

    def _exists(self, run: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            info = self._client.get_run(run).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        self._experiment = info.experiment_id
        return bool(info.lifecycle_stage == "active")

    @property
    def place(self) -> str:
        shown = self._url.startswith("http")
        return f"{self._url}/#/experiments/{self._experiment}/runs/{self._run}" if shown else self._url

    def sent_before(self, records: Sequence[Record]) -> dict[Key, float | None]:
        sent: dict[Key, float | None] = {}
        with self._errors(f"MLflow at {self._url}"):
            for kind, figure in _MAIN_FIGURE.items():
                history = self._client.get_metric_history(self._run, f"{kind}/{figure}")
                sent |= {(kind, one.step): one.value for one in history}
        return sent

    def send(self, records: Sequence[Record]) -> None:
        now = round(1000 * time.time())
        figures = [
            self._metric(name, value, now, record["step"])
            for record in records
            for name, value in _figures(record)
        ]
        with self._errors(f"MLflow at {self._url}"):
            self._client.log_batch(self._run, metrics=figures)

    def close(self, *, has_finished: bool) -> None:
        if has_finished:
            with self._errors(f"MLflow at {self._url}"):
                self._client.set_terminated(self._run)

    @staticmethod
    @contextmanager
    def _errors(what: str) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise TrackerError(f"{what}: {_short(error)}") from None


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases. Its client sends in a process of its own and waits for a server that is down."""

    def __init__(self, directory: Path, config: Config, *, url: str | None, project: str) -> None:
        import wandb

        names = _names(directory)
        name = names.get("wandb") or secrets.token_hex(4)
        settings = wandb.Settings(console="off", silent=True, **({} if url is None else {"base_url": url}))
        try:
            self._run = wandb.init(
                project=project,
                id=name,
                name=directory.name,
                resume="allow",
                config=dict(_parameters(config)),
                dir=directory,
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise TrackerError(f"Weights & Biases: {_short(error)}") from None
        write_json({**names, "wandb": name}, directory / TRACKED)
        self._rows = self._run.step  # that the server has: one of each record
        for kind in _MAIN_FIGURE:
            self._run.define_metric(f"{kind}/*", step_metric="step")

    @property
    def place(self) -> str:
        if self._run.offline:
            return f"{Path(self._run.dir).parent}, offline; send them with: wandb sync"
        return str(self._run.url)

    def sent_before(self, records: Sequence[Record]) -> dict[Key, float | None]:
        return {_key(record): None for record in records[: self._rows]}

    def send(self, records: Sequence[Record]) -> None:
        for record in records:
            self._run.log({"step": record["step"], **dict(_figures(record))}, step=self._rows)
            self._rows += 1

    def close(self, *, has_finished: bool) -> None:
        self._run.finish()


TRACKERS: dict[TrackerName, Callable[..., Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def track(
    directory: Path,
    to: TrackerName,
    *,
    follow: bool = False,
    url: str | None = None,
    project: str = "bitad",
    on_start: Callable[[str], None] = lambda place: None,
) -> int:
    """Sends the figures of a run that a tracker does not have yet.

    Args:
        directory: of the run.
        to: the tracker.
        follow: go on until the run has finished; a server that does not answer is asked again.
        url: of the server of ``mlflow`` or ``wandb``; None: the client's own setting.
        project: the experiment of MLflow, the project of Weights & Biases.
        on_start: is told where the figures can be seen.

    Returns:
        how many records were sent.

    Raises:
        FileNotFoundError, ValueError: no run directory, or its files cannot be read; the client is missing.
        ConnectionError: the server does not answer or refuses; with ``follow``, only at the start.
    """
    if find_spec(to) is None:
        raise ValueError(f"--to {to} needs the package {to}: pip install 'bitad[{to}]'")
    config = load_run_config(directory)
    if url is not None and to == "tensorboard":
        raise ValueError(f"--url {url}: TensorBoard reads files; leave it out")
    tracker = TRACKERS[to](directory, config, url=url, project=project)
    history = _History(directory, tracker)
    on_start(tracker.place)
    try:
        if follow:
            _follow(history)
        else:
            history.send_new()
    finally:
        tracker.close(has_finished=history.has_finished)
    return history.count


def _follow(history: _History) -> None:
    """Sends records until the run has finished or the command is interrupted."""
    with suppress(KeyboardInterrupt):
        history.send_new_or_wait()
        while not history.has_finished:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            history.send_new_or_wait()


class _History:
    """The records of a run, and which of them a tracker has.

    Attributes:
        count: of the records that were sent.
        has_finished: whether the run has finished, and the tracker has all of it.
    """

    def __init__(self, directory: Path, tracker: Tracker) -> None:
        self.directory, self.tracker = directory, tracker
        self.count, self.has_finished = 0, False
        self._is_down = False
        self._files: tuple[tuple[int, int], ...] | None = None  # as they were when all was sent
        self._sent = tracker.sent_before(self._read())

    def _read(self) -> list[dict[str, Any]]:
        path = self.directory / METRICS
        return read_metrics(path) if path.is_file() else []

    def _state(self) -> tuple[tuple[int, int], ...]:
        """What tells that the files have changed. A resumed run replaces both; an extended one has more epochs."""
        paths = [self.directory / name for name in ("config.yaml", METRICS)]
        return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file())

    def send_new(self) -> None:
        """Sends the records that the tracker does not have."""
        files = self._state()
        if files == self._files:
            return
        records = self._read()
        self._compare(records)
        new = [record for record in records if _key(record) not in self._sent]
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            self.tracker.send(batch)
            self._sent |= {_key(record): _main_figure(record) for record in batch}
            self.count += len(batch)
        epochs = load_run_config(self.directory).training.epochs
        self.has_finished = any(one["kind"] == "evaluation" and one["epoch"] == epochs for one in records)
        self._files = files

    def send_new_or_wait(self) -> None:
        """Sends the new records if the tracker answers; else the next look sends them."""
        try:
            self.send_new()
        except TrackerError as error:
            if not self._is_down:
                log.warning("%s; trying again every %g s, nothing is lost", error, SECONDS_BETWEEN_LOOKS)
            self._is_down = True
            return
        if self._is_down:
            log.info("the tracker answers again and has all %d records", len(self._sent))
        self._is_down = False

    def _compare(self, records: Sequence[Record]) -> None:
        """Finds what was sent of steps that a resumed run has dropped or taken again."""
        now = {_key(record): _main_figure(record) for record in records}
        changed = [key for key, value in self._sent.items() if key in now and not _are_same(value, now[key])]
        stale = [step for _, step in (*changed, *(key for key in self._sent if key not in now))]
        if stale and self.tracker.take_back(min(stale)):
            self._sent = {key: value for key, value in self._sent.items() if key[1] < min(stale)}
        elif changed:
            steps = shortlist(sorted({step for _, step in changed}))
            log.warning("the resumed run has other figures of steps %s than were sent; those sent stay", steps)
            self._sent |= {key: now[key] for key in changed}  # said once


def _key(record: Record) -> Key:
    return record["kind"], record["step"]


def _main_figure(record: Record) -> float:
    figure: float = record[_MAIN_FIGURE[record["kind"]]]
    return figure


def _are_same(sent: float | None, figure: float) -> bool:
    return sent is None or sent == figure or (math.isnan(sent) and math.isnan(figure))


def _figures(record: Record) -> Iterator[tuple[str, float]]:
    """The figures of a record, by the names that they have in every tracker."""
    for name, value in scalars(record):
        yield f"{record['kind']}/{name}", value


def _names(directory: Path) -> dict[str, Any]:
    path = directory / TRACKED
    names: dict[str, Any] = read_json(path) if path.is_file() else {}
    return names


def _parameters(config: Config) -> dict[str, str]:
    """The configuration without its paths, which only mean something on this machine."""
    return dict(_flat(config.model_dump(mode="json")))


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        elif key != "output" and key not in KEYS_OF_PATHS:
            yield key, str(value)


def _short(error: Exception) -> str:
    """The first line of a client's message."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
