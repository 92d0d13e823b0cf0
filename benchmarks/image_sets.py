"""Sets as TensorFlow Datasets prepares them, written without TensorFlow."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def prepare(
    folder: Path,
    name: str,
    version: str,
    features: dict[str, Any],
    splits: dict[str, Iterable[dict[str, Any]]],
    shards: int = 1,
    config: str | None = None,
) -> None:
    """Writes the records of each split as the set of this name, in so many files a split."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
        url_infos = {}  # noqa: RUF012 (nothing to download, so no checksums to look for)

        def _info(self):
            described = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=described)

        def _split_generators(self, dl_manager):
            return {split: enumerate(records) for split, records in splits.items()}

        def _generate_examples(self, records):
            return records

    Builder.name = name
    config = tfds.download.DownloadConfig(num_shards=shards)
    builder = Builder(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=config)
