"""The Arrow schemas of every Parquet file the pipeline writes. Boxes are x1 y1 x2 y2, x2 and y2 exclusive."""

import pyarrow as pa

FORMAT_VERSION = 3
"""Raised whenever the same input and settings give other bytes; part of every fingerprint."""

CORNERS = ["x1", "y1", "x2", "y2"]
"""The columns, or fields, of a box or window in every table."""

BOX = pa.struct(
    [
        ("annotation_id", pa.int64()),
        ("category_id", pa.int64()),  # as in the source file
        ("label", pa.int32()),  # 1..K in the order of categories.parquet; 0 is background
        ("x1", pa.float32()),  # chip pixels, clipped to the content
        ("y1", pa.float32()),
        ("x2", pa.float32()),
        ("y2", pa.float32()),
        ("visible", pa.float32()),  # share of the box's area inside the window, (0, 1]
        ("status", pa.string()),  # schemas.codes.Status
    ]
)

PLAN = pa.schema(
    [
        ("key", pa.string()),  # unique; no dot or slash; stem of the tar members
        ("image_id", pa.int64()),
        ("kind", pa.string()),  # positive or negative
        ("scale_index", pa.int8()),  # 0 is the finest by intent
        ("scale", pa.float64()),  # factor source -> chip
        ("x1", pa.float64()),  # window, source pixels
        ("y1", pa.float64()),
        ("x2", pa.float64()),
        ("y2", pa.float64()),
        ("width", pa.int16()),  # stored content, chip pixels
        ("height", pa.int16()),
        ("range_min", pa.float32()),  # valid range of the scale, sqrt(area) in source pixels
        ("range_max", pa.float32()),  # infinity: unbounded
        ("boxes", pa.list_(BOX)),
        ("num_valid", pa.int32()),
        ("num_boxes", pa.int32()),
        ("num_proposals", pa.int32()),  # newly covered when the chip was chosen; null for positives
        ("mean_score", pa.float32()),  # of those proposals; null for positives and where there are none
    ]
)

STORAGE = [
    pa.field("shard", pa.string()),  # tar file, relative to OUT
    pa.field("offset", pa.int64()),  # of the JPEG's first byte in the tar
    pa.field("size", pa.int32()),  # bytes of the JPEG
    pa.field("crc32", pa.uint32()),  # of the JPEG
]

MANIFEST = pa.schema([*PLAN, *STORAGE])

IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),  # null where the record gives none
        ("file_name", pa.string()),
        ("width", pa.int32()),  # as annotated
        ("height", pa.int32()),
        ("state", pa.string()),  # kept or refused
        ("reason", pa.string()),  # schemas.codes.Reason, null when kept
        ("hash", pa.string()),  # XXH3-128 of the file's bytes; null in plans and where it could not be read
        ("num_boxes", pa.int32()),  # boxes that are in order, crowds included
        ("num_chips", pa.int32()),  # positive chips written
    ]
)

ANNOTATIONS = pa.schema(
    [
        ("row", pa.int64()),  # position in the annotation file, from 0
        ("annotation_id", pa.int64()),  # null where the record gives none
        ("image_id", pa.int64()),
        ("category_id", pa.int64()),
        ("x1", pa.float64()),  # source pixels, clipped to the image; null when refused
        ("y1", pa.float64()),
        ("x2", pa.float64()),
        ("y2", pa.float64()),
        ("fate", pa.string()),  # schemas.codes.Fate
        ("reason", pa.string()),  # why uncovered or refused, else null
        ("scales", pa.list_(pa.int8())),  # scale indices at which it is covered, or rescued
    ]
)

CATEGORIES = pa.schema([("id", pa.int64()), ("name", pa.string()), ("label", pa.int32())])

REJECTS = pa.schema(
    [
        ("kind", pa.string()),  # image or annotation
        ("id", pa.int64()),
        ("file", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)

PROPOSALS = pa.schema(
    [
        ("image_id", pa.int64()),
        ("scale_index", pa.int8()),  # scale it was found at; for the record, mining pools all of them
        ("x1", pa.float32()),  # source pixels
        ("y1", pa.float32()),
        ("x2", pa.float32()),
        ("y2", pa.float32()),
        ("score", pa.float32()),
    ]
)

VIEWS = pa.schema(
    [
        ("view_id", pa.int64()),  # from 1; the image id that results on views have
        ("file_name", pa.string()),  # relative to OUT/images
        ("width", pa.int32()),  # view pixels
        ("height", pa.int32()),
        ("image_id", pa.int64()),  # source image
        ("image_file", pa.string()),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("scale_index", pa.int8()),
        ("scale", pa.float64()),  # factor source -> view
        ("x1", pa.float64()),  # window, source pixels
        ("y1", pa.float64()),
        ("x2", pa.float64()),
        ("y2", pa.float64()),
    ]
)
"""What `sniper views` wrote: a row per view, in the order of images, scales and tiles."""
