import contextlib
import ctypes
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.model_file import save
from diracnets.cli import main
from diracnets.deploy.c import load_c, write_c
from diracnets.deploy.c.compiled import FLAGS, compile_c, lacks_compiler, library
from diracnets.deploy.c.network import network_of
from diracnets.deploy.c.plan import plans, segment, two_buffers
from diracnets.deploy.export import export
from diracnets.deploy.integer import rounded_chain
from diracnets.errors import ExportError, UsageError
from diracnets.folding.fold import fold
from diracnets.models.build import build_model
from diracnets.models.integer import IntegerChain

needs_compiler = pytest.mark.skipif(bool(lacks_compiler()), reason=f"needs {lacks_compiler()}")
PLANS = ("mixed", "row-by-row", "in-place")
QUICK = ("-std=c99", "-O0", *FLAGS[2:])


def card_of_size(*size):
    return ModelCard(size, mean=(0.4, 0.5, 0.6, 0.2)[: size[0]], std=(0.2, 0.3, 0.25, 0.5)[: size[0]])


def pixels(card, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *card.input_size), np.uint8)


def normalized(card, images):
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (card.mean, card.std))
    return ((images / 255 - mean) / std).astype(np.float32)


def both(layers, card):
    """A chain of random weights, and the same in int8."""
    torch.manual_seed(0)
    chain = nn.Sequential(*layers).eval().requires_grad_(False)
    for module in chain:
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return chain, rounded_chain(chain, card, torch.from_numpy(normalized(card, pixels(card))))


def conv(before, after, size, **keywords):
    return [nn.Conv2d(before, after, size, **keywords), nn.ReLU()]


ODD = {
    "one layer": ((3, 5, 7), conv(3, 5, 3, padding=1)),
    "sizes 1 2 5 7": (
        (3, 19, 17),
        [*conv(3, 4, 1), *conv(4, 6, 2), *conv(6, 3, 5, padding=2), *conv(3, 5, 7, padding=(3, 1)), nn.MaxPool2d(2)],
    ),
    "strides and dilation": (
        (1, 23, 18),
        [*conv(1, 4, 3, stride=(2, 1)), *conv(4, 4, 3, padding=2, dilation=2), *conv(4, 6, (1, 3), stride=(3, 2))],
    ),
    "strides beyond the kernel": (
        (2, 17, 16),
        [*conv(2, 5, 1, stride=3), nn.MaxPool2d(1, 2), *conv(5, 3, 2, stride=3)],
    ),
    "groups": ((4, 9, 8), [*conv(4, 8, 3, groups=2, padding=1), *conv(8, 8, 3, groups=8), *conv(8, 20, 1, groups=4)]),
    "overlapping windows": (
        (3, 20, 15),
        [*conv(3, 6, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1), *conv(6, 4, 3), nn.AvgPool2d(3, 2)],
    ),
    "windows side by side": (
        (3, 20, 22),
        [
            nn.AvgPool2d(2),
            *conv(3, 4, 3, padding=1),
            nn.MaxPool2d((2, 3)),
            *conv(4, 6, 2),
            nn.AvgPool2d((2, 1), (3, 1)),
        ],
    ),
    "padding beyond the kernel": (
        (1, 6, 5),
        [*conv(1, 3, 1, padding=2), *conv(3, 4, (2, 3), padding=(4, 1)), *conv(4, 3, 1, padding=1, stride=2)],
    ),
    "kernels as tall as the map": ((2, 4, 6), [*conv(2, 18, 7, padding=3), *conv(18, 4, 3, dilation=2, padding=2)]),
    "linear after pixels": (
        (3, 8, 6),
        [*conv(3, 7, 3, stride=2), nn.Flatten(), nn.Linear(42, 21), nn.ReLU(), nn.Linear(21, 3)],
    ),
    "only linear": ((1, 3, 4), [nn.Flatten(), nn.Linear(12, 5)]),
    "no pooling, a map as output": ((3, 6, 6), [*conv(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3)]),
    "growing and shrinking": (
        (1, 8, 8),
        [*conv(1, 33, 3, padding=1), *conv(33, 2, 3, padding=1), *conv(2, 20, 3, padding=3), nn.AdaptiveAvgPool2d(1)],
    ),
}


@needs_compiler
@pytest.mark.parametrize("name", ODD)
def test_c_computes_what_the_chain_does_in_every_plan(name, tmp_path):
    size, layers = ODD[name]
    card = card_of_size(*size)
    images = pixels(card)
    for network in both(layers, card):
        wanted = network(torch.from_numpy(normalized(card, images))).flatten(1).numpy()
        for plan, from_pixels in zip(PLANS, (True, False, True), strict=True):
            path = tmp_path / "net.c"
            write_c(network, card, path, from_pixels=from_pixels, plan=plan)
            found = load_c(path, QUICK)(images if from_pixels else normalized(card, images))
            if isinstance(network, nn.Sequential):
                assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max(), plan
            else:
                assert (found == wanted).all(), plan


def folded(name):
    torch.manual_seed(0)
    return both(list(fold(build_model(name).eval())), card_of_size(3, 32, 32))


def built(folder, network, *, flags=QUICK, **keywords):
    """The program that classifies images, in the folder."""
    card = card_of_size(3, 32, 32)
    write_c(network, card, folder / "net.c", **keywords)
    compile_c([folder / "net.c", folder / "net.main.c"], folder / "net", flags)
    return folder / "net"


@pytest.mark.parametrize(("name", "most"), [("diracnet-10-1", 8_500), ("diracnet-28-1", 15_200)])
def test_the_memory_of_our_networks(name, most, tmp_path):
    _, integers = folded(name)
    card = card_of_size(3, 32, 32)
    write_c(integers, card, tmp_path / "net.c")
    stated = int(re.search(r"NET_RAM (\d+)", (tmp_path / "net.h").read_text())[1])
    assert stated <= most
    steps = network_of(integers, card).steps
    by_name = {plan.name: plan.size for plan in plans(steps)}
    assert by_name["in-place"] == 32 * 32 * 16 + 2 * 32 * 16  # one map and two rows
    assert two_buffers(steps) == 2 * 32 * 32 * 16


@needs_compiler
def test_the_stated_memory_is_all_that_there_is(tmp_path):
    write_c(folded("diracnet-10-0.5")[1], card_of_size(3, 32, 32), tmp_path / "net.c")
    compile_c([tmp_path / "net.c"], tmp_path / "net.o", [*QUICK, "-c"])
    if shutil.which("size") is None:
        pytest.skip("needs the program size of binutils")
    printed = subprocess.run(["size", "-A", tmp_path / "net.o"], capture_output=True, text=True, check=True).stdout
    sections = {
        words[0]: int(words[1])
        for line in printed.splitlines()
        if len(words := line.split()) == 3 and words[0][0] == "."
    }
    stated = int(re.search(r"NET_RAM (\d+)", (tmp_path / "net.h").read_text())[1])
    assert sections[".bss"] == stated
    assert sections.get(".data", 0) == 0
    undefined = subprocess.run(["nm", "-u", tmp_path / "net.o"], capture_output=True, text=True, check=True).stdout
    assert set(undefined.split()) - {"U"} <= {
        "memcpy",
        "memmove",
        "memset",
        "_GLOBAL_OFFSET_TABLE_",
        "__stack_chk_fail",
    }


def test_the_best_cuts_are_found():
    random = np.random.default_rng(0)
    for _ in range(30):
        size, layers = 24, []
        channels = int(random.integers(1, 5))
        first = channels
        while len(layers) < 7 and size > 3:
            after, kernel = int(random.integers(1, 20)), int(random.choice([1, 2, 3]))
            layers.append(nn.Conv2d(channels, after, kernel, padding=kernel // 2))
            size += 2 * (kernel // 2) - kernel + 1
            channels = after
            if random.random() < 0.3:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        steps = network_of(nn.Sequential(*layers), card_of_size(*[first], 24, 24)).steps
        best = min(
            max(segment(steps, a, b - 1).size for a, b in itertools.pairwise((0, *cuts, len(steps))))
            for many in range(len(steps))
            for cuts in itertools.combinations(range(1, len(steps)), many)
        )
        assert plans(steps)[0].size == best


@needs_compiler
def test_clean_of_undefined_behaviour(tmp_path):
    flags = [*QUICK, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    card = card_of_size(3, 32, 32)
    layers = [nn.Conv2d(3, 5, 3, 2, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(5, 8, 3), nn.AvgPool2d(2)]
    images = pixels(card, 2)
    for network in both([*layers, nn.Flatten(), nn.Linear(8 * 3 * 3, 4)], card):
        try:
            program = built(tmp_path, network, flags=flags)
        except ExportError as error:
            pytest.skip(f"the compiler has no sanitizers: {error}")
        given = images.transpose(0, 2, 3, 1).tobytes()
        done = subprocess.run([program, "-"], input=given, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert len(done.stdout) == 2 * 4 * (1 if isinstance(network, IntegerChain) else 4)


@needs_compiler
def test_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    _, integers = folded("diracnet-10-0.5")
    images = pixels(card_of_size(3, 32, 32), 2).transpose(0, 2, 3, 1).tobytes()
    outputs = [
        subprocess.run(
            [built(tmp_path, integers, weights_apart=apart), "-"], input=images, capture_output=True, cwd=tmp_path
        )
        for apart in (False, True)
    ]
    assert outputs[0].stdout == outputs[1].stdout
    weights = bytearray((tmp_path / "net.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "net.bin").write_bytes(weights)
    other = subprocess.run([tmp_path / "net", "-"], input=images, capture_output=True, cwd=tmp_path, check=False)
    assert (other.returncode, other.stderr) == (1, b"net.bin is missing or does not belong to this program\n")


@needs_compiler
def test_the_program_classifies_image_files(tmp_path):
    card = ModelCard((3, 4, 5), mean=(0.5,) * 3, std=(0.25,) * 3, classes=('the "red"', "grün", "a\\b??/", "*/"))
    chain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    chain[2].weight.data = torch.eye(4, 3)
    chain[2].bias.data = torch.tensor([0.0, 0, 0, -10])
    write_c(chain, card, tmp_path / "net.c")
    compile_c([tmp_path / "net.c", tmp_path / "net.main.c"], tmp_path / "net", QUICK)
    for index in range(3):
        image = np.zeros((4, 5, 3), np.uint8)
        image[..., index] = 200
        (tmp_path / f"{index}.ppm").write_bytes(b"P6\n# a comment\n5 4\n255\n" + image.tobytes())
    (tmp_path / "small.ppm").write_bytes(b"P6 4 4 255\n" + bytes(48))
    (tmp_path / "short.ppm").write_bytes(b"P6 5 4 255\n" + bytes(59))
    (tmp_path / "text.ppm").write_bytes(b"P3 5 4 255\n")
    files = ["0.ppm", "1.ppm", "2.ppm", "small.ppm", "short.ppm", "text.ppm", "none.ppm"]
    done = subprocess.run([tmp_path / "net", *files], capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stdout.decode() == '0.ppm: the "red"\n1.ppm: grün\n2.ppm: a\\b??/\n'
    assert done.stderr.decode().splitlines() == [
        "small.ppm is of another size than the network takes",
        "short.ppm ends too early",
        "text.ppm is no binary PPM (P6)",
        "none.ppm cannot be opened",
    ]


@needs_compiler
def test_images_may_come_row_by_row_and_be_broken_off(tmp_path):
    _, integers = folded("diracnet-10-0.5")
    card = card_of_size(3, 32, 32)
    write_c(integers, card, tmp_path / "net.c")
    code = library(tmp_path / "net.c", QUICK)
    image, other = (np.ascontiguousarray(each.transpose(1, 2, 0)) for each in pixels(card, 2))
    whole, streamed = np.zeros(10, np.int8), np.zeros(10, np.int8)
    code.net_run(image.ctypes.data_as(ctypes.c_void_p), whole.ctypes.data_as(ctypes.c_void_p))
    for row in other[:7]:
        code.net_row(row.ctypes.data_as(ctypes.c_void_p), streamed.ctypes.data_as(ctypes.c_void_p))
    code.net_start()
    done = [
        code.net_row(row.ctypes.data_as(ctypes.c_void_p), streamed.ctypes.data_as(ctypes.c_void_p)) for row in image
    ]
    assert done == [0] * 31 + [1]
    assert (streamed == whole).all()


def wasm(program, images):
    wasmtime = pytest.importorskip("wasmtime", reason="needs wasmtime")
    engine = wasmtime.Engine()
    linker, store, system = wasmtime.Linker(engine), wasmtime.Store(engine), wasmtime.WasiConfig()
    linker.define_wasi()
    system.argv = ["net", "-"]
    system.stdin_file, system.stdout_file = str(images), str(images.with_name("out"))
    store.set_wasi(system)
    instance = linker.instantiate(store, wasmtime.Module.from_file(engine, str(program)))
    with contextlib.suppress(wasmtime.ExitTrap):
        instance.exports(store)["_start"](store)
    return images.with_name("out").read_bytes()


OTHERS = {
    "32 bits": (["gcc", "-m32"], []),
    "clang": (["clang"], []),
    "Arm in qemu": (["arm-none-eabi-gcc", "-march=armv7-a", "-mthumb", "--specs=rdimon.specs"], ["qemu-arm"]),
    "WebAssembly": (["clang", "--target=wasm32-wasi", "--sysroot=/usr"], wasm),
}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_other_compilers_make_the_same_of_it(other, tmp_path, monkeypatch):
    command, runner = OTHERS[other]
    needed = [command[0], *(runner if isinstance(runner, list) else [])]
    if missing := [name for name in needed if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.setenv("CC", " ".join(command))
    images = pixels(card_of_size(3, 32, 32), 2)
    (tmp_path / "images").write_bytes(images.transpose(0, 2, 3, 1).tobytes())
    for network in folded("diracnet-10-0.5"):
        try:
            program = built(tmp_path, network, flags=FLAGS)
        except ExportError as error:
            pytest.skip(f"cannot link for {other}: {error}")
        if isinstance(runner, list):
            given = (tmp_path / "images").read_bytes()
            done = subprocess.run([*runner, program, "-"], input=given, capture_output=True, check=True).stdout
        else:
            done = runner(program, tmp_path / "images")
        wanted = network(torch.from_numpy(normalized(card_of_size(3, 32, 32), images)))
        if isinstance(network, IntegerChain):
            found = network.output.real(torch.from_numpy(np.frombuffer(done, np.int8).reshape(2, 10).copy()))
            assert torch.equal(found, wanted)
        else:
            assert np.abs(np.frombuffer(done, np.float32).reshape(2, 10) - wanted.numpy()).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("processor", "machine"), [("cortex-m3", "lm3s6965evb"), ("cortex-m7", "mps2-an500")])
def test_a_microcontroller_of_16_kib_makes_the_same_of_it(processor, machine, tmp_path):
    """On a board of QEMU, with flash and RAM where they are on one and the stack in what is left of the RAM."""
    if missing := [name for name in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    card = card_of_size(3, 32, 32)
    image = pixels(card, 1)
    _, integers = folded("diracnet-10-1")
    write_c(integers, card, tmp_path / "net.c")
    numbers = ",".join(map(str, image[0].transpose(1, 2, 0).ravel()))
    (tmp_path / "image.h").write_text(f"static const unsigned char image[] = {{{numbers}}};")
    board = [Path(__file__).parent / "files" / name for name in ("board.c", "board.ld")]
    command = [
        "arm-none-eabi-gcc",
        f"-mcpu={processor}",
        "-mthumb",
        "-std=c99",
        "-O2",
        "-nostartfiles",
        f"-I{tmp_path}",
    ]
    subprocess.run([*command, board[0], tmp_path / "net.c", "-T", board[1], "-o", tmp_path / "net.elf"], check=True)
    run = ["qemu-system-arm", "-M", machine, "-nographic", "-semihosting-config", "enable=on,target=native", "-kernel"]
    done = subprocess.run([*run, tmp_path / "net.elf"], capture_output=True, text=True, timeout=120, check=True)
    wanted = integers(torch.from_numpy(normalized(card, image)))[0]
    found = [int(word) for word in (done.stdout + done.stderr).split() if word.lstrip("-").isdigit()]
    assert torch.equal(integers.output.real(torch.tensor(found)), wanted)


def test_what_cannot_be_written_is_named(tmp_path):
    card = card_of_size(3, 8, 8)
    for layers, message in (
        ([nn.Conv2d(3, 4, 3), nn.GELU()], r"layer 1 \(GELU"),
        ([], "without layers"),
        ([nn.Conv2d(3, 2, (70_001, 1), padding=(35_000, 0))], "layer 0 is too large for C"),
    ):
        with pytest.raises(UsageError, match=message):
            write_c(nn.Sequential(*layers), card, tmp_path / "net.c")
    with pytest.raises(UsageError, match="no plan 'fast': choose of mixed, row-by-row, in-place"):
        write_c(nn.Sequential(nn.Conv2d(3, 4, 3)), card, tmp_path / "net.c", plan="fast")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="c takes chains, and this ResNet has branches"):
        export(build_model("resnet-20").eval(), "c", tmp_path / "net.c", card=card_of_size(3, 32, 32))


@needs_compiler
def test_export(tmp_path):
    card = card_of_size(3, 32, 32)
    for network, from_pixels in zip(folded("diracnet-10-0.5"), (True, False), strict=True):
        made = export(network, "c", tmp_path / "my net-1.c", from_pixels=from_pixels, card=card, force=True)
        names = {file.name for file in made.files} - {"my net-1.main.c"}
        assert names == {"my net-1.c", "my net-1.h", "my net-1.c.json"}
        assert len(made.files) == 3 + from_pixels
        assert made.notes.startswith("Static memory: ")
        assert made.images == 4
        assert made.difference <= (0 if isinstance(network, IntegerChain) else 1e-5)
    with pytest.raises(UsageError, match="onnx has no --plan"):
        export(network, "onnx", tmp_path / "net.onnx", plan="mixed", card=card)
    with pytest.raises(UsageError, match="C takes one image at a time, not 8"):
        export(network, "c", tmp_path / "net.c", batch=8, card=card)


@needs_compiler
def test_the_command_has_weights_apart_and_plans(tmp_path, capsys):
    _, integers = folded("diracnet-10-0.25")
    file, out = tmp_path / "net.safetensors", tmp_path / "net.c"
    save(integers, file, card=card_of_size(3, 32, 32))
    options = ["--to", "c", "--out", str(out), "--weights-apart", "--plan", "in-place"]
    assert main(["export", str(file), *options]) == 0
    said = capsys.readouterr().out
    assert "Plan of the activations: in-place" in said
    assert "largest difference 0.0e+00" in said  # it was run, with the weights loaded
    assert (tmp_path / "net.bin").stat().st_size > 4_000 > (tmp_path / "net.bin").stat().st_size // 2
    assert "net_load" in (tmp_path / "net.h").read_text()
    (tmp_path / "net.bin").write_bytes((tmp_path / "net.bin").read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"net\.bin does not hold the weights of"):
        load_c(out, QUICK)
    assert main(["export", str(file), "--to", "c", "--out", str(tmp_path / "b.c"), "--plan", "in-plase"]) == 2
    assert "did you mean in-place" in capsys.readouterr().err
    assert not (tmp_path / "b.c").exists()
