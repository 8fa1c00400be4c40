"""What a shard is made from: the build that it belongs to, its images and its planned chips."""

from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.coco import SourceImage
from pipeline.dataset.build_file import build_place, command_for
from pipeline.images.chip import Codec
from pipeline.storage import Location
from schemas.settings import ChipSettings


class Target(NamedTuple):
    """Where a build's shards go, and what all of them share.

    Attributes:
        out: the data set.
        folder: `positives` or `negatives`.
        image_root: the folder that file names are relative to.
        settings: the settings of the positives.
        recorded: the settings that act on every shard, and that its record names. A shard that names others is not of
            this build.
        codec: what is in use where the command was started; a worker with another one makes other bytes.
        decoders: of the formats whose decoder a build of Pillow may lack, those there are where the command was
            started (images.decode.decoders); a worker with others refuses other images.
        is_moved: the shards that stand may be of images in another folder, so no file is trusted for its times.
    """

    out: Location
    folder: str
    image_root: Location
    settings: ChipSettings
    recorded: dict[str, Any]
    codec: Codec
    decoders: dict[str, str]
    is_moved: bool = False

    @property
    def build_file(self) -> Location:
        """The build record. It says that the build is finished, so it goes when a shard is made anew."""
        return build_place(self.out, self.folder)


class ShardJob(NamedTuple):
    """Everything one shard needs, decided before any worker starts.

    Attributes:
        target: the build that it is a shard of.
        name: such as `chips-00000`.
        images: the images of the shard, by id.
        chips: the planned chips, schema PLAN, ordered by image.
        hashes: XXH3-128 that each image file must have, where chips of it exist already.
        killers: why an image kills each worker that decodes it, by its position; it is refused.
    """

    target: Target
    name: str
    images: list[SourceImage]
    chips: pa.Table
    hashes: list[str] | None = None
    killers: dict[int, str] = {}

    def place(self, suffix: str) -> Location:
        """Return where a file of the shard lies: its tar (`.tar`) or its manifest (`.parquet`)."""
        return self.target.out / self.target.folder / f"{self.name}{suffix}"


def without_image(job: ShardJob, position: int, why: str) -> ShardJob:
    """Return a job in which an image is refused that kills each worker.

    Args:
        job: the job that killed its workers.
        position: of the image in the shard.
        why: how they died.
    """
    manifest = job.place(".parquet")
    advice = f"to try it again, delete {manifest} and run `{command_for(manifest)}`"
    return job._replace(killers=job.killers | {position: f"{why}; {advice}"})
