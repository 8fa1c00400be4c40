"""The build record: what run.json says of a finished build."""

from typing import Any

import msgspec


class Build(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished build of positives or of a pool of negatives.

    Attributes:
        fingerprint: SHA-256, hex, over the fingerprints of the shards in order. It is the identity of the build: a
            pool, a training run and a loader's index name it. Nothing else in here takes part in it.
        settings: all settings by section, as the build was started with.
        versions: of this program, of the format and of the codecs; for information.
        num_shards: number of shards.
        files: SHA-256, hex, of the ledgers that stand beside the record, by name.
        counts: the report, for information.
        formerly: fingerprints by which earlier versions of the program named the same shards.
        images: positives: the folder that the images were read from; it may differ between equal builds.
        positives: pool: fingerprint of the positives that it was mined for.
        random: pool: random chips per image; None where proposals were mined.
        proposals: pool: where the proposals were read; it may differ between equal builds.
    """

    fingerprint: str
    settings: dict[str, dict[str, Any]]
    num_shards: int
    files: dict[str, str]
    counts: dict[str, Any]
    versions: dict[str, Any] = {}
    formerly: list[str] = []
    images: str | None = None
    positives: str | None = None
    random: int | None = None
    proposals: str | None = None

    @property
    def names(self) -> set[str]:
        """All fingerprints that mean these shards."""
        return {self.fingerprint, *self.formerly}

    def known_as(self, name: str | None) -> str:
        """Return `name` where it means these shards, else their fingerprint."""
        return name if name is not None and name in self.names else self.fingerprint
