"""`bitad track`: the curves of a run at TensorBoard, MLflow and Weights & Biases."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from builders import config_of, feature_data
from runs import write_run

from bitad.cli import main
from bitad.reports import tracking
from bitad.training.metrics import metrics_line

Curves = dict[str, list[tuple[int, float]]]
Write = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data", training=1, test=1)


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    config = config_of(data, f"output={tmp_path}", "training.epochs=3")
    write_run(config, losses=())
    return config.run_directory


@pytest.fixture
def write(run: Path) -> Write:
    def write(*steps: int, lr: float = 0.1, tested: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """Writes a run of ten steps an epoch as the training does, with a rate from step 21 on; its records."""
        records: list[dict[str, Any]] = []
        for step in steps:
            figures = {"loss": 1 / step, "losses": {"forward": step}, "lr": 0.1 if step <= 20 else lr}
            records.append({"kind": "training", "epoch": (step - 1) // 10, "step": step, **figures})
            if step in tested:
                records.append(
                    {
                        "kind": "evaluation",
                        "epoch": step // 10,
                        "step": step,
                        "average_map": step / 100,
                        "seconds": 2,
                    }
                )
        (run / "metrics.jsonl").write_text("".join(map(metrics_line, records)), encoding="utf-8")
        return records

    return write


def curves_in(run: Path) -> Curves:
    """The curves in `metrics.jsonl`, by the names that trackers have."""
    curves = defaultdict(list)
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "training":
            figures = {name: record[name] for name in ("loss", "lr")} | {
                "losses/forward": record["losses"]["forward"]
            }
        else:
            figures = {"average_map": record["average_map"]}
        for name, value in figures.items():
            curves[f"{record['kind']}/{name}"].append((record["step"], math.nan if value is None else value))
    return dict(curves)


def tensorboard_curves(run: Path) -> Curves:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same_curves(shown: Curves, expected: Curves) -> None:
    assert shown.keys() == expected.keys()
    for name, curve in expected.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in curve]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in curve], nan_ok=True)


# A client of MLflow and one of Weights & Biases, as far as `bitad track` uses them.


@dataclass
class FakeMLflow:
    """What a server of MLflow has: its figures are appended and never replaced."""

    runs: dict[str, SimpleNamespace] = field(default_factory=dict)
    is_down: bool = False
    dies_after: int | None = None

    def curves(self, run: str = "run0") -> Curves:
        return {name: list(curve) for name, curve in self.runs[run].curves.items()}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class MlflowException(Exception):
            error_code = "RESOURCE_DOES_NOT_EXIST"

        server = self

        class MlflowClient:
            def __init__(self, tracking_uri: str | None) -> None:
                self.tracking_uri = tracking_uri or "http://default"

            def __getattribute__(self, name: str) -> Any:
                if server.is_down and name != "tracking_uri":
                    raise MlflowException("Connection refused.\nMore of it")
                return super().__getattribute__(name)

            def get_experiment_by_name(self, name: str) -> Any:
                return None

            def create_experiment(self, name: str) -> str:
                return f"experiment of {name}"

            def create_run(self, experiment: str, run_name: str) -> Any:
                name = f"run{len(server.runs)}"
                server.runs[name] = SimpleNamespace(
                    experiment=experiment, name=run_name, status="RUNNING", params={}, curves=defaultdict(list)
                )
                return SimpleNamespace(info=SimpleNamespace(run_id=name))

            def get_run(self, run: str) -> Any:
                if run not in server.runs:
                    raise MlflowException(f"Run '{run}' not found")
                info = SimpleNamespace(experiment_id=server.runs[run].experiment, lifecycle_stage="active")
                return SimpleNamespace(info=info)

            def update_run(self, run: str, status: str) -> None:
                server.runs[run].status = status

            def set_terminated(self, run: str) -> None:
                server.runs[run].status = "FINISHED"

            def get_metric_history(self, run: str, key: str) -> list[Any]:
                curve = server.runs[run].curves.get(key, [])
                return [SimpleNamespace(step=step, value=value) for step, value in curve]

            def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
                if metrics and server.dies_after is not None:
                    server.dies_after -= 1
                    if server.dies_after < 0:
                        server.is_down = True
                        raise MlflowException("gone")
                assert len(params) <= 100
                assert len(metrics) <= 1000
                server.runs[run].params |= {one.key: one.value for one in params}
                for one in metrics:
                    server.runs[run].curves[one.key].append((one.step, one.value))

        def metric(key: str, value: float, timestamp: int, step: int) -> Any:
            return SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

        install(
            monkeypatch,
            mlflow={"MlflowClient": MlflowClient},
            **{
                "mlflow.exceptions": {"MlflowException": MlflowException},
                "mlflow.entities": {
                    "Metric": metric,
                    "Param": lambda key, value: SimpleNamespace(key=key, value=value),
                },
            },
        )


def install(monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> None:
    for name, content in modules.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMLflow:
    server = FakeMLflow()
    server.install(monkeypatch)
    return server


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives what happens between two looks at the run, in order; then the command is interrupted."""

    def meanwhile(*happenings: Callable[[], object]) -> None:
        rest: Iterator[Callable[[], object]] = iter(happenings)

        def sleep(seconds: float) -> None:
            happening = next(rest, None)
            if happening is None:
                raise KeyboardInterrupt
            happening()

        monkeypatch.setattr(tracking.time, "sleep", sleep)

    return meanwhile


def test_tensorboard_has_the_curves_of_a_run_each_step_once(
    run: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    for steps in ((1, 10), (1, 10, 20, 21), (1, 10, 20)):  # the last: resumed from step 20
        write(*steps, tested=(10, 20))
        assert main(["track", str(run), "--to", "tensorboard"]) == 0
        assert_same_curves(tensorboard_curves(run), curves_in(run))
    said = capsys.readouterr()
    assert f"{run}: 5 records sent" in said.out
    assert f"the curves are at {run / 'tensorboard'}; see it with: tensorboard --logdir {run.parent}" in said.err


def test_tensorboard_shows_what_a_resumed_run_has_taken_again(
    run: Path, write: Write, meanwhile: Callable[..., None]
) -> None:
    pytest.importorskip("tensorboard")
    write(1, 10, 20, 25, 28, tested=(10, 20))
    seen = []
    meanwhile(
        lambda: write(1, 10, 20, tested=(10,)),  # its evaluation is to come again
        lambda: seen.append(tensorboard_curves(run)),
        lambda: write(1, 10, 20, 21, lr=0.2, tested=(10, 20)),
        lambda: write(1, 10, 20, 21, 30, lr=0.2, tested=(10, 20, 30)),
    )
    assert main(["track", str(run), "--to", "tensorboard", "--follow"]) == 0
    assert [step for step, _ in seen[0]["training/loss"]] == [1, 10, 20]
    assert [step for step, _ in seen[0]["evaluation/average_map"]] == [10]
    assert_same_curves(tensorboard_curves(run), curves_in(run))


def test_mlflow_has_one_curve_of_a_run_that_several_commands_send(
    run: Path, write: Write, mlflow: FakeMLflow, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["track", str(run), "--to", "mlflow", "--url", "http://here", "--project", "doors"]
    for steps, count, status in (
        ((1, 10), 3, "RUNNING"),
        ((1, 10, 20), 2, "RUNNING"),
        ((1, 10, 20, 30), 2, "FINISHED"),
    ):
        write(*steps, tested=(10, 20, 30))
        assert main(command) == 0
        assert f": {count} records sent" in capsys.readouterr().out
        assert_same_curves(mlflow.curves(), curves_in(run))
        assert mlflow.runs["run0"].status == status
    (only,) = mlflow.runs.values()
    assert (only.experiment, only.name) == ("experiment of doors", run.name)
    assert only.params["training.epochs"] == "3"
    assert only.params["seed"] == "0"
    assert not [value for value in only.params.values() if str(run.parent) in value]


def test_a_run_that_is_deleted_at_mlflow_or_tracked_elsewhere_begins_again(
    run: Path, write: Write, mlflow: FakeMLflow
) -> None:
    write(1, 10)
    command = ["track", str(run), "--to", "mlflow", "--url"]
    assert main([*command, "http://here"]) == 0
    assert main([*command, "http://there"]) == 0
    assert list(mlflow.runs) == ["run0", "run1"]
    mlflow.runs["run2"] = mlflow.runs.pop("run1")
    assert main([*command, "http://there"]) == 0
    assert_same_curves(mlflow.curves("run2"), curves_in(run))


def test_mlflow_keeps_the_first_figures_of_repeated_steps_and_the_log_says_so(
    run: Path, write: Write, mlflow: FakeMLflow, meanwhile: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(1, 10, 20, 21, tested=(10, 20))
    meanwhile(
        lambda: write(1, 10, 20, tested=(10, 20)),
        lambda: write(1, 10, 20, 21, tested=(10, 20)),  # the same bits
        lambda: write(1, 10, 20, 21, 30, tested=(10, 20, 30)),
    )
    assert main(["track", str(run), "--to", "mlflow", "--follow"]) == 0
    assert_same_curves(mlflow.curves(), curves_in(run))
    assert "other figures" not in capsys.readouterr().err
    records = write(1, 10, 20, 21, 30, tested=(10, 20, 30))
    records[3]["loss"] = 9.0
    (run / "metrics.jsonl").write_text("".join(map(metrics_line, records)), encoding="utf-8")
    assert main(["track", str(run), "--to", "mlflow"]) == 0
    assert (
        "the resumed run has other figures of steps 20 than were sent; those sent stay" in capsys.readouterr().err
    )
    assert mlflow.curves()["training/loss"][2] != (20, 9.0)


def test_a_server_that_dies_gets_everything_when_it_is_back(
    run: Path, write: Write, mlflow: FakeMLflow, meanwhile: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.dies_after = 1
    write(1, 10, tested=(10,))
    meanwhile(
        lambda: write(1, 10, 20, tested=(10, 20)),
        lambda: None,
        lambda: write(1, 10, 20, 30, tested=(10, 20, 30)),
        lambda: vars(mlflow).update(is_down=False, dies_after=None),
    )
    assert main(["track", str(run), "--to", "mlflow", "--follow"]) == 0
    assert_same_curves(mlflow.curves(), curves_in(run))
    said = capsys.readouterr()
    assert said.err.count("MLflow at http://default: gone; trying again every 5 s, nothing is lost") == 1
    assert said.err.count("trying again") == 1
    assert "the tracker answers again and has all 7 records" in said.err
    assert ": 7 records sent" in said.out


def test_a_server_that_is_down_is_one_line(
    run: Path, write: Write, mlflow: FakeMLflow, capsys: pytest.CaptureFixture[str]
) -> None:
    write(1)
    mlflow.is_down = True
    assert main(["track", str(run), "--to", "mlflow"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "bitad track: error: MLflow at http://default: Connection refused"
    assert not (run / "track.json").exists()


def test_many_records_are_sent_in_parts_and_figures_that_are_not_finite_too(
    run: Path, write: Write, mlflow: FakeMLflow
) -> None:
    records = write(*range(1, 1003))
    records[5]["loss"] = math.nan
    (run / "metrics.jsonl").write_text("".join(map(metrics_line, records)), encoding="utf-8")
    assert main(["track", str(run), "--to", "mlflow"]) == 0
    assert main(["track", str(run), "--to", "mlflow"]) == 0
    assert_same_curves(mlflow.curves(), curves_in(run))


def test_a_run_without_a_record_is_followed_until_it_is_interrupted(
    run: Path, write: Write, mlflow: FakeMLflow, meanwhile: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "metrics.jsonl").unlink()
    meanwhile(lambda: None, lambda: write(1))
    assert main(["track", str(run), "--to", "mlflow", "--follow"]) == 0
    assert ": 1 records sent" in capsys.readouterr().out
    assert mlflow.runs["run0"].status == "RUNNING"


def test_weights_and_biases_has_a_row_of_each_record(
    run: Path, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    given: list[dict[str, Any]] = []

    class Run:
        offline, url = False, "https://there/run"

        def __init__(self, name: str) -> None:
            self.rows = rows[name]
            self.step = len(self.rows)

        def log(self, figures: dict[str, float], step: int) -> None:
            assert step not in self.rows
            self.rows[step] = figures

        def define_metric(self, name: str, step_metric: str) -> None:
            assert name in ("training/*", "evaluation/*")

        def finish(self) -> None:
            self.rows = {}

    def init(**arguments: Any) -> Run:
        given.append(arguments)
        return Run(arguments["id"])

    errors = SimpleNamespace(Error=ConnectionAbortedError)
    install(monkeypatch, wandb={"init": init, "Settings": lambda **values: values, "errors": errors})
    for steps in ((1, 10), (1, 10, 20)):
        write(*steps, tested=(10, 20))
        assert main(["track", str(run), "--to", "wandb", "--url", "https://there"]) == 0
    (only,) = rows.values()
    shown = defaultdict(list)
    for _, row in sorted(only.items()):
        for name in row.keys() - {"step"}:
            shown[name].append((int(row["step"]), row[name]))
    assert_same_curves(dict(shown), curves_in(run))
    assert given[1]["resume"] == "allow"
    assert given[1]["settings"]["base_url"] == "https://there"
    assert "the curves are at https://there/run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_client_is_one_line_that_names_the_extra(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["track", str(run), "--to", name]) == 1
    assert capsys.readouterr().err == (
        f"bitad track: error: --to {name} needs the package {name}: pip install 'bitad[{name}]'\n"
    )


def test_what_is_no_run_or_fits_no_tracker_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["track", str(run.parent), "--to", "tensorboard"]) == 1
    assert "is not a run directory" in capsys.readouterr().err
    pytest.importorskip("tensorboard")
    assert main(["track", str(run), "--to", "tensorboard", "--url", "http://here"]) == 1
    assert "TensorBoard reads files; leave it out" in capsys.readouterr().err
    assert not (run / "tensorboard").exists()


# Their own programs, which are not installed for the other tests.


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """Within, MLflow's server on a port of this machine, with its database in a folder; its address."""
    store = f"sqlite:///{folder / 'mlflow.db'}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with (folder / "server.txt").open("ab") as said:
        server = subprocess.Popen(
            [*command, "--backend-store-uri", store, "--artifacts-destination", str(folder)],
            stdout=said,
            stderr=said,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1500):
            with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            assert server.poll() is None, (folder / "server.txt").read_text()
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def asked(url: str, path: str, **query: object) -> Any:
    with urllib.request.urlopen(
        f"{url}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}", timeout=30
    ) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the server starts in a minute of CPU time
def test_a_server_of_mlflow_that_dies_during_a_resumed_training_has_its_curves_afterwards(
    data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="no MLflow with its server; pip install mlflow")
    training = ["train", str(data), f"output={tmp_path}", "training.windows_per_video=40", "training.epochs=2"]
    run = config_of(data, *training[2:]).run_directory
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    track = [sys.executable, "-m", "bitad", "track", str(run), "--to", "mlflow", "--url"]
    assert main([*training, "--until", "1"]) == 0
    with mlflow_server(tmp_path, port) as url:
        sent = subprocess.run([*track, url], check=True, capture_output=True, text=True)
        assert sent.stdout == f"{run}: {len(run_records(run))} records sent\n"
        follower = subprocess.Popen(
            [*track, url, "--follow"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert follower.stdout is not None
        assert "the curves are at" in follower.stdout.readline()
    half = len(run_records(run))
    assert main([*training, "--resume"]) == 0  # without a server
    line = follower.stdout.readline()
    assert line.endswith("; trying again every 5 s, nothing is lost\n")
    assert len(line) < 600
    with mlflow_server(tmp_path, port) as url:
        said, _ = follower.communicate(timeout=120)
        assert follower.returncode == 0, said
        assert said.endswith(f"{run}: {len(run_records(run)) - half} records sent\n")
        name = json.loads((run / "track.json").read_text())["mlflow"]["run"]
        found = asked(url, "runs/get", run_id=name)["run"]
        assert found["info"]["status"] == "FINISHED"
        assert found["info"]["run_name"] == run.name
        parameters = {one["key"]: one["value"] for one in found["data"]["params"]}
        assert parameters["training.epochs"] == "2"
        curves = {}
        for name_ in (one["key"] for one in found["data"]["metrics"]):
            history = asked(url, "metrics/get-history", run_id=name, metric_key=name_)["metrics"]
            curves[name_] = [(int(one.get("step", 0)), float(one["value"])) for one in history]
    expected = {
        f"{record['kind']}/{figure}": [
            (one["step"], one[figure]) for one in run_records(run) if one["kind"] == record["kind"]
        ]
        for record in run_records(run)
        for figure in ("loss", "lr", "gradient_norm", "average_map")
        if figure in record
    }
    assert expected.items() <= curves.items()  # to the bit


def run_records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_client_of_weights_and_biases_writes_a_row_of_each_record_offline(run: Path, write: Write) -> None:
    pytest.importorskip("wandb", reason="no client of Weights & Biases; pip install 'bitad[wandb]'")
    write(1, 10, 20, 30, tested=(10, 20, 30))
    command = [sys.executable, "-m", "bitad", "track", str(run), "--to", "wandb"]
    subprocess.run(command, env=os.environ | {"WANDB_MODE": "offline"}, check=True, capture_output=True)
    program = (  # the file is a log of records, each after its checksum, length and type
        "import json, sys\n"
        "from wandb.proto.wandb_internal_pb2 import Record\n"
        "data, at = open(sys.argv[1], 'rb').read(), 7\n"
        "assert len(data) < 2**15, 'a second block'\n"
        "while at + 7 <= len(data):\n"
        "    length = int.from_bytes(data[at + 4 : at + 6], 'little')\n"
        "    record = Record()\n"
        "    record.ParseFromString(data[at + 7 : at + 7 + length])\n"
        "    at += 7 + length\n"
        "    if items := record.history.item:\n"
        "        names = ['/'.join(one.nested_key) or one.key for one in items]\n"
        "        print(json.dumps(dict(zip(names, [json.loads(one.value_json) for one in items]))))\n"
    )
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    read = subprocess.run([sys.executable, "-c", program, str(file)], check=True, capture_output=True, text=True)
    shown = defaultdict(list)
    for row in map(json.loads, read.stdout.splitlines()):
        for name in row.keys() - {"step"}:
            if not name.startswith("_"):
                shown[name].append((row["step"], row[name]))
    assert_same_curves(dict(shown), curves_in(run))
