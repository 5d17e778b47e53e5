"""BiTAD: bidirectional temporal action detection.

Finds when which action happens in an untrimmed video, with one detector that watches the video forwards and one
that watches it backwards. docs/library.md describes the functions. They are imported at first use, so importing this
package loads neither PyTorch nor NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitad.config.loading import load_config
    from bitad.config.schema import Config
    from bitad.data.annotations import AnnotatedVideo, Annotations
    from bitad.data.detections import Detections, VideoDetections, read_detections
    from bitad.data.formats.database import read_annotations
    from bitad.evaluation.average_recall import AverageRecall
    from bitad.evaluation.bootstrap import Bootstrap
    from bitad.evaluation.diagnosis import Diagnosis
    from bitad.evaluation.mean_average_precision import Evaluation
    from bitad.evaluation.per_frame import FrameEvaluation
    from bitad.evaluation.segmentation import SegmentalF1
    from bitad.library import (
        Detector,
        Run,
        average_recall,
        bootstrap,
        detect,
        diagnose,
        evaluate,
        frame_map,
        load,
        merge,
        segmental_f1,
        train,
    )

__version__ = "0.1.0"

__all__ = [
    "AnnotatedVideo",
    "Annotations",
    "AverageRecall",
    "Bootstrap",
    "Config",
    "Detections",
    "Detector",
    "Diagnosis",
    "Evaluation",
    "FrameEvaluation",
    "Run",
    "SegmentalF1",
    "VideoDetections",
    "__version__",
    "average_recall",
    "bootstrap",
    "detect",
    "diagnose",
    "evaluate",
    "frame_map",
    "load",
    "load_config",
    "merge",
    "read_annotations",
    "read_detections",
    "segmental_f1",
    "train",
]

# The modules of the public names that are not in bitad.library.
_MODULES = {
    "AnnotatedVideo": "bitad.data.annotations",
    "Annotations": "bitad.data.annotations",
    "AverageRecall": "bitad.evaluation.average_recall",
    "Bootstrap": "bitad.evaluation.bootstrap",
    "Config": "bitad.config.schema",
    "Detections": "bitad.data.detections",
    "Diagnosis": "bitad.evaluation.diagnosis",
    "Evaluation": "bitad.evaluation.mean_average_precision",
    "FrameEvaluation": "bitad.evaluation.per_frame",
    "SegmentalF1": "bitad.evaluation.segmentation",
    "VideoDetections": "bitad.data.detections",
    "load_config": "bitad.config.loading",
    "read_annotations": "bitad.data.formats.database",
    "read_detections": "bitad.data.detections",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "bitad.library")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
