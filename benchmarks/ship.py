"""Make the files of a trained network that ships with the package, or is downloaded by it, from a run.

    python benchmarks/ship.py RUN NAME --data-dir DIR
    python benchmarks/ship.py RUN NAME --data-dir DIR --url https://... --out FOLDER
    python benchmarks/ship.py INT8_MODEL_FILE NAME --data-dir DIR --commit COMMIT

Filters are rounded to float16; the scales, shifts and statistics of each channel stay float32. The rounded network is
evaluated on all held-out images. `src/diracnets/artifacts/weights/` gets NAME.json, which
`diracnets.artifacts.pretrained.Weights` is read from, and NAME.safetensors, which goes to --out if it is to be
downloaded. A model file of `diracnets quantize` ships as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diracnets import Recipe, evaluate, load, load_data
from diracnets.artifacts.card import TrainedOn, card_of
from diracnets.artifacts.pretrained import FOLDER, Weights
from diracnets.download import hash_of
from diracnets.errors import DiracNetsError, UsageError
from diracnets.files import written_whole
from diracnets.models.integer import IntegerChain
from diracnets.training.folder import RunFolder
from diracnets.training.interruption import command_to_resume
from diracnets.training.patience import out_of_patience
from diracnets.training.recipe import recipe_names


def rounded(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network, those of two or more axes in float16."""
    state = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    halves = {name: tensor.half() for name, tensor in state.items() if tensor.ndim > 1 and tensor.is_floating_point()}
    for name, half in halves.items():
        if not torch.isfinite(half).all():
            raise UsageError(f"{name} holds numbers beyond float16's range; such a network cannot be shipped")
    return state | halves


def nearest_recipe(recipe: Recipe) -> str:
    """A recipe of the package and what differs from it: 'demo, with model diracnet-28-0.5'."""
    names = {name: Recipe.load(name).differences(recipe) for name in recipe_names()}
    name = min(names, key=lambda each: len(names[each]))
    differing = [difference.partition(":")[0] for difference in names[name]]
    settings = recipe.settings()
    changes = [f"{field} {settings[field]}" for field in differing if field != "seed"]
    return f"{name}, with {', '.join(changes)}" if changes else name


def check_finished(run: Path, recipe: Recipe) -> None:
    """Raise `UsageError` unless the run has done all epochs of its recipe."""
    state = RunFolder(run).read_last(recipe).resume or {}
    done = state["epoch"] - 1
    if done < recipe.optimization.epochs and not out_of_patience(recipe.optimization, state["history"]):
        raise UsageError(
            f"the run in {run} is not finished, {done} of {recipe.optimization.epochs} epochs are done: resume it "
            f"first, by `{command_to_resume(run, None, 'auto', None)}`"
        )


def ship(
    run: Path,
    name: str,
    *,
    checkpoint: str = "last.pt",
    data_dir: Path | None = None,
    commit: str | None = None,
    license: str = "MIT",
    note: str = "",
    url: str | None = None,
    out: Path | None = None,
    folder: Path = FOLDER,
) -> Weights:
    """Write NAME.safetensors to `out` or `folder`, and NAME.json to `folder`, and give what is known of it."""
    if run.is_file():
        if url or out or checkpoint != "last.pt":
            raise UsageError("an int8 model file ships with the package: leave out --url, --out and --checkpoint")
        return ship_int8(run, name, data_dir=data_dir, commit=commit, license=license, note=note, folder=folder)
    if (url is None) != (out is None):
        raise UsageError("--url and --out belong together: where the file will be found, and where to put it now")
    recipe = Recipe.load(run / "recipe.toml")
    check_finished(run, recipe)
    net = load(run / checkpoint)
    card = card_of(net)
    if card is None or not hasattr(net, "config"):
        raise UsageError(f"{run / checkpoint} is no checkpoint of a run of diracnets")
    data = load_data(recipe.data.name, data_dir=data_dir, image_size=card.input_size[-1], download=False)
    if data.classes != card.classes:
        raise UsageError(f"{data_dir} has other classes than the run was trained on; choose its own data")
    state = rounded(net)
    net.load_state_dict(state)
    accuracy = evaluate(net, data.val).top1
    file = (out or folder) / f"{name}.safetensors"
    with written_whole(file) as part:
        save_file(state, part)
    known = {
        "weights": name,
        "accuracy": accuracy,
        "recipe": nearest_recipe(recipe),
        "license": license,
        "commit": commit or json.loads((run / "environment.json").read_text(encoding="utf-8"))[0]["commit"],
        "url": url,
        "note": note,
    }
    provenance = {key: value for key, value in known.items() if value}
    weights = Weights(
        name=name,
        card=dataclasses.replace(
            card, data=TrainedOn(data.name, len(data.train), len(data.val)), provenance=provenance
        ),
        accuracy=accuracy,
        license=license,
        sha256=hash_of(file, "sha256"),
        size=file.stat().st_size,
        url=url,
    )
    declare(weights, folder)
    before = card.provenance.get("accuracy")
    was = f", {before:.2%} in the run" if before is not None else ""
    print(f"{file}, {weights.size:,} bytes: {accuracy:.2%} of {len(data.val):,} images{was}")
    return weights


def ship_int8(
    file: Path, name: str, *, data_dir: Path | None, commit: str | None, license: str, note: str, folder: Path
) -> Weights:
    """Copy a quantized chain's model file to NAME.safetensors, and write NAME.json, both in `folder`."""
    chain = load(file)
    card = card_of(chain)
    if not isinstance(chain, IntegerChain) or card is None or card.data is None:
        raise UsageError(f"{file} holds no int8 chain of a run of diracnets")
    data = load_data(card.data.name, data_dir=data_dir, download=False)
    accuracy = evaluate(chain, data.val).top1
    known = {"weights": name, "accuracy": accuracy, "license": license, "commit": commit, "note": note}
    provenance = {**card.provenance, **{key: value for key, value in known.items() if value}}
    target = folder / f"{name}.safetensors"
    with written_whole(target) as part:
        shutil.copyfile(file, part)
    card = dataclasses.replace(card, data=TrainedOn(data.name, len(data.train), len(data.val)), provenance=provenance)
    size, sha256 = target.stat().st_size, hash_of(target, "sha256")
    weights = Weights(name, card, accuracy, license, sha256, size, folded=True, int8=True)
    declare(weights, folder)
    print(f"{target}, {size:,} bytes: {accuracy:.2%} of {len(data.val):,} images")
    return weights


def declare(weights: Weights, folder: Path) -> None:
    with written_whole(folder / f"{weights.name}.json") as part:
        part.write_text(json.dumps(weights.to_data(), indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="such as diracnet-28-1-cifar10")
    parser.add_argument("--checkpoint", default="last.pt", help="of the run; best.pt was chosen by the held-out images")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--commit", help="that the run was made with, where the run does not know it")
    parser.add_argument("--license", default="MIT")
    parser.add_argument("--note", default="", help="what else one should know before using it")
    parser.add_argument("--url", help="where the file will be found, if it is too large to ship")
    parser.add_argument("--out", type=Path, help="folder for the file, with --url")
    try:
        ship(**vars(parser.parse_args()))
    except DiracNetsError as error:
        parser.exit(1, f"ship.py: {error}\n")


if __name__ == "__main__":
    main()
