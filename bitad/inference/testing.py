"""Testing a trained run: detections in both times, of each network's basis and merged, and their mAP."""

from __future__ import annotations

from pathlib import Path

from bitad.data.annotations import Annotations
from bitad.data.detections import Detections, write_detections
from bitad.data.ground_truth import read_test_ground_truth
from bitad.data.sources import FeatureFiles, VideoFiles, build_source
from bitad.evaluation.mean_average_precision import Evaluation, evaluate
from bitad.files import write_json
from bitad.inference.detect import DETECTION_FILES, detect
from bitad.log import log
from bitad.outputs import check_places
from bitad.training.checkpoint import Checkpoint, class_names
from bitad.training.distributed import Processes
from bitad.training.fingerprints import TEST, changes, fingerprints, of_tests
from bitad.training.first_look import look_at_clocks
from bitad.video.index_cache import INDEX_FOLDER, IndexCache


def detect_on_reversed_playback(checkpoint: Checkpoint, team: Processes) -> Detections:
    """What a forward network finds in its test videos played backwards, on the forward clock.

    The windows are those of forward playback, flipped. What it says there tells how much classes depend on the
    direction: :func:`bitad.evaluation.direction_sensitivity.sensitivity`.
    """
    config = checkpoint.config
    subset = read_test_ground_truth(config)
    flipped = config.model_copy(update={"direction": "reverse"})
    source = _source(checkpoint)
    look_at_clocks(subset, source, config, checkpoint.rate_hz, team)
    network = checkpoint.network().to(team.device)
    what = f"testing {config.run_directory.name} on reversed playback"
    return detect(network, subset, source, flipped, team, what=what).merged


def run_test(checkpoint: Checkpoint, out: Path, team: Processes) -> dict[str, Evaluation]:
    """Detects in the test subset and writes what was found; the evaluation of every result, the whole run's last.

    Writes ``out``/detections.json (forward time), ``out``/detections.reverse.json (reverse time, D - t) and
    ``out``/metrics.json. Of one network the two files of detections hold the same ones; of a pair the first holds the
    merged ones, the second those of the reverse basis, and ``out``/detections.forward.json those of the forward basis;
    of two forward networks ``out``/detections.second.json has those of the second one, in forward time.

    What was found is written before it is evaluated, and stays where that fails.

    Raises:
        ValueError: if the data set has other classes than the network; if its clocks disagree; if the subset has no
            ground truth, and then the message says where the detections are.
    """
    config, metrics = checkpoint.config, out / "metrics.json"
    check_places([metrics, *(out / name for name in DETECTION_FILES)])
    classes = class_names(config)
    if classes != checkpoint.classes:
        raise ValueError(
            f"{config.data.classes or config.data.annotations} has the classes {', '.join(classes)}, but the detector "
            f"was trained on {', '.join(checkpoint.classes)}; test on its own data set, or name its class list in "
            "data.classes"
        )
    subset = read_test_ground_truth(config)
    details = {"variant": config.variant, "epoch": checkpoint.epoch, "name": config.name, "seed": config.seed}
    source = _source(checkpoint)
    look_at_clocks(subset, source, config, checkpoint.rate_hz, team)
    network = checkpoint.network().to(team.device)
    results = detect(network, subset, source, config, team, details=details)
    named = results.named()
    if team.is_main:
        _say_changed(checkpoint, subset)
        metrics.unlink(missing_ok=True)  # an earlier test's, which would be taken for these detections' own
        results.write(out)
        if len(named) == 1:
            write_detections(results.merged.reversed(), out / "detections.reverse.json")
    try:
        evaluations = {name: evaluate(subset, found, tiou=config.test.tiou) for name, found in named.items()}
    except ValueError as error:
        raise ValueError(f"{error}; the detections are in {out / 'detections.json'}") from None
    if team.is_main:
        write_json({name: evaluation.to_json() for name, evaluation in evaluations.items()}, metrics)
    return evaluations


def _say_changed(checkpoint: Checkpoint, subset: Annotations) -> None:
    """Log what of the test videos has changed since the checkpoint was written, if these are the ones of its run."""
    before = of_tests(checkpoint.data or {})
    if before.get(TEST, {}).keys().isdisjoint(subset.videos):
        return  # an older checkpoint, another data set, or another part of it
    if changed := changes(before, of_tests(fingerprints(checkpoint.config, [], subset))):
        log.warning("the test data have changed since %s was written: %s", checkpoint.source, "; ".join(changed))


def _source(checkpoint: Checkpoint) -> VideoFiles | FeatureFiles:
    """Of the windows to test on; what the run knows of its videos' frames need not be found out again."""
    return build_source(checkpoint.config, IndexCache(Path(checkpoint.source).parent / INDEX_FOLDER))
