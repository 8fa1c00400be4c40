"""Images that a network was trained on are known by their content, so that it is not scored on them by mistake."""

import io

import polars as pl

from pipeline.engines.progress import log
from pipeline.images.contents import hash_images
from pipeline.storage import Location, is_file, is_folder, remove, write_atomic
from pipeline.storage.parquet import read_frame
from schemas.errors import DataError
from trainer.evaluation.ground_truth import GroundTruth

LEDGER = "images.parquet"
SEEN = "training-images.parquet"
"""In the folder of a run: file_name and hash of the images whose chips it was trained on."""


def note_seen(run: Location, data: Location, *, anew: bool) -> None:
    """Keep the hashes of a chip data set's images with a run that is trained on it.

    Where the ledger is gone, nothing is noted.

    Args:
        run: folder of the run.
        data: the chip data set.
        anew: the run begins, and a note of an attempt before it is replaced; otherwise what is there stays.
    """
    if anew:
        remove(run / SEEN)
    if is_file(run / SEEN) or not is_file(data / LEDGER):
        return
    kept = read_frame(data / LEDGER).filter(pl.col("state") == "kept")
    file = io.BytesIO()
    kept.select("file_name", "hash").drop_nulls().write_parquet(file)
    write_atomic(run / SEEN, file.getvalue())


def refuse_seen(checkpoint: Location, truth: GroundTruth) -> None:
    """Refuse images to score on whose content a run was trained on.

    Args:
        checkpoint: the folder of a run, or a checkpoint in it. Where the run has no note of its images, since an
            earlier version made it or the checkpoint was moved, this is said and nothing is refused.
        truth: what is to be scored against.

    Raises:
        DataError: at least one image was trained on.
    """
    run = checkpoint if is_folder(checkpoint) else checkpoint.parent
    if not is_file(run / SEEN):
        log.info(f"{run}: has no {SEEN}, so it is not known whether the images to score on were trained on")
        return
    names = truth.source.file_name.to_pylist()
    scored = pl.DataFrame({"name": names, "hash": pl.Series(hash_images(truth.images, names), dtype=pl.String)})
    both = (
        scored.drop_nulls().join(read_frame(run / SEEN), on="hash").unique("name", keep="first", maintain_order=True)
    )
    if len(both):
        name, _, trained = both.row(0)
        raise DataError(
            f"{truth.images}: {len(both):,} of {len(names):,} images to score on have the content of images that "
            f"{run} was trained on, such as {name} that of {trained}; a score on them says little. Part the data anew "
            "with `sniper split --images`, or score on them nevertheless with --allow-seen"
        )
