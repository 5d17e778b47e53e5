"""BiTAD: bidirectional temporal action detection.

Finds when which action happens in an untrimmed video, with one detector that watches the video forwards and one
that watches it backwards.
"""

__version__ = "0.1.0"
