import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.load import load
from diracnets.artifacts.program import load_program
from diracnets.data.memory import MemoryImages
from diracnets.errors import FileError, UsageError
from diracnets.models.build import build_model
from diracnets.training import distill as distilling
from diracnets.training.distill import distill
from diracnets.training.interruption import Interrupted
from diracnets.training.loop import train
from diracnets.training.recipe import Recipe
from diracnets.training.safeguards import Safeguards
from diracnets.training.teacher import Teacher, distillation, load_teacher

pytestmark = pytest.mark.usefixtures("bare_runs")

SIZES = {"num_classes": 3, "in_channels": 1, "image_size": (8, 8)}
RECIPE = Recipe().replaced(
    model="diracnet-10-0.25", data="stripes", epochs=2, batch_size=16, lr=0.05, schedule="constant", precision="float32"
)

LONGER = RECIPE.replaced(epochs=8, lr=0.1, init="deep", recalibrate_bn=True)


def run(folder, data, recipe=RECIPE, **options):
    return train(recipe, run=folder, data=data, device="cpu", quiet=True, **options)


def pixels_of(images):
    """uint8 [N, 8, 8, 1]."""
    return torch.stack([torch.from_numpy(np.array(images.image(index))) for index in range(len(images))])[..., None]


class Bars(nn.Module):
    """Knows the classes of stripes."""

    def __init__(self, places=(0, 1, 2)):
        super().__init__()
        self.places = places
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return torch.arange(3.0).expand(len(images), 3)[:, list(self.places)]


class Linear(nn.Module):
    def __init__(self, after=None):
        super().__init__()
        self.fc, self.after = nn.Linear(64, 3), after or nn.Identity()

    def forward(self, images):
        return self.after(self.fc(images.flatten(1)))


def card(**changes):
    return replace(ModelCard((1, 8, 8), (0.3,), (0.2,), ("low", "middle", "high")), **changes)


def with_card(net, **changes):
    attach_card(net, card(**changes))
    return net


def test_answers_come_in_the_order_of_the_runs_classes(stripes):
    teacher = Teacher(with_card(Bars(), classes=("high", "low", "middle")), stripes, "bars")
    assert teacher(torch.zeros(1, 1, 8, 8)).tolist() == [[1.0, 2.0, 0.0]]


def test_a_teacher_of_more_classes_is_asked_for_those_of_the_run(stripes):
    bars = with_card(Bars(), classes=("high", "odd", "low", "middle"))
    bars.places = (0, 1, 2, 0)
    teacher = Teacher(bars, stripes, "bars")
    assert teacher(torch.zeros(1, 1, 8, 8)).tolist() == [[2.0, 0.0, 0.0]]
    assert "of its 4 classes it is asked for the 3 of the run" in str(teacher.summary(Bars(), stripes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_get_the_teachers_dtype_and_answers_that_of_the_images(stripes, dtype):
    assert load_teacher(Linear().to(dtype), stripes)(torch.zeros(2, 1, 8, 8)).dtype == torch.float32


def test_answers_of_coarse_numbers_may_lie_further_apart(stripes):
    def other_kernels(logits):  # of another batch: as far off as rounding to bfloat16 is
        return logits * (1.01 if len(logits) == 3 else 1.0)

    load_teacher(Linear(after=other_kernels).to(torch.bfloat16), stripes)
    with pytest.raises(UsageError, match="other logits for the same images"):
        load_teacher(Linear(after=other_kernels), stripes)


def test_what_a_teacher_costs_and_assumes_is_said_before(stripes):
    net = build_model("plain-10-0.25", **SIZES)
    lines = load_teacher(build_model("plain-10-0.25", **SIZES).eval(), stripes).summary(net, stripes)
    assert "its order" not in lines[0]
    assert "mean 0.3, std 0.2" in " ".join(lines)
    assert "a step computes 1.3 times as much" in lines[-1]


def test_images_get_the_teachers_normalization_and_size(stripes):
    bars = with_card(Bars(), mean=(0.5,), std=(0.1,), input_size=(1, 16, 16))
    teacher = Teacher(bars, stripes, "bars")
    pixels = torch.full((1, 1, 8, 8), 0.7)
    teacher((pixels - 0.3) / 0.2)
    assert bars.seen[-1].shape == (1, 1, 16, 16)
    torch.testing.assert_close(bars.seen[-1], torch.full((1, 1, 16, 16), (0.7 - 0.5) / 0.1))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (with_card(Bars(), classes=("cat", "dog", "fox")), "other classes .*cat.* than stripes"),
        (
            with_card(Bars(), input_size=(3, 8, 8), mean=(0,) * 3, std=(1,) * 3),
            "3 channels, but those of stripes have 1",
        ),
        (nn.Flatten(), r"gives \[2, 64\] for 2 images, but stripes has 3 classes"),
        (nn.Conv2d(3, 3, 1), "does not take a batch of 2 images of 1x8x8"),
        (
            nn.Sequential(
                nn.Flatten(), nn.Linear(64, 3).requires_grad_(False).apply(lambda m: m.bias.fill_(torch.nan))
            ),
            "NaN",
        ),
        (Linear(after=nn.Softmax(1)), "gives probabilities"),
        (Linear(after=lambda y: y / (y == 0)), "infinities or NaN"),  # of zeros alone it gives finite numbers
        (Linear(after=lambda y: (y,)), "gives a tuple, .* wrap it"),
        (Linear(after=lambda y: y.long()), "gives torch.int64"),
        (Linear(after=nn.functional.dropout), "other logits for the same images"),
        (Linear(after=nn.BatchNorm1d(3, track_running_stats=False)), "other logits for the same images"),
        (Linear().to("meta"), "no weights yet"),
        (Linear().state_dict(), "not a OrderedDict; load a state dict into its module"),
    ],
)
def test_a_teacher_that_does_not_suit_is_refused(stripes, net, words):
    with pytest.raises(UsageError, match=words):
        load_teacher(net, stripes)


def test_a_teacher_stays_in_evaluation_mode_and_the_given_module_as_it_was(stripes):
    net = build_model("wrn-10-0.25", **SIZES).train()
    teacher = load_teacher(net, stripes)
    assert net.training
    teacher.train()
    assert not any(module.training for module in teacher.modules())


SCRIPTS = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # users have such files nonetheless


@SCRIPTS
def test_programs_teach_as_the_module_does(stripes, tmp_path):
    net = build_model("wrn-10-0.25", **SIZES).eval()
    images = torch.randn(4, 1, 8, 8)
    torch.jit.save(torch.jit.trace(net, images), tmp_path / "script.pt")
    fixed = torch.export.export(net, (images,))
    torch.export.save(fixed, tmp_path / "fixed.pt2")
    dynamic = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(dynamic, tmp_path / "program.pt2")
    for name in ("script.pt", "program.pt2"):
        torch.testing.assert_close(load_teacher(tmp_path / name, stripes, trusted=True)(images), net(images).detach())
    with pytest.raises(UsageError, match="dynamic batch"):
        load_teacher(tmp_path / "fixed.pt2", stripes, trusted=True)


class Writes(nn.Module):
    """As TorchScript, it writes a file as soon as it is loaded."""

    def __init__(self, place: str):
        super().__init__()
        self.place = place

    @torch.jit.export
    def __getstate__(self):
        return self.place, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.place = state[0]
        self.training = state[1]
        torch.save(torch.ones(1), self.place)

    def forward(self, x: torch.Tensor):
        return x


@SCRIPTS
def test_a_program_is_not_loaded_unless_it_is_trusted(stripes, tmp_path):
    for folder in ("tried", "written"):
        (tmp_path / folder).mkdir()
    torch.jit.save(torch.jit.script(Writes(str(tmp_path / "written" / "x"))), tmp_path / "last.pt")
    (tmp_path / "written" / "x").unlink(missing_ok=True)
    for act in (
        lambda: load_teacher(tmp_path / "last.pt", stripes),
        lambda: run(tmp_path / "tried" / "run", stripes, teacher=tmp_path / "last.pt"),
    ):
        with pytest.raises(UsageError, match=r"last.pt is a TorchScript file: loading it can run any code.*--trust-t"):
            act()
    with pytest.raises(FileError, match=r"last.pt"):  # nor anywhere else, whatever its name says
        load(tmp_path / "last.pt")
    assert not (tmp_path / "written" / "x").exists()
    load_program(tmp_path / "last.pt", trusted=True)
    assert (tmp_path / "written" / "x").exists()  # why it has to be trusted


def test_a_damaged_program_is_a_file_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/code/__torch__.py", "class Net(Module):")
        archive.writestr("script/constants.pkl", b"no pickle")
    with pytest.raises(FileError, match=r"cannot load .*script.pt, a TorchScript file"):
        load_program(tmp_path / "script.pt", trusted=True)


def test_distillation_is_the_divergence_of_softened_probabilities():
    logits, targets = torch.randn(5, 3), torch.randn(5, 3)
    student, teacher = (each.double().div(2.0).softmax(1) for each in (logits, targets))
    expected = (teacher * (teacher / student).log()).sum(1).mean() * 4
    assert float(distillation(logits, targets, 2.0)) == pytest.approx(float(expected), rel=1e-5)


def test_a_run_learns_from_the_teacher_alone_at_weight_one(stripes, tmp_path):
    """Wrong labels, and a teacher that knows better: what is learned is the teacher's."""
    wrong = MemoryImages(
        pixels_of(stripes.train),
        (stripes.train.labels + 1) % 3,
        name="wrong",
        mean=[0.3],
        std=[0.2],
    )
    right = run(tmp_path / "teacher", stripes, LONGER)
    assert right.accuracy > 0.9
    told = run(
        tmp_path / "told",
        replace(stripes, train=wrong),
        LONGER.replaced(teacher_weight=1.0),
        teacher=right.net,
    )
    assert told.accuracy > 0.8
    misled = run(tmp_path / "misled", replace(stripes, train=wrong), LONGER)
    assert misled.accuracy < 0.3


def test_a_resumed_run_finds_its_teacher_and_ends_as_if_never_stopped(stripes, tmp_path, monkeypatch):
    run(tmp_path / "teacher", stripes, RECIPE.replaced(model="wrn-10-0.25", epochs=1))
    options = {"teacher": tmp_path / "teacher", "inherit": True}
    whole = run(tmp_path / "whole", stripes, **options)

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", stripes, **options, on_epoch=stop)
    record = json.loads((tmp_path / "part" / "run.json").read_text())
    assert record["start"].startswith("8 filters of")
    assert record["teacher"] == str(tmp_path / "teacher" / "best.pt")
    resumed = run(tmp_path / "part", stripes, resume=True)
    for name, tensor in whole.net.state_dict().items():
        assert resumed.net.state_dict()[name].equal(tensor), name


def test_a_run_does_not_go_on_with_another_teacher(stripes, tmp_path):
    run(tmp_path / "taught", stripes, teacher=build_model("plain-10-0.25", **SIZES).eval())
    with pytest.raises(UsageError, match="give that teacher again"):
        run(tmp_path / "taught", stripes, resume=True)
    with pytest.raises(UsageError, match="another teacher"):
        run(tmp_path / "taught", stripes, resume=True, teacher=build_model("plain-10-0.25", **SIZES).eval())
    run(tmp_path / "alone", stripes)
    with pytest.raises(UsageError, match="began without a teacher"):
        run(tmp_path / "alone", stripes, resume=True, teacher=Bars())


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({"teacher_weight": 0.5}, {}, "teacher_weight means something only with a teacher"),
        ({"temperature": 2.0}, {}, "temperature means"),
        ({}, {"inherit": True}, "inherit means"),
        ({}, {"inherit": True, "teacher": Bars()}, "no filter of Bars has the shape"),
        ({}, {"inherit": True, "teacher": Bars(), "start": Bars()}, "not both"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_written(stripes, tmp_path, settings, options, words):
    with pytest.raises(UsageError, match=words):
        run(tmp_path / "run", stripes, RECIPE.replaced(**settings), **options)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_filters_that_are_passed_on_keep_the_norms_that_were_drawn(stripes):
    teacher = Teacher(build_model("wrn-10-0.25", **SIZES), stripes, "wrn")
    net = build_model("diracnet-10-0.25", **SIZES)
    drawn = [block.conv.weight.flatten(1).norm(dim=1).clone() for group in net.groups for block in group]
    assert teacher.pass_on(net) == 8
    theirs = [
        module.weight for module in teacher.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    mine = [net.stem.conv.weight, *(block.conv.weight for group in net.groups for block in group)]
    for own, given in zip(mine, theirs, strict=True):
        similarity = nn.functional.cosine_similarity(own.flatten(1), given.flatten(1))
        torch.testing.assert_close(similarity, torch.ones_like(similarity))
    kept = [block.conv.weight.flatten(1).norm(dim=1) for group in net.groups for block in group]
    for before, after in zip(drawn, kept, strict=True):
        torch.testing.assert_close(before, after)


def test_distill_puts_teacher_and_chains_in_a_row(stripes, tmp_path):
    teacher = run(tmp_path / "teacher", stripes, RECIPE.replaced(model="wrn-10-0.25", epochs=3))
    folder = tmp_path / "distilled"
    options = {"run": folder, "data": stripes, "device": "cpu", "quiet": True, "say": lambda text: None}
    lines = distill(RECIPE, tmp_path / "teacher", **options)
    assert [line.what for line in lines][1:] == ["chain with teacher", "chain without teacher"]
    assert lines[0].accuracy == teacher.accuracy
    alone = run(tmp_path / "alone", stripes)
    assert lines[2].accuracy == alone.accuracy
    assert all(line.model_file.is_file() and line.fold_difference < 1e-9 for line in lines[1:])
    assert [row["accuracy"] for row in json.loads((folder / "distill.json").read_text())] == [
        line.accuracy for line in lines
    ]
    assert distill(RECIPE, tmp_path / "teacher", **options, resume=True) == lines
    with pytest.raises(UsageError, match="already holds a run"):
        distill(RECIPE, tmp_path / "teacher", **options)


def test_distill_judges_the_teacher_first_and_passes_every_option_on(stripes, tmp_path):
    folder, said = tmp_path / "distilled", []
    options = {"run": folder, "data": stripes, "device": "cpu", "quiet": True, "say": said.append}
    start = build_model(RECIPE.model.name, **SIZES)
    attach_card(start, card(architecture=start.config))
    net = build_model("plain-10-0.25", **SIZES).eval()
    with torch.no_grad():
        net.fc.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    distill(RECIPE.replaced(epochs=3), net, **options, start=start, safeguards=Safeguards(keep=2))
    assert "hardly more than guessing (33%)" in said[1]
    for name in ("with-teacher", "without-teacher"):
        assert json.loads((folder / name / "run.json").read_text())["start"] == "DiracNet"
        assert len(list((folder / name / "earlier").iterdir())) == 2


def test_a_bias_of_the_recipe_and_inherited_filters_are_told(stripes, tmp_path, capsys):
    recipe = RECIPE.replaced(epochs=1, init="carriers", bias=0.5)
    teacher = build_model("wrn-10-0.25", **SIZES).eval()
    train(recipe, run=tmp_path / "run", data=stripes, device="cpu", teacher=teacher, inherit=True)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "--bias None leaves it that of the carriers" in said
    assert "begins with 8 filters of" in said


def test_distill_makes_chains_alone(stripes, tmp_path):
    with pytest.raises(UsageError, match="has branches"):
        distill(RECIPE.replaced(model="wrn-10-0.25"), Bars(), run=tmp_path / "run", data=stripes, device="cpu")
    assert not (tmp_path / "run").exists()


def test_distill_goes_on_where_it_was_stopped(stripes, tmp_path, monkeypatch):
    folder = tmp_path / "distilled"
    options = {"run": folder, "data": stripes, "device": "cpu", "quiet": True, "say": lambda text: None}
    real = distilling.train

    def stopping(recipe, *, teacher, **rest):
        if teacher is None:
            raise Interrupted("stopped", 2)
        return real(recipe, teacher=teacher, **rest)

    monkeypatch.setattr(distilling, "train", stopping)
    teacher = build_model("plain-10-0.25", **SIZES).eval()
    with pytest.raises(Interrupted):
        distill(RECIPE, teacher, **options)
    monkeypatch.undo()
    before = (folder / "with-teacher" / "last.pt").stat().st_mtime_ns
    lines = distill(RECIPE, teacher, **options, resume=True)
    assert len(lines) == 3
    assert (folder / "with-teacher" / "last.pt").stat().st_mtime_ns == before
