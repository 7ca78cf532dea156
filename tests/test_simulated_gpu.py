"""The simulated GPU itself: real numbers, no mixing of devices, every wait and copy counted."""

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from simulated_gpu import Counts, simulated_gpu
from torch import nn
from torch.nn import functional

from kit.training import Muon


@pytest.fixture
def counts() -> Iterator[Counts]:
    with simulated_gpu() as counted:
        yield counted


@pytest.mark.usefixtures("counts")
def test_numbers_are_real_and_say_that_they_are_on_the_gpu() -> None:
    sums = torch.arange(6.0).to("cuda") + torch.ones(6, device="cuda")
    sums[2:4].mul_(10)
    assert sums.device.type == "cuda"
    assert sums.is_cuda
    assert sums.cpu().tolist() == [1, 2, 30, 40, 5, 6]


@pytest.mark.usefixtures("counts")
def test_mixing_devices_raises() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="cuda") + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        nn.Linear(3, 1).to("cuda")(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"use Tensor\.cpu\(\)"):
        torch.ones(3, device="cuda").numpy()


def test_waits_are_counted(counts: Counts) -> None:
    values = torch.arange(3.0, device="cuda")
    assert counts.waits == {}
    assert (values.sum().item(), bool((values > 1).any()), int(values[1])) == (3, True, 1)
    assert counts.waits == {"_local_scalar_dense": 3}
    values.cpu()
    assert (counts.waits["download"], counts.downloaded) == (1, 12)


def test_uploads_are_counted_and_wait_unless_pinned(counts: Counts) -> None:
    torch.zeros(4).pin_memory().to("cuda", non_blocking=True)
    assert (counts.uploads, counts.uploaded, counts.waits) == ({"pinned": 1}, 16, {})
    torch.zeros(4).to("cuda", non_blocking=True)
    torch.tensor([1.0], device="cuda")
    assert counts.waits == {"pageable upload": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, Muon])
def test_a_network_trains_as_on_the_cpu_and_waits_for_nothing(
    counts: Counts, dtype: torch.dtype, kind: type[torch.optim.AdamW]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1)
    )
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0.0, 1.0])
    losses = {}
    for device in ("cpu", "cuda"):
        there = copy.deepcopy(model).to(device)
        optimizer = kind(there.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        own = images.to(device), labels.to(device)
        counts.clear()
        # Of Muon the first three are launched one by one, the next recorded, all others replayed.
        for _ in range(6):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                logits = there(own[0]).squeeze(1)
            loss = functional.binary_cross_entropy_with_logits(logits.float(), own[1])
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert counts.waits == {}
        losses[device] = loss.item()
    assert losses["cuda"] == losses["cpu"] < 0.5


@pytest.mark.usefixtures("counts")
def test_states_are_saved_as_the_hosts_and_loaded_back() -> None:
    model = nn.Linear(3, 1).to("cuda")
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    other = nn.Linear(3, 1).to("cuda")
    other.load_state_dict(state)
    assert torch.equal(other.weight, model.weight)
