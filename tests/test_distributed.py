"""Collectives on gloo. That several processes play as one does: test_sharded_bank.py."""

import hashlib
import os
import pickle
import tarfile

import pytest
import torch
import torchvision

from adco.data.datasets import splits_of
from adco.pretrain.options import PretrainConfig
from ops import distributed
from ops.errors import RunFailed
from ops.training import check_ranks_agree
from tests.support.gloo import in_processes
from tests.support.web import served


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request):
    """What each of two and of three processes gets."""
    return in_processes(collectives, request.param)


def permutation_of(size: int) -> torch.Tensor:
    return torch.randperm(4 * size, generator=torch.Generator().manual_seed(size))


def collectives(world: distributed.World) -> dict:
    own = torch.arange(4 * world.rank, 4 * world.rank + 4.0)[:, None].repeat(1, 3)
    permutation = permutation_of(world.size)
    there = distributed.exchange_rows(own, permutation, world)
    back = distributed.exchange_rows(there, torch.argsort(permutation), world)
    rows = torch.full((world.rank + 1, 2), float(world.rank))
    tensors = {"same": torch.ones(3), "other": torch.tensor([1.0, world.rank])}
    with pytest.raises(RunFailed) as error:
        check_ranks_agree(tensors, world)
    return {
        "there": there, "back": back, "own": own, "told": str(error.value),
        "uneven": distributed.gather_uneven_rows(rows, world),
        "even": distributed.gather_rows(own[:1], world),
    }  # fmt: skip


def test_exchanged_rows_are_the_permuted_batch_and_come_back(ranks):
    joined = torch.cat([rank["there"] for rank in ranks])
    assert torch.equal(joined[:, 0].long(), permutation_of(len(ranks)))
    assert all(torch.equal(rank["back"], rank["own"]) for rank in ranks)


def test_gathered_rows_stand_in_the_order_of_ranks(ranks):
    for rank in ranks:
        assert rank["uneven"][:, 0].tolist() == [0, 1, 1, 2, 2, 2][: len(rank["uneven"])]
        assert rank["even"][:, 0].tolist() == [0, 4, 8][: len(ranks)]


def test_a_tensor_that_differs_between_ranks_is_named(ranks):
    assert all("on other:" in rank["told"] for rank in ranks)


def told_by_gloo(world: distributed.World, folder) -> list[str]:
    """What is said where gloo is sent to an interface that this machine does not have."""
    store, told = distributed.meet_all(world, f"file://{folder}/again"), []
    os.environ[distributed.IFNAME] = "nonsense0"
    try:
        distributed.Flags(world)
    except RunFailed as error:
        told.append(str(error))
    distributed.leave_group(store, world)
    try:
        distributed.connect(store, world, "gloo")
    except RunFailed as error:
        told.append(str(error))
    # The group that in_processes is to leave.
    del os.environ[distributed.IFNAME]
    distributed.connect(distributed.dist.PrefixStore("end", store), world, "gloo")
    return told


def test_processes_that_cannot_connect_name_the_interface(tmp_path):
    for told in in_processes(told_by_gloo, 2, tmp_path):
        assert len(told) == 2
        for sentence in told:
            assert sentence.startswith("the 2 processes have met, but cannot connect: ")
            assert sentence.endswith("others reach, here it is 'nonsense0'")
            assert "set GLOO_SOCKET_IFNAME" in sentence


@pytest.mark.parametrize("cause", [distributed.dist.DistStoreError, RuntimeError])
def test_who_cannot_connect_has_lost_a_process_only_where_its_store_is_gone(cause):
    with pytest.raises(RunFailed) as told, distributed.told_if_not_connected(distributed.ALONE):
        raise cause("gloo")
    assert distributed.is_lost_connection(told.value) == (cause is not RuntimeError)


def fetched(world, folder, url: str, sums: dict) -> int:
    """Pictures of a small CIFAR-10 that each process was told to download."""
    of_torch = torchvision.datasets.CIFAR10
    of_torch.url, of_torch.tgz_md5 = url, sums.pop("cifar.tar.gz")
    of_torch.meta = of_torch.meta | {"md5": sums["batches.meta"]}
    of_torch.train_list = [["data_batch_1", sums["data_batch_1"]]]
    of_torch.test_list = [["test_batch", sums["test_batch"]]]
    config = PretrainConfig(dataset="cifar10", data=str(folder), download=1)
    return len(splits_of(config, distributed.World(world.rank, world.size, 0, 1)).train)


def test_one_process_downloads_what_all_read(tmp_path):
    rows = {"data": torch.zeros(5, 3072, dtype=torch.uint8).numpy(), "labels": [*range(5)]}
    files = {"batches.meta": {"label_names": [*"abcdefghij"]}}
    files |= {"data_batch_1": rows, "test_batch": rows}
    sums, web = {}, tmp_path / "web"
    with tarfile.open(web.mkdir() or web / "cifar.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            (web / name).write_bytes(pickle.dumps(content))
            archive.add(web / name, f"cifar-10-batches-py/{name}")
    for path in web.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    with served(web) as server:
        url = f"{server.url}/cifar.tar.gz"
        assert in_processes(fetched, 3, tmp_path / "data", url, sums) == [5, 5, 5]
        assert len(server.asked) < 4  # torchvision asks twice, for the address and the file
