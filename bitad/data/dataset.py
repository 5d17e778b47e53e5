"""The windows of a data set: random ones for training, all of a subset for testing; and the processes that read them.

A window is read once, on the forward clock; the reverse view is its content flipped, or that of a time-reversed copy.
A random window depends only on (seed, epoch, item), not on resuming or on workers.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from bitad.config.schema import Config, WindowConfig
from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.reversal import Reversal
from bitad.data.samples import ReadFailure, Sample
from bitad.data.sources import Source
from bitad.data.transforms import centre_crop, random_colour, random_crop
from bitad.runtime.workers import initialise_reader, time_limit
from bitad.timeline import FloatArray, Grid, IntArray, View

Content = TypeVar("Content")

# Training frames have a margin for cropping: AdaTAD decodes 182 pixels for a crop of 160.
DECODE_MARGIN = 182 / 160

# Draws of a random window after which the last one is taken, with or without an action.
_TRIES = 200

# Ends the seed of the generator of playing directions; not 0, which would give the generator of windows.
_OF_DIRECTIONS = 1

# A process that still reads this long after its time limit cannot interrupt itself.
_GRACE_S = 30.0
_CHECK_INTERVAL_S = 1.0
# A forked copy of a process with threads can hang before it runs any code. A new interpreter on a slow disk takes long.
_START_S = 600.0
# A parent sees the closed connection of a process that was killed before it gets the signal.
_SIGNAL_DELAY_S = 1.0

# How PyTorch reports that a process has ended, and the reason.
_EXITED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_SIGNAL = re.compile(r"is killed by signal: (.*)", re.DOTALL)
_IDLE = -1


def sliding_windows(total_steps: int, length: int, overlap: float) -> list[tuple[int, int]]:
    """Windows that cover every step of a video: ``(first step, real steps)`` each, ascending, on the forward clock.

    Neighbours share the fraction ``overlap`` of their length; the last one, which ends with the video, may share more.
    """
    if total_steps < 1:
        raise ValueError(f"a video of {total_steps} grid steps has no window")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap {overlap} of windows is outside [0, 1)")
    if total_steps <= length:
        return [(0, total_steps)]
    hop = max(1, int(length * (1 - overlap)))
    starts = list(range(0, total_steps - length, hop))
    return [(start, length) for start in (*starts, total_steps - length)]


def random_window(
    rng: np.random.Generator,
    total_steps: int,
    segments: FloatArray,
    labels: IntArray,
    config: WindowConfig,
) -> tuple[int, int, FloatArray, IntArray]:
    """A random window with at least one action in it (random truncation; ActionFormer, arXiv:2202.07925).

    A longer video gives a window of ``config.steps``; a shorter one a random share of its own length. An action of
    which at least ``config.completeness`` lies inside is clipped to the window; others are left out.

    Args:
        segments, labels: ground truth ``[n, 2]`` and ``[n]`` in grid steps of the video.

    Returns:
        the first step, the number of steps, and the window's ground truth in its own grid steps.
    """
    steps = config.steps
    if total_steps <= steps:
        low, high = (max(1, round(share * total_steps)) for share in config.crop)
        steps = int(rng.integers(low, high + 1))
    span = np.maximum(segments[:, 1] - segments[:, 0], 1e-9)
    for _ in range(_TRIES):
        start = int(rng.integers(0, total_steps - steps + 1))
        inside = np.clip(segments, start, start + steps)
        kept = (inside[:, 1] - inside[:, 0]) / span >= config.completeness
        if kept.any() or len(segments) == 0:
            break
    return start, steps, inside[kept] - start, labels[kept]


def ground_truth_in_steps(
    video: AnnotatedVideo, video_grid: Grid, classes: Sequence[str]
) -> tuple[FloatArray, IntArray]:
    """A video's segments in grid steps ``[n, 2]``, clipped to the video, and class indices ``[n]``."""
    index = {name: i for i, name in enumerate(classes)}
    segments = video_grid.to_steps(video.segments.reshape(-1, 2))
    segments = np.clip(segments, 0, video_grid.steps)
    labels = np.array([index[label] for label in video.labels], np.int64)
    is_inside = segments[:, 1] > segments[:, 0]  # others start after the video's end
    return segments[is_inside], labels[is_inside]


def _read_sample(
    source: Source, video: AnnotatedVideo, grid: Grid, views: Sequence[View], *, margin: float = 1.0
) -> Sample:
    repeated = source.repeated
    content = source.read(video, grid, view=views[0], margin=margin)
    reversed_copy = None
    if source.has_reversed_copies and len(set(views)) > 1:
        reversed_copy = source.read(video, grid, view=views[1], margin=margin)
        if reversed_copy.shape != content.shape:
            shapes = f"{list(content.shape)}, its time-reversed copy {list(reversed_copy.shape)}"
            raise ValueError(f"a window of {video.name} is {shapes}; repeat `bitad reverse` or `bitad features`")
    return Sample(video.name, content, grid, reversed_copy=reversed_copy, repeated=source.repeated - repeated)


class Readers:
    """The processes that read for a loader, and the memory that they share with their parent.

    Args:
        names: of the videos.
        processes: how many read; 0: the parent itself.
        timeout_s: for reading a window; None: no limit.
    """

    def __init__(self, names: Sequence[str], processes: int, timeout_s: float | None) -> None:
        self.names = tuple(names)
        self.processes = processes
        self.timeout_s = timeout_s
        self._indices = {name: index for index, name in enumerate(self.names)}
        # Per process, the parent last: its id, the index of its video, and the time when it began.
        self._reads = torch.full((processes + 1, 3), float(_IDLE), dtype=torch.float64).share_memory_()
        self._repeated = torch.zeros(processes + 1, dtype=torch.int64).share_memory_()
        self._reported = 0
        # The newest processes that the parent has created, and the times.
        self._started: deque[tuple[BaseProcess, float]] = deque(maxlen=processes)

    def loader(self, items: Any, **options: Any) -> DataLoader[Any]:
        """PyTorch's loader, with these processes; ``items`` read through :meth:`reading`."""
        return DataLoader(
            items,
            num_workers=self.processes,
            multiprocessing_context=self._context() if self.processes else None,
            worker_init_fn=self._initialise,
            # Each iteration draws a seed; neither testing nor resuming may change the training's random numbers.
            generator=torch.Generator(),
            **options,
        )

    def _initialise(self, worker: int) -> None:
        initialise_reader(worker)
        self._reads[worker, 0] = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        # Processes cannot be pickled, and only the parent needs them.
        return {**self.__dict__, "_started": deque()}

    def _context(self) -> BaseContext:
        """PyTorch's default context, but it records each process, also one that has not run any code yet."""
        default: Any = multiprocessing.get_context()
        context = type(default)()
        create = context.Process

        def recorded(*arguments: Any, **options: Any) -> BaseProcess:
            process: BaseProcess = create(*arguments, **options)
            self._started.append((process, time.monotonic()))
            return process

        context.Process = recorded
        return cast("BaseContext", context)

    @contextmanager
    def reading(self, video: str) -> Iterator[None]:
        """Records that this process reads a window of a video; raises TimeoutError if it takes too long."""
        row = self._reads[self._number()]
        row[2] = time.monotonic()
        row[0] = os.getpid()
        row[1] = self._indices[video]  # last: it makes the row valid
        try:
            with time_limit(self.timeout_s, f"reading video {video}"):
                yield
        finally:
            row[1] = _IDLE

    def count_repeated(self, frames: int) -> None:
        """Adds damaged frames that this process has replaced by other ones."""
        self._repeated[self._number()] += frames

    def pop_repeated(self) -> int:
        """The damaged frames that all processes have replaced since the last call."""
        before = self._reported
        self._reported = int(self._repeated.sum())
        return self._reported - before

    def _number(self) -> int:
        """The number of this process; the parent's is the last one."""
        worker = get_worker_info()
        return self.processes if worker is None else min(worker.id, self.processes)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Kills processes that hang, and all if the block fails; a ChildProcessError names the video."""
        hung: dict[int, str] = {}
        finished = threading.Event()
        watch = threading.Thread(target=self._kill_hung, args=(finished, hung), daemon=True)
        watch.start()
        try:
            yield
        except BaseException as error:
            cause = error
            try:
                cause = self._cause(error)
            except RuntimeError as exited:  # by PyTorch's handler of a process's end, which may run at any moment
                cause = exited
            message = self._exit_message(cause, hung)
            self._kill_all()
            if message is not None:
                raise ChildProcessError(message) from None
            raise
        finally:
            finished.set()
            watch.join()

    def _kill_hung(self, finished: threading.Event, hung: dict[int, str]) -> None:
        """Kills processes that read or start for too long until ``finished`` is set; ``hung`` gets the reasons."""
        while self.processes and not finished.wait(_CHECK_INTERVAL_S):
            for process, why in (self._late_reads() | self._late_starts()).items():
                if process not in hung:
                    hung[process] = why
                    with suppress(OSError):  # it has ended
                        os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))

    def _late_reads(self) -> dict[int, str]:
        if self.timeout_s is None:
            return {}
        late = time.monotonic() - self.timeout_s - _GRACE_S
        why = f"took longer than {self.timeout_s:g} s and could not be interrupted: killed"
        return {
            int(process): f"reading video {self.names[int(index)]} {why}; check this file and its disk"
            for process, index, began in self._reads[:-1].tolist()
            if index != _IDLE and began < late
        }

    def _late_starts(self) -> dict[int, str]:
        late = time.monotonic() - _START_S
        why = f"did not start within {_START_S:g} s: killed; run this again, or give fewer workers"
        running = set(self._reads[:-1, 0].int().tolist())
        return {
            process.pid: f"a process that reads videos {why}"
            for process, created in list(self._started)
            if process.pid is not None and process.pid not in running and created < late
        }

    def _cause(self, error: BaseException) -> BaseException:
        """PyTorch's error for a process that ended, if ``error`` is only the connection to it that broke."""
        if not isinstance(error, ConnectionError | EOFError):
            return error
        time.sleep(_SIGNAL_DELAY_S)  # PyTorch's handler raises meanwhile
        ended = [str(process.pid) for process, _ in self._started if process.exitcode]
        return RuntimeError(f"DataLoader worker (pid(s) {', '.join(ended)}) exited") if ended else error

    def _exit_message(self, error: BaseException, hung: dict[int, str]) -> str | None:
        exited = _EXITED.match(str(error)) if isinstance(error, RuntimeError) else None
        if exited is None:
            return None
        processes = [int(number) for number in exited[1].split(",")]
        for process in processes:
            if process in hung:
                return hung[process]
        reads = [(process, int(index)) for process, index, _ in self._reads.tolist() if index != _IDLE]
        names = list(dict.fromkeys(self.names[index] for process, index in reads if process in processes))
        doing = f"was reading video {', '.join(names)}" if names else f"reads videos (process {exited[1]})"
        # The signal is in the error itself or in its cause.
        by_signal = _SIGNAL.search(f"{error} {error.__cause__ or ''}")
        reason = "" if by_signal is None else f": {' '.join(by_signal[1].split())}"
        if reason.startswith(": Killed"):
            reason += " The system kills processes when memory runs out; lower workers or batch."
        return f"a process that {doing} ended unexpectedly{reason}"

    def _kill_all(self) -> None:
        """Kills all processes; one that hangs would block the parent."""
        for _ in range(2):  # PyTorch's handler interrupts this once
            with suppress(RuntimeError):
                for process, _ in self._started:
                    if process.pid is not None:  # None: it was not started
                        process.kill()
                        process.join(_GRACE_S)


class TrainingWindows(Dataset[Sample]):
    """Random windows: item i is window ``i // videos`` of video ``i % videos`` in this epoch.

    ``views``: the playing directions of a teacher, beside the networks' own.
    """

    def __init__(
        self, annotations: Annotations, source: Source, config: Config, *, views: Collection[View] = ()
    ) -> None:
        self.source = source
        self.config = config
        self.classes = annotations.classes
        self._reversal = Reversal.of(config.reversal, annotations.classes)
        self.videos = [video for video in annotations.videos.values() if video.labels]
        self.views = tuple(dict.fromkeys((*config.views, *views)))
        self.unannotated = [video.name for video in annotations.videos.values() if not video.labels]
        if not self.videos:
            raise ValueError(f"no video of subset '{config.data.training_subset}' has any ground truth")
        training = config.training
        self.readers = Readers([video.name for video in self.videos], training.workers, training.read_timeout_s)
        # In shared memory, so that persistent workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch from which items are drawn."""
        self._epoch.fill_(epoch)

    def leave_out(self, names: Collection[str]) -> None:
        """Removes the windows of these videos; raises a ValueError if no others are left."""
        self.videos = [video for video in self.videos if video.name not in names]
        if not self.videos:
            raise ValueError("no training video can be read; `bitad annotations check` shows why")

    def median_rate_hz(self) -> float:
        """Grid steps per second, the median over the videos."""
        grids = [self.source.grid(video) for video in self.videos]
        return float(np.median([grid.fps / grid.stride_frames for grid in grids]))

    def __len__(self) -> int:
        return len(self.videos) * self.config.training.windows_per_video

    def __getitem__(self, item: int) -> Sample:
        training = self.config.training
        skipped: list[str] = []
        # A window of the next video replaces one that cannot be read.
        for place in range(item, item + len(self.videos)):
            video = self.videos[place % len(self.videos)]
            try:
                with self.readers.reading(video.name):
                    sample = self._window(place % len(self), video)
                self.readers.count_repeated(sample.repeated)
                return replace(sample, skipped=tuple(skipped))
            except (OSError, ValueError) as error:
                if training.on_read_error == "error" or place == item + len(self.videos) - 1:
                    raise
                skipped.append(f"{video.name}: {error}")
        raise AssertionError("there is at least one video")

    def _window(self, item: int, video: AnnotatedVideo) -> Sample:
        rng = np.random.default_rng((self.config.seed, int(self._epoch), item))
        video_grid = self.source.grid(video)
        views = self._views(item)
        truth = ground_truth_in_steps(video, video_grid, self.classes)
        start, steps, segments, labels = random_window(rng, video_grid.steps, *truth, self.config.window)
        backbone = self.config.model.backbone
        augmentation = self.config.training.augmentation
        margin = 1.0 if backbone is None else DECODE_MARGIN
        sample = _read_sample(self.source, video, video_grid.window(start, steps), views, margin=margin)
        reversed_labels = None if self._reversal.keeps_labels else self._reversal.labels(labels)
        sample = replace(sample, segments=segments, labels=labels, reversed_labels=reversed_labels)
        if backbone is not None:
            height, width = sample.content.shape[1:3]
            sample = sample.cropped(random_crop(rng, height, width, augmentation), backbone.pixels)
            if rng.random() < augmentation.colour:
                sample = replace(sample, colour=random_colour(rng, augmentation))
        return sample.seen_as(views[0])

    def _views(self, item: int) -> tuple[View, ...]:
        """The views of a window; with ``direction=both`` one, at random."""
        if self.config.direction != "both":
            return self.views
        # Not the generator of the window: windows and crops are those of a forward network.
        rng = np.random.default_rng((self.config.seed, int(self._epoch), item, _OF_DIRECTIONS))
        return ("forward",) if rng.random() < 0.5 else ("reverse",)


class TestWindows(Dataset[Sample | ReadFailure]):
    """All windows of a subset, video after video, without ground truth.

    A process that reads consecutive windows decodes what they share once.

    Attributes:
        videos, grids: by name.
        windows: the video and the grid of each.
        unread: by name, why this process could not read videos; it does not try again.
    """

    __test__ = False  # pytest would collect it by its name

    def __init__(self, annotations: Annotations, source: Source, config: Config) -> None:
        self.source = source
        self.config = config
        self.videos = annotations.videos
        test = config.test
        self.unread = dict[str, str]()
        workers = config.training.workers if test.workers is None else test.workers
        self.readers = Readers(list(annotations.videos), workers, test.read_timeout_s)
        self.grids = {
            name: grid
            for name, video in self.videos.items()
            if isinstance(grid := self._try_to_read(video, partial(source.grid, video)), Grid)
        }
        self._previous: Sample | None = None  # the last window, in forward order
        self.leave_out({})

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Removes the windows of videos that other processes could not read, by name with the reason."""
        self.unread |= reasons
        self.grids = {name: grid for name, grid in self.grids.items() if name not in self.unread}
        self.windows: list[tuple[AnnotatedVideo, Grid]] = []
        for name, video_grid in self.grids.items():
            for grid in self._split(video_grid):
                self.windows.append((self.videos[name], grid))

    def _split(self, video_grid: Grid) -> list[Grid]:
        window = self.config.window
        if window.layout == "whole":
            return [video_grid]
        windows = sliding_windows(video_grid.steps, window.steps, window.overlap)
        return [video_grid.window(first, steps) for first, steps in windows]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> Sample | ReadFailure:
        video, grid = self.windows[item]
        sample = self._try_to_read(video, partial(self._read_rest, video, grid))
        is_last = item + 1 == len(self) or self.windows[item + 1][0] is not video
        self._previous = None if is_last or isinstance(sample, ReadFailure) else sample
        return self._in_first_view(sample)

    def read(self, window: tuple[AnnotatedVideo, Grid]) -> Sample | ReadFailure:
        """Any part of a video as one window."""
        return self._in_first_view(self._try_to_read(window[0], partial(self._read, *window)))

    def _in_first_view(self, sample: Sample | ReadFailure) -> Sample | ReadFailure:
        if isinstance(sample, ReadFailure):
            return sample
        self.readers.count_repeated(sample.repeated)
        return sample.seen_as(self.config.views[0])

    def _read_rest(self, video: AnnotatedVideo, grid: Grid) -> Sample:
        """A window; what it shares with the previous one is not read again."""
        previous = self._previous
        if previous is not None and previous.video == video.name and not previous.repeated:
            frames = grid.first_frame - previous.grid.first_frame
            shared = previous.grid.steps - round(frames / grid.stride_frames)
            if 0 < shared < min(grid.steps, previous.grid.steps):
                rest = self._read(video, grid.window(shared, grid.steps - shared))
                if not rest.repeated:  # else the replacements depend on the full window
                    return rest.prepended(previous, shared)
        return self._read(video, grid)

    def _read(self, video: AnnotatedVideo, grid: Grid) -> Sample:
        """In forward order."""
        sample = _read_sample(self.source, video, grid, self.config.views)
        backbone = self.config.model.backbone
        if backbone is None:
            return sample
        height, width = sample.content.shape[1:3]
        return sample.cropped(centre_crop(height, width), backbone.pixels)

    def _try_to_read(self, video: AnnotatedVideo, read: Callable[[], Content]) -> Content | ReadFailure:
        """What ``read`` returns, unless the video cannot be read and that is allowed."""
        if video.name not in self.unread:
            try:
                with self.readers.reading(video.name):
                    return read()
            except (OSError, ValueError) as error:
                if self.config.test.on_read_error == "error":
                    raise
                self.unread[video.name] = str(error)
        return ReadFailure(video.name, self.unread[video.name])
