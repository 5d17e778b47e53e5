"""The experiments, each as its difference from training one network: what is loaded, added, trained and fused.

``docs/experiments.md`` describes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Args:
        name: as on the command line.
        summary: one line.
        networks: one, or two that see the same windows (the second in reverse).
        starts_from: the pre-trained backbone, or the EMA weights of two finished baselines.
        adds: a module after every adapter of the frozen networks, the only one that trains: a second adapter, or one
            that also sees the other network's features.
        fusion: how the two aligned predictions become one, in training and testing.
        agreement: whether the loss has a term for the difference of the two aligned predictions.
    """

    name: str
    summary: str
    networks: Literal[1, 2] = 2
    starts_from: Literal["backbone", "baselines"] = "baselines"
    adds: Literal["adapter", "cross-adapter"] | None = None
    fusion: str | None = None
    agreement: bool = False

    @property
    def joint(self) -> bool:
        """Whether a loss depends on both networks, so that they need one graph.

        Otherwise they are two trainings side by side: one's backward pass can end before the other's forward pass.
        """
        return self.fusion is not None or self.agreement or self.adds == "cross-adapter"

    @property
    def aligns(self) -> bool:
        """Whether training aligns the predictions of one network to the clock of the other."""
        return self.fusion is not None or self.agreement


# The results of two networks and their files, by the playing direction of the second network. The last result merges
# the others. In the control, the second network also sees forward playback.
RESULTS_OF_PAIRS: Mapping[str, Mapping[str, str]] = {
    "reverse": {
        "forward basis": "detections.forward.json",
        "reverse basis": "detections.reverse.json",
        "merged": "detections.json",
    },
    "forward": {
        "first network": "detections.forward.json",
        "second network": "detections.second.json",
        "merged": "detections.json",
    },
}

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("baseline", "one network, one playing direction", networks=1, starts_from="backbone"),
        Experiment("1", "two networks, the two losses added", starts_from="backbone"),
        Experiment("1-1", "as 1, from the baselines' weights"),
        Experiment("1x", "as 1-1, with a loss that makes the aligned predictions agree", agreement=True),
        Experiment("2", "as 1-1, the networks frozen, a second adapter in each block trained", adds="adapter"),
        Experiment("2x", "as 2, the new adapter also seeing the other network's features", adds="cross-adapter"),
        Experiment("3-1", "a layer along the points fuses start, end and class logits", fusion="columns"),
        Experiment("3-2", "the layer fuses start and end, a 3-D convolution the logits", fusion="convolution"),
        Experiment("3-3", "the layer fuses start and end, logits are averaged", fusion="mean"),
    )
}
