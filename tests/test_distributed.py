# SPDX-License-Identifier: Apache-2.0
"""Queries shared out to processes: two and three gloo processes give what one gives."""

from pathlib import Path

import pytest
import torch
from innerloop.distributed import my_share, over_queries
from processes import run_processes
from torch import distributed as dist


def work(rank: int, size: int, file: str, queries: int, result: str) -> None:
    import innerloop
    from innerloop.nn import NBFNet

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    try:
        torch.manual_seed(0)
        graph = innerloop.RelGraph(torch.randint(0, 30, (2, 100)), torch.randint(0, 3, (100,)), 30, 3).with_inverse()
        source, relation = torch.randint(0, 30, (queries,)), torch.randint(0, 6, (queries,))
        model = NBFNet(3, 8, 2)
        scores = over_queries(lambda h, r: model(graph, h, r), source, relation)
        with torch.no_grad():
            torch.testing.assert_close(scores, model(graph, source, relation))
        value, predecessor = over_queries(
            lambda s: (lambda x: (x.value, x.predecessor))(innerloop.bellman_ford(graph, s, predecessors=True)),
            source,
            dim=1,
        )
        expected = innerloop.bellman_ford(graph, source, predecessors=True)
        assert torch.equal(value, expected.value)
        assert torch.equal(predecessor, expected.predecessor)

        def fails(s):
            if rank == 1:
                raise ValueError("no such source")
            return s

        kind, text = (ValueError, "no such source") if rank == 1 else (RuntimeError, "process 1 of the group failed")
        with pytest.raises(kind, match=text):
            over_queries(fails, source)
        # Without a query a result may come out in another dtype and shape; with one it may not.
        empty = over_queries(lambda s: torch.stack([s, s], 1) if len(s) else torch.empty(0), source)
        assert torch.equal(empty, torch.stack([source, source], 1))
        with pytest.raises(RuntimeError, match="do not go with those of the others"):
            over_queries(lambda s: s.float() if rank == size - 1 else s, source)
        with pytest.raises((TypeError, RuntimeError), match="returned NoneType"):
            over_queries(lambda s: None if rank == size - 1 else s, source)
        with pytest.raises((ValueError, RuntimeError), match=r"queries have lengths \[2, 3\]"):
            over_queries(lambda s, t: s, *((torch.ones(2), torch.ones(3)) if rank == 0 else (source, source)))
        Path(f"{result}{rank}").touch()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("size", "queries"), [(2, 5), (3, 2)])
def test_processes_give_what_one_gives(size, queries, tmp_path):
    """(3, 2): one process has no query."""
    run_processes(work, size, str(tmp_path / "init"), queries, str(tmp_path / "done"))
    assert [(tmp_path / f"done{rank}").is_file() for rank in range(size)] == [True] * size


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'init'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_without_a_group():
    with pytest.raises(RuntimeError, match="is not initialised"):
        over_queries(lambda x: x, torch.ones(2))


@pytest.mark.usefixtures("alone")
def test_one_process_and_bad_queries():
    assert my_share(7) == slice(0, 7)
    assert torch.equal(over_queries(lambda x: 2 * x, torch.arange(3)), torch.tensor([0, 2, 4]))
    with pytest.raises(ValueError, match=r"queries have lengths \[2, 3\]"):
        over_queries(lambda x, y: x, torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"queries have lengths \[\]"):
        over_queries(lambda: torch.ones(1))
    with pytest.raises(ValueError, match=r"function returned shape \(\), expected 3 entries along dimension 0"):
        over_queries(lambda x: x.sum(), torch.ones(3))
