# SPDX-License-Identifier: Apache-2.0
"""What every op promises about processes, threads, instruction sets and bad pointers."""

import importlib
import inspect
import itertools
import os
from pathlib import Path

import innerloop
import pytest
import torch
from cases import MULS, PAIRS, Record, gradients, make_case
from layers import Layer, make_layer
from processes import run_python
from tolerances import assert_close

# Registered op: where its tests are. A new op belongs here, and its calls in _calls() below.
TESTED = {
    "band_attention": "test_band_attention.py",
    "band_attention_backward": "test_band_attention.py",
    "bellman_ford": "test_bellman_ford.py",
    "closeness": "test_closeness.py",
    "edge_orbits": "test_node_orbits.py",
    "fan_sums": "test_motif_distributed.py",
    "graph_sums": "test_triangles.py",
    "infonce": "test_infonce.py",
    "infonce_backward": "test_infonce.py",
    "infonce_mean": "test_infonce.py",
    "match_count": "test_match.py",
    "match_list": "test_match.py",
    "match_tally": "test_match.py",
    "motif_grid": "test_motif_grid.py",
    "motif_sums": "test_motif_distributed.py",
    "nbfnet_layer": "test_nbfnet_layer.py",
    "nbfnet_layer_backward": "test_nbfnet_layer.py",
    "node_orbits": "test_node_orbits.py",
    "orbits_from_sums": "test_motif_distributed.py",
    "pool_kv": "test_pool_kv.py",
    "pool_kv_backward": "test_pool_kv.py",
    "relational_spmm": "test_relational_spmm.py",
    "relational_spmm_backward": "test_relational_spmm.py",
    "subgraph_attention": "test_subgraph_attention.py",
    "subgraph_attention_backward": "test_subgraph_attention.py",
    "triangles": "test_triangles.py",
}


def test_every_registered_op_is_tested():
    for module in ("innerloop.ops", "innerloop.ops._motif_distributed"):  # ops are registered when first used
        importlib.import_module(module)
    names = torch._C._dispatch_get_all_op_names()
    registered = {n.split("::")[1].split(".")[0] for n in names if n.startswith("innerloop::")}
    assert registered == set(TESTED)
    assert all((Path(__file__).parent / name).is_file() for name in TESTED.values())


SETUP = """
import torch
from cases import gradients, make_case
torch.manual_seed(0)
torch.set_num_threads(2)
case = make_case(V=50, E=4000, B=4, d=32, dtype=torch.float32)
graph = case.graph

def work():
    grads = gradients(lambda c: c.op("pna", "mul", graph), case)
    return [case.op("pna", "mul", graph), *grads.values()]

expected = work()  # in parallel, so OpenMP has started its threads
"""


def test_new_python_thread_uses_the_callers_thread_count():
    """OpenMP's own setting is per thread: a bare region would start more threads here."""
    run_python(
        SETUP
        + """
import os, threading
torch.set_num_threads(1)
counts, results = [], []

def target():
    before = len(os.listdir("/proc/self/task"))
    results.extend(work())
    counts.extend([before, len(os.listdir("/proc/self/task"))])

thread = threading.Thread(target=target)
thread.start()
thread.join()
assert counts[0] == counts[1], f"{counts[1] - counts[0]} threads were started"
assert all(map(torch.equal, results, expected))
"""
    )


def test_threads_at_the_same_time():
    """The GIL is released: four Python threads in the same graph give the same bits."""
    run_python(
        SETUP
        + """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    futures = [pool.submit(work) for _ in range(16)]
    assert all(all(map(torch.equal, f.result(), expected)) for f in futures)
"""
    )


def test_fork_after_a_parallel_call():
    """A bare parallel region hangs for ever in a forked child."""
    run_python(
        SETUP
        + """
import os
pid = os.fork()
if pid == 0:
    torch.set_num_threads(1)
    os._exit(0 if all(map(torch.equal, work(), expected)) else 3)
_, status = os.waitpid(pid, 0)
assert status == 0, status
""",
        timeout=60,
    )


def test_dataloader_workers():
    run_python(
        SETUP
        + """
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return case.op("sum", "mul", graph)

loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork")
for batch in loader:
    assert torch.equal(batch[0], case.op("sum", "mul", graph))
""",
        timeout=120,
    )


def _calls() -> dict[str, torch.Tensor]:
    """Forward and gradients of every public op in float32, the same in every process."""
    torch.manual_seed(0)
    results = {}
    for (sum, mul), (B, d) in zip(PAIRS, itertools.cycle([(3, 34), (1, 6), (2, 100)])):
        case = make_case(B=B, d=d, dtype=torch.float32, integers=sum == "pna")
        results[f"{sum} {mul}"] = case.op(sum, mul)
        for name, grad in gradients(lambda c, s=sum, m=mul: c.op(s, m), case).items():
            results[f"{sum} {mul} {name}"] = grad
    for mul, d, first in itertools.product(MULS, (6, 32), (False, True)):
        layer = make_layer(d=d, dtype=torch.float32, mul=mul, first=first)
        results[f"layer {mul} {d} {first}"] = layer.op()
        for name, grad in gradients(Layer.op, layer).items():
            results[f"layer {mul} {d} {first} {name}"] = grad
    case = make_case(V=40, E=160)
    for semiring, steps in itertools.product(("distance", "widest", "reliable", "ppr", "logsumexp"), (3, None)):
        if semiring == "logsumexp" and steps is None:
            continue
        weight = case.edge_weight.abs().float().clamp(max=1)
        result = innerloop.bellman_ford(case.graph, range(25), semiring, edge_weight=weight, steps=steps)
        results[f"bellman_ford {semiring} {steps}"] = result.value
    for D, mode in itertools.product((8, 40, 64, 111), (None, "mean", "max", "ldconv")):
        q, k, v = tensors = [torch.randn(2, 2, 130, D, requires_grad=True) for _ in range(3)]
        if mode is None:
            out = innerloop.band_attention(q, k, v, left=20, right=5)
        else:
            weight = torch.randn(5, D) / 8 if mode == "ldconv" else None
            out = innerloop.pooling_attention(
                q, k, v, radius=3, kernel=5, stride=4, mode=mode, weight_k=weight, weight_v=weight
            )
        grads = torch.autograd.grad(out, tensors, torch.full_like(out, 1 / D))
        results |= {f"attention {D} {mode} {i}": t.detach() for i, t in enumerate((out, *grads))}
    for D, name in itertools.product((5, 64), ("infonce", "ntxent", "siglip", "ckd")):
        tensors = [torch.randn(130, D, requires_grad=True) for _ in range(2)]
        options = {"log_scale": 0.5, "bias": -1.0} if name == "siglip" else {}
        loss = getattr(innerloop, name)(*tensors, **options)
        grads = torch.autograd.grad(loss, tensors, allow_unused=True)  # ckd's teacher has none
        results |= {f"{name} {D} {i}": t.detach() for i, t in enumerate((loss, *grads)) if t is not None}
    v, e, g = tensors = [torch.randn(2, 3, *shape, requires_grad=True) for shape in ((70, 16), (70,), (70,))]
    out = innerloop.subgraph_attention(v, e, g)
    grads = torch.autograd.grad(out, tensors, torch.full_like(out, 0.1))
    results |= {f"subgraph_attention {i}": t.detach() for i, t in enumerate((out, *grads))}
    graph = innerloop.Graph(torch.randint(60, (2, 500)), 60)
    results["closeness"] = innerloop.closeness(graph)
    results["closeness of a sample"] = innerloop.closeness(innerloop.Graph(torch.randint(300, (2, 500)), 300), 100)
    results["motif_grid"] = innerloop.motif_grid(graph, 20).x
    return results


@pytest.fixture(scope="module")
def here() -> dict[str, torch.Tensor]:
    return _calls()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree(isa, here, tmp_path):
    if isa not in innerloop.cpu_isas():
        pytest.skip(f"this machine or build has {', '.join(innerloop.cpu_isas())}")
    path = tmp_path / "results.pt"
    calls = inspect.getsource(_calls)
    chosen = run_python(
        "import innerloop, itertools, torch\nfrom cases import MULS, PAIRS, gradients, make_case\n"
        "from layers import Layer, make_layer\n"
        f"{calls}\ntorch.save(_calls(), {str(path)!r})\nprint(innerloop.cpu_isa())",
        INNERLOOP_CPU=isa,
    )
    assert chosen.strip() == isa
    there = torch.load(path)
    assert there.keys() == here.keys()
    for name, result in here.items():
        assert_close(there[name], result, op="between_isas")


def test_the_best_instruction_set_is_the_default():
    isas = list(innerloop.cpu_isas())
    assert isas[0] == "baseline"
    code = "import innerloop; print(innerloop.cpu_isa())"
    assert run_python(code, INNERLOOP_CPU="").strip() == isas[-1]


def test_unknown_instruction_set_is_an_error():
    code = "import innerloop; innerloop.cpu_isa()"
    with pytest.raises(AssertionError, match="INNERLOOP_CPU is 'sse9', expected one of baseline"):
        run_python(code, INNERLOOP_CPU="sse9")


FUNCTIONS = {
    "band_attention": lambda x: innerloop.band_attention(x, x * 1, x * 2, left=2, right=2),
    "pool_kv": lambda x: innerloop.pool_kv(x, x * 2, kernel=3, stride=2, mode="mean")[1],
    "infonce": lambda x: innerloop.infonce(x[0, 0], x[0, 1], symmetric=False, reduction="sum"),
    "infonce_mean": lambda x: innerloop.infonce(x[0, 0], x[0, 1]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_functional_gradients_are_right_or_an_error(name):
    """Dynamo says of a tensor inside torch.func.grad that it requires no gradient: that must not make zeros."""
    x = torch.randn(1, 2, 12, 4)

    def gradient(x):
        return torch.func.grad(lambda t: FUNCTIONS[name](t).square().sum())(x)

    torch._dynamo.reset()
    try:
        found = torch.compile(gradient, backend="aot_eager")(x)
    except (RuntimeError, NotImplementedError, torch._dynamo.exc.TorchDynamoException):  # in torch's words
        return
    assert_close(found, gradient(x))


BAD_ARGUMENTS = """
import innerloop, torch
from cases import gradients, make_case
from innerloop import _cpu
from layers import Layer, make_layer
from torch._subclasses.fake_tensor import FakeTensorMode

# Arguments of every kernel, as the package passes them.
calls = []
originals = {n: f for n, f in vars(_cpu).items() if callable(f) and n not in ("isa", "isas")}

def spy(name, f):
    def wrapper(*args):
        calls.append((name, f, args))
        return f(*args)
    return wrapper

for name, f in originals.items():
    setattr(_cpu, name, spy(name, f))
for sum in ("pna", "max"):
    case = make_case(d=8, dtype=torch.float32)
    gradients(lambda c: c.op(sum, "rotate"), case)
case.graph.drop(torch.tensor([1]))
for first in (False, True):
    gradients(Layer.op, make_layer(dtype=torch.float32, first=first))
innerloop.bellman_ford(case.graph, [1, 2, 3], edge_weight=torch.rand(40), predecessors=True)
q, k, v = (torch.randn(1, 2, 20, 4, requires_grad=True) for _ in range(3))
options = dict(key_valid=torch.rand(1, 20) > 0.1, global_index=torch.tensor([[1, 2]]))
innerloop.band_attention(q, k, v, left=2, right=2, residual=torch.randn(1, 2, 20, 4), **options).sum().backward()
weight = torch.randn(3, 4)
innerloop.pool_kv(k, v, kernel=3, stride=2, weight_k=weight, weight_v=weight)[0].sum().backward()
x = torch.randn(12, 4, requires_grad=True)
options = dict(negatives_mask="same_label", labels_q=torch.arange(12) // 2)
innerloop.infonce(x, x, normalize=True, **options).backward()
options = dict(negatives_mask="margin", tau_plus=0.1, normalize=True)
innerloop.infonce(x, x, **options).backward()
graph = innerloop.Graph(torch.tensor([[0, 1, 2, 0, 3], [1, 2, 3, 2, 4]]))
innerloop.closeness(graph, samples=2)
innerloop.motif_grid(graph, 2, edge_labels=torch.rand(5), centrality=torch.rand(5))
innerloop.triangles(graph), innerloop.triangles(graph, "edge")
innerloop.node_orbits(graph, 5), innerloop.edge_orbits(graph)
from innerloop.ops import _motif_distributed as steps
for by_edge in (False, True):
    sums = steps._motif_sums(graph.index, graph.adjacency, 0, 5, 4, by_edge)
    t = sums[:5].int()
    sums = torch.cat([sums[5:], steps._fan_sums(graph.index, graph.adjacency, t, 0, 5, by_edge)])
    steps._orbits_from_sums(graph.index, graph.adjacency, t, sums, 4, True, by_edge)
labels = dict(node_labels=torch.tensor([0, 1, 0, 1, 1]), pattern_node_labels=[0, -1])
labels |= dict(edge_labels=torch.arange(5), pattern_edge_labels=[0])
for output in ("count", "node_counts", "edge_counts", "list"):
    innerloop.match(graph, "edge", output=output, seeds=torch.tensor([0, 1]), **labels)
list(innerloop.match_batches(graph, "edge", size=1))
bias, valid = torch.randn(2, 4, requires_grad=True), torch.rand(1, 20) > 0.1
innerloop.subgraph_attention(q, q[..., 0], k[..., 0], bias, valid=valid).sum().backward()
innerloop.nn.NBFNet(3, dim=4, num_layers=2).explain(case.graph.with_inverse(), 0, 1, 2)
assert {name for name, _, _ in calls} == set(originals), "a kernel was not called"

fake = FakeTensorMode()
wrong = {
    "fake": lambda t: fake.from_tensor(t.clone()),
    # torch adds the offset to the null pointer, so the address of a fake view is not null
    "fake view": lambda t: fake.from_tensor(torch.cat([t, t])[len(t) :]),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "quarter": lambda t: t.to(torch.float8_e4m3fn),
    "integer": lambda t: t.to(torch.int16),
    "rank": lambda t: t.unsqueeze(-1),
    "short": lambda t: t[: len(t) // 2].clone(),
    "stride": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "list": lambda t: t.tolist(),
    "sparse": lambda t: t.to_sparse(),
}
free = {("match", 3), ("match", 10)}  # fewer matches to list, fewer roots: another request
accepted = []
for name, f, args in calls:
    for i, argument in enumerate(args):
        if not isinstance(argument, torch.Tensor):
            continue
        for what, change in wrong.items():
            if (what == "short" and (name, i) in free) or (what == "stride" and argument.numel() == 1):
                continue
            bad = change(argument.detach())
            try:
                f(*args[:i], bad, *args[i + 1 :])
            except (TypeError, ValueError, IndexError, RuntimeError, BufferError) as error:
                if what in ("integer", "rank", "short", "list") and "csr" not in name:
                    assert name.split("_")[0] in str(error) or "Graph" in str(error), str(error)
            else:
                accepted.append(f"{name}: argument {i} as {what}")
print("\\n".join(accepted))
"""


def test_kernels_refuse_bad_tensors():
    """Each tensor argument of each kernel, replaced by a wrong one: an error and no crash."""
    accepted = run_python(BAD_ARGUMENTS, timeout=120).split("\n")
    assert not [line for line in accepted if line], accepted


def test_kernels_refuse_bad_numbers():
    """Codes out of range."""
    case = make_case(d=8)
    with Record() as record:
        case.op("sum", "mul")
    ((args, _),) = record.of("relational_spmm")
    for bad in ((-1, 0), (99, 0), (0, -1), (0, 99)):
        with pytest.raises((ValueError, IndexError), match="relational_spmm"):
            torch.ops.innerloop.relational_spmm(*args[:-2], *bad)


def test_import_is_silent_and_starts_no_thread():
    out = run_python(
        "import os, torch; before = len(os.listdir('/proc/self/task'));"
        "import innerloop, innerloop.ops;"
        "assert len(os.listdir('/proc/self/task')) == before"
    )
    assert out == ""
    assert os.environ.get("INNERLOOP_CPU") in {None, *innerloop.cpu_isas()}
