import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The order of sums, and so the last bits, may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
