import pytest
import torch
from small_models import ALL, save

from amg_plugin.deploy.export import ExportOptions, export
from amg_plugin.registries.formats import FORMATS


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Gives the checkpoint file of a kind of network."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def of(kind):
        path = folder / f"{kind}.pth"
        return path if path.exists() else save(ALL[kind](), path)

    return of


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory):
    """Gives the file and the outcome of an export; each is made once, since recording a graph takes seconds."""
    made = {}

    def of(kind, file_format, **options):
        key = (kind, file_format, *sorted(options.items()))
        if key not in made:
            output = tmp_path_factory.mktemp("exported") / f"model{FORMATS.row(file_format).suffixes[0]}"
            made[key] = output, export(checkpoint(kind), ExportOptions(file_format, output, **options))
        return made[key]

    return of


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The networks are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
