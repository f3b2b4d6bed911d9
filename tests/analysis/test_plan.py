"""Plans: what is traced is what a real step does, and times and volumes follow the formulas."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy

from diracnets.analysis.plan import (
    Job,
    allreduce_seconds,
    compute_seconds,
    counts_up_to,
    memory_parts,
    plan,
    stops_scaling,
    what_would_help,
)
from diracnets.analysis.plan_devices import DEVICES, given_cpu, known_device, measured_cpu
from diracnets.analysis.plan_step import traced_step
from diracnets.cli import main
from diracnets.errors import UsageError
from diracnets.evaluation.info import describe
from diracnets.models.build import build_model, on_meta
from diracnets.training.optimizer import make_optimizer
from diracnets.training.settings import OptimizationSettings

SGD = OptimizationSettings()


@pytest.fixture(scope="module")
def step():
    return traced_step(on_meta({"name": "diracnet-16-1"}), SGD, "bfloat16")


def job(step, **changes):
    given = {"precision": "bfloat16", "images": 1e6, "epochs": 10, "batch_size": 4096}
    return Job(**{"step": step, "device": known_device("h100"), **given, **changes})


def really_saved(net, images, precision):
    """Bytes that a step on the CPU keeps for its backward pass, by torch's own hooks."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, labels = torch.randn(images, *net.input_size), torch.zeros(images, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = net(x)
        loss = cross_entropy(logits.float(), labels)
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    loss.backward()
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize(
    ("name", "optimizer", "precision"),
    [
        ("diracnet-10-0.25", "sgd", "float32"),
        ("diracnet-10-0.25", "muon", "bfloat16"),
        ("wrn-16-0.25", "sgd", "float32"),
        ("repvgg-10-0.25", "sgd", "float32"),
    ],
)
def test_memory_is_that_of_a_real_step(name, optimizer, precision):
    optimization = OptimizationSettings(optimizer=optimizer)
    traced = traced_step(on_meta({"name": name}), optimization, precision)
    net = build_model(name).train()
    real = make_optimizer(optimization, net)
    assert traced.saved(5) == really_saved(net, 5, precision)  # 5 images, while 2 and 4 are traced
    real.step()
    parameters = list(net.parameters())
    assert traced.parameters == sum(each.numel() for each in parameters)
    assert traced.gradient_bytes == sum(each.grad.nbytes for each in parameters)
    assert traced.weight_bytes == sum(each.nbytes for each in [*parameters, *net.buffers()])
    state = [value for each in real.state.values() for value in each.values() if isinstance(value, torch.Tensor)]
    assert traced.optimizer_bytes == sum(each.nbytes for each in state)
    assert sum(rows * size for unit in traced.units for rows, size in unit) == 4 * traced.parameters
    kept = sum(each.chunk(8)[0].nbytes for each in parameters)  # as FSDP2 divides them
    assert 4 * traced.parameters * traced.kept(8) == kept
    assert bool(traced.turned) == (optimizer == "muon")


def test_flops_are_the_macs_of_info():
    net = on_meta({"name": "plain-16-1"})
    traced = traced_step(net, SGD, "float32")
    layers = describe(build_model("plain-16-1")).layers
    products = (
        sum(layer.multiply_adds for layer in layers if "Conv" in layer.type or layer.type == "Linear") - 10
    )  # bias
    forward = sum(operation.flops(1) for operation in traced.forward)
    assert forward == 2 * products
    # backward has the gradients of the filters and of the inputs, but not of the images
    assert sum(operation.flops(1) for operation in traced.backward) == 4 * products - 2 * layers[0].multiply_adds


def test_time_follows_the_slower_of_rate_and_bandwidth(step):
    device = replace(known_device("h100"), computing=1.0, moving=1.0, operation=0.0)
    one = job(step, device=device)
    flops = sum(operation.flops(64) for operation in step.forward)
    moved = sum(operation.moved(64) for operation in step.forward)
    endless = replace(device, bandwidth=math.inf), replace(device, flops={"bfloat16": math.inf})
    times = [compute_seconds(replace(one, device=each), step.forward, 64) for each in endless]
    assert times == pytest.approx([flops / 989.4e12, moved / 3350e9])
    ridge = replace(one, device=replace(device, flops={"bfloat16": 20e12}))  # some wait for memory, some compute
    by_hand = sum(max(each.flops(64) / 20e12, each.moved(64) / 3350e9) for each in step.forward)
    assert max(flops / 20e12, moved / 3350e9) < by_hand
    assert compute_seconds(ridge, step.forward, 64) == pytest.approx(by_hand)
    slow = replace(one, device=replace(device, operation=1.0))
    assert compute_seconds(slow, step.forward, 64) == len(step.forward)


def test_allreduce_by_hand(step):
    device = replace(known_device("h100"), linking=1.0, hop=(0.0, 0.0))
    one = job(step, device=device)
    assert allreduce_seconds(one, 1, 1e9) == 0
    assert allreduce_seconds(one, 8, 1e9) == pytest.approx(2 * 7 / 8 * 1e9 / 450e9)
    between = 2 * 3 / 4 * (1e9 / 8) / 50e9
    assert allreduce_seconds(one, 32, 1e9) == pytest.approx(2 * 7 / 8 * 1e9 / 450e9 + between)
    far = job(step, device=replace(device, hop=(0.0, 1.0)))
    assert allreduce_seconds(far, 8 * 1024, 1.0) == pytest.approx(2 * 10)  # a tree, not 2 * 1023 hops of a ring


def test_more_devices_are_faster_and_less_efficient(step):
    one = job(step, batch_size=65536)
    rows = [plan(one, 2**exponent) for exponent in range(10)]
    assert rows[0].efficiency == 1
    assert rows[0].exposed == 0
    assert all(later.efficiency <= earlier.efficiency for earlier, later in pairwise(rows))
    assert all(sum(a.memory.values()) > sum(b.memory.values()) for a, b in pairwise(rows[:6]))
    assert rows[3].images_per_second > rows[0].images_per_second
    assert all(row.exposed <= row.communication for row in rows)
    assert rows[3].run == pytest.approx(10 * math.ceil(1e6 / 65536) * rows[3].step)


def test_sharding_accumulating_and_averaging(step):
    plain = memory_parts(job(step), 8, 4096)
    sharded = memory_parts(job(step, shard=True), 8, 4096)
    for part in ("gradients", "optimizer states"):
        assert sharded[part] == plain[part] * step.kept(8)
    assert sharded["weights"] == (plain["weights"] - step.buffer_bytes) * step.kept(8) + step.buffer_bytes
    assert 1 / 8 < step.kept(8) < 0.127  # of ten classes, a device has two
    assert step.kept(4096) > 16 / 4096  # no less than one row of each parameter
    parts = memory_parts(job(step, accumulate=4), 8, 4096)
    assert parts["saved activations"] == step.saved(128)
    assert memory_parts(job(step, averages=1), 8, 4096)["averages"] == step.weight_bytes
    assert plan(job(step, shard=True), 8).communication > plan(job(step), 8).communication
    parted = plan(job(step, shard=True, accumulate=4), 8), plan(job(step, shard=True), 8)
    assert parted[0].communication == pytest.approx(4 * parted[1].communication)
    muon = traced_step(on_meta({"name": "diracnet-16-1"}), OptimizationSettings(optimizer="muon"), "bfloat16")
    assert plan(job(muon, shard=True), 8).exposed > plan(job(step, shard=True), 8).exposed
    assert plan(job(step, sync_bn=True), 8).exposed > plan(job(step), 8).exposed


def test_where_scaling_stops(step):
    useful, stop = stops_scaling(job(step, batch_size=4096))
    assert stop.devices == 2 * useful
    assert "efficiency below 50%" in stop.limits
    assert plan(job(step), useful).efficiency >= 0.5
    few, stop = stops_scaling(job(step, batch_size=None, batch_per_device=1024, critical_batch=8192))
    assert (few, stop.limits) == (8, ("batch above 8,192",))
    assert "less than 2 images for each device" in plan(job(step, batch_size=8), 8).limits
    assert "batch above all 100 images" in plan(job(step, images=100.0), 8).limits
    assert plan(job(step, images=100.0), 8).epoch == plan(job(step, images=4096.0), 8).epoch
    assert stops_scaling(job(step, batch_size=None, batch_per_device=64, critical_batch=10**9), 4096) == (4096, None)


def test_what_would_help_fits(step):
    tight = job(step, device=replace(known_device("h100"), memory=1.2e9, reserved=1e9))
    found = plan(tight, 2)
    assert "does not fit into memory" in found.limits
    (accumulate, smaller) = what_would_help(tight, 2, found)
    parts, batch = int(accumulate.split()[1]), int(smaller.split()[1])
    assert sum(memory_parts(replace(tight, accumulate=parts), 2, 4096).values()) <= 1.2e9
    assert sum(memory_parts(replace(tight, accumulate=parts // 2), 2, 4096).values()) > 1.2e9
    assert sum(memory_parts(tight, 2, batch).values()) <= 1.2e9 < sum(memory_parts(tight, 2, 2 * batch).values())
    assert what_would_help(job(step), 2, plan(job(step), 2)) == []


def test_devices():
    assert all(device.flops["bfloat16"] > device.flops["float32"] for device in DEVICES.values())
    with pytest.raises(UsageError, match="did you mean h100"):
        known_device("h10O")
    with pytest.raises(UsageError, match="above 0"):
        given_cpu(0.0, 10.0)
    assert counts_up_to(12) == [1, 2, 4, 8, 12]
    ticks = iter(range(10**6))
    cpu = measured_cpu(clock=lambda: float(next(ticks)))  # every call takes a second
    assert cpu.flops["float32"] == 2 * 768**3
    assert cpu.bandwidth == 2 * 4 * 2**24


def test_job_refuses(step):
    for wrong, words in (
        ({"precision": "float32", "device": replace(known_device("h100"), flops={"bfloat16": 1.0})}, "no peak rate"),
        ({"batch_per_device": 4}, "not both"),
        ({"images": 0.0}, "images is 0.0"),
        ({"accumulate": 0}, "accumulate is 0"),
    ):
        with pytest.raises(UsageError, match=words):
            job(step, **wrong)


def test_command(capsys):
    words = ["plan", "diracnet-10-0.25", "--data", "cifar10", "--devices", "2", "--device", "h200"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "5,118 parameters" in printed
    assert "Scaling stops at 1 device: with 2" in printed
    rows = printed[printed.index("limits") :].splitlines()[2:]
    counts = [int(row.split()[0]) for row in rows[: rows.index("")]]
    assert counts == [2**exponent for exponent in range(9)]  # 256 devices have half an image each
    assert main(["plan", "diracnet-10-0.25", "--images", "5e9", "--devices", "4096", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["images"] == 5e9
    assert data["plan"]["devices"] == 4096
    assert data["decoding_cores"] == math.ceil(data["plan"]["images_per_second"] / 176)
    assert [row["devices"] for row in data["table"]] == [2**exponent for exponent in range(13)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "imagnet"], "did you mean imagenet"),
        (["--device", "cpu"], "--measure"),
        (["--measure"], "are for --device cpu"),
        (["--devices", "0"], "devices is 0"),
        (["--images", "0"], "--images is 0, but must be a number from 1"),
        (["--image-size", "0"], "--image-size is 0"),
        (["--classes", "0"], "--classes is 0"),
        (["--decoded", "nan"], "--decoded is nan"),
        (["--batch-size", "8", "--batch-per-device", "8"], "not both"),
    ],
)
def test_command_refuses(words, message, capsys):
    assert main(["plan", "diracnet-10-0.25", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
