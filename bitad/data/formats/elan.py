"""ELAN's annotation documents (EAF): a file ``NAME.eaf`` for each video.

Times are whole milliseconds of the media file; nothing counts frames, though ELAN's player steps by them. An
annotation is from its first time slot to its second one. Annotations of one tier cannot overlap, so overlapping
segments are on the tiers "actions", "actions 2" and so on; the value of an annotation is the label.

The XML is read and written with Python's own parser. pympi-ling, the library for these files, is not needed: version
1.71 imports a deprecated alias of that parser (``xml.etree.cElementTree``), and its errors are no messages for users.

Sources: https://www.mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf; https://www.mpi.nl/tools/elan/EAFv3.0.xsd
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitad.data.formats.parsing import (
    ParsedAnnotations,
    ParsedVideos,
    ReadOptions,
    Row,
    number,
    read_xml,
    shortened_list,
)
from bitad.data.formats.writing import (
    WriteOptions,
    address_of,
    check_label,
    milliseconds,
    write_by_video,
    xml_text,
)

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from bitad.data.annotations import AnnotatedVideo, Annotations

_TIER = "actions"


def read_elan(files: Sequence[Path], _: ReadOptions) -> ParsedAnnotations:
    """The tiers that are called "actions", "actions 2" and so on, or if there are none all independent tiers.

    See the module for what times mean. Dependent tiers, such as translations, are left out.
    """
    videos = ParsedVideos()
    left_out: dict[str, None] = {}
    for path in files:
        video = videos.new(path.stem, "training", path.name)
        with video.collecting():
            root = read_xml(path, "ANNOTATION_DOCUMENT")
            header = root.find("HEADER")
            units = "milliseconds" if header is None else header.get("TIME_UNITS", "milliseconds")
            if units != "milliseconds":
                raise ValueError(f"{path.name}: its times are {units}; save it in milliseconds")
            if any(number(media.get("TIME_ORIGIN")) for media in root.iter("MEDIA_DESCRIPTOR")):
                raise ValueError(f"{path.name}: a linked file has an offset (TIME_ORIGIN); set it to 0 in ELAN")
            times = {slot.get("TIME_SLOT_ID", ""): slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")}
            tiers = list(root.findall("TIER"))
            own = [tier for tier in tiers if _is_own(tier.get("TIER_ID", ""))]
            chosen = own or [tier for tier in tiers if tier.get("PARENT_REF") is None]
            left_out |= dict.fromkeys(tier.get("TIER_ID", "") for tier in tiers if tier not in chosen)
            video.rows += [row for tier in chosen for row in _rows_of(tier, times, path.name)]
    notes = (f"tiers left out: {shortened_list(left_out)}",) if left_out else ()
    return ParsedAnnotations(videos.ordered(), notes=notes)


def _is_own(tier: str) -> bool:
    name, _, count = tier.partition(" ")
    return name == _TIER and (not count or count.isdecimal())


def _rows_of(tier: Element, times: Mapping[str, str | None], where: str) -> Iterator[Row]:
    for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
        label = (annotation.findtext("ANNOTATION_VALUE") or "").strip()
        edges = [number(times.get(annotation.get(f"TIME_SLOT_REF{place}", ""))) for place in (1, 2)]
        if not label or edges[0] is None or edges[1] is None:
            name = annotation.get("ANNOTATION_ID")
            raise ValueError(
                f"{where}: annotation {name} of tier {tier.get('TIER_ID')!r} has no value or no times"
            )
        yield Row(edges[0] / 1000, edges[1] / 1000, label)


def write_elan(annotations: Annotations, dst: Path, options: WriteOptions) -> tuple[Path, ...]:
    """A file ``NAME.eaf`` for each video in the folder ``dst``; the classes are its controlled vocabulary."""
    labels = annotations.labels()
    texts = {video.name: _document(video, labels, options) for video in annotations.videos.values()}
    return write_by_video(texts, dst, ".eaf")


def _document(video: AnnotatedVideo, classes: Sequence[str], options: WriteOptions) -> str:
    from xml.etree.ElementTree import Element, SubElement

    schema = {
        "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
        "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
    }
    # The schema wants a date; the first one of ELAN's era, so that equal annotations give equal files.
    stated = {"AUTHOR": "bitad", "DATE": "2000-01-01T00:00:00+00:00", "FORMAT": "3.0", "VERSION": "3.0"}
    root = Element("ANNOTATION_DOCUMENT", {**stated, **schema})
    header = SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    media = options.media_of(video.name)
    kind = mimetypes.guess_type(media)[0] or "video/mp4"
    SubElement(header, "MEDIA_DESCRIPTOR", MEDIA_URL=address_of(media), MIME_TYPE=kind)
    order = SubElement(root, "TIME_ORDER")
    slots = 0
    for place, tier in enumerate(_tiers(video)):
        name = _TIER if place == 0 else f"{_TIER} {place + 1}"
        element = SubElement(root, "TIER", LINGUISTIC_TYPE_REF=_TIER, TIER_ID=name)
        for start, end, label in tier:
            slots += 2
            for slot, value in ((slots - 1, start), (slots, end)):
                SubElement(order, "TIME_SLOT", TIME_SLOT_ID=f"ts{slot}", TIME_VALUE=str(value))
            annotation = SubElement(
                SubElement(element, "ANNOTATION"),
                "ALIGNABLE_ANNOTATION",
                ANNOTATION_ID=f"a{slots // 2}",
                TIME_SLOT_REF1=f"ts{slots - 1}",
                TIME_SLOT_REF2=f"ts{slots}",
            )
            SubElement(annotation, "ANNOTATION_VALUE").text = label
    SubElement(
        root,
        "LINGUISTIC_TYPE",
        CONTROLLED_VOCABULARY_REF=_TIER,
        GRAPHIC_REFERENCES="false",
        LINGUISTIC_TYPE_ID=_TIER,
        TIME_ALIGNABLE="true",
    )
    SubElement(root, "LANGUAGE", LANG_ID="und", LANG_LABEL="undetermined (und)")
    vocabulary = SubElement(root, "CONTROLLED_VOCABULARY", CV_ID=_TIER)
    SubElement(vocabulary, "DESCRIPTION", LANG_REF="und")
    for place, name in enumerate(classes):
        entry = SubElement(vocabulary, "CV_ENTRY_ML", CVE_ID=f"cve{place}")
        SubElement(entry, "CVE_VALUE", DESCRIPTION="", LANG_REF="und").text = name
    return xml_text(root)


def _tiers(video: AnnotatedVideo) -> list[list[tuple[int, int, str]]]:
    """The segments of each tier, in milliseconds, without overlap; at least one tier."""
    tiers: list[list[tuple[int, int, str]]] = [[]]
    for (start, end), label in sorted(zip(milliseconds(video), video.labels, strict=True)):
        check_label(label, f"video {video.name}")
        tier = next((tier for tier in tiers if not tier or tier[-1][1] <= start), None)
        if tier is None:
            tiers.append(tier := [])
        tier.append((start, end, label))
    return tiers
