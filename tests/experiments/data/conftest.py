import pytest

from tests.experiments.data.stored import PREPARED, prepare


@pytest.fixture(scope="package")
def prepared(tmp_path_factory):
    """A folder with small sets under the names of stock ones."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, version, image_shape, splits in PREPARED:
        prepare(folder, name, version, image_shape, splits)
    return folder
