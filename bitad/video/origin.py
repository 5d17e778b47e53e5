"""What a reversed video was made from, as recorded in the comment of its container.

This module does not import torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitad.video.streams import open_video

_KEY, _MARK = "comment", "bitad reverse 1 "


@dataclass(frozen=True)
class Origin:
    """From which file a reversed video was made, and how.

    Args:
        source_sha256: of the source's content.
        crf: x264's constant rate factor.
        frames: number of frames written.
        repeated: how many of them replace damaged ones.
    """

    source_sha256: str
    crf: float
    frames: int
    repeated: int

    def metadata(self) -> dict[str, str]:
        """The entry of a container's metadata that :meth:`read` finds again."""
        return {_KEY: _MARK + json.dumps(asdict(self))}

    @staticmethod
    def read(path: Path) -> Origin | None:
        """The origin that a file states; None where it states none, as files of earlier versions.

        Raises:
            FileNotFoundError, ValueError: it cannot be opened.
        """
        container, _ = open_video(path)
        with container:
            entries = {key.lower(): value for key, value in container.metadata.items()}
        comment = entries.get(_KEY, "")
        if not comment.startswith(_MARK):
            return None
        try:
            values: Any = json.loads(comment.removeprefix(_MARK))
            return Origin(str(values["source_sha256"]), values["crf"], values["frames"], values["repeated"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
