"""How closely networks agree that should compute the same, on real images.

    python benchmarks/agreement.py run RUN --data-dir DIR --out results/chain_agreement.json
    python benchmarks/agreement.py authors DIR --out results/authors_agreement.json

`run` compares a run's network with the chain in its model file on all test images of its data. `authors` compares
checkpoints that the paper's authors' program wrote (NAME.pt7) with the logits that it gave for some images (NAME.npz).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diracnets import Recipe, load, load_data
from diracnets.runtime.environment import circumstances


def logits(net: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([net(batch) for batch in images.split(500)])


def compare(mine: Tensor, theirs: Tensor) -> dict[str, object]:
    return {
        "images": len(mine),
        "same_prediction": float((mine.argmax(1) == theirs.argmax(1)).float().mean()),
        "largest_logit_difference": float((mine - theirs).abs().max()),
        "largest_logit": float(theirs.abs().max()),
    }


def of_run(run: Path, data_dir: Path | None) -> list[dict[str, object]]:
    recipe = Recipe.load(run / "recipe.toml")
    data = load_data(recipe.data.name, data_dir=data_dir, image_size=recipe.data.image_size)
    batches = list(data.val.batches(500))
    images, labels = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    net, chain = load(run / "last.pt"), load(run / "model.safetensors")
    seen, expected = logits(chain, images), logits(net, images)
    accuracy = float((seen.argmax(1) == labels).float().mean())
    return [
        {
            "network": recipe.model.name,
            "data": recipe.data.name,
            "accuracy_of_chain": accuracy,
            **compare(seen, expected),
        }
    ]


def of_authors(folder: Path) -> list[dict[str, object]]:
    rows = []
    for path in sorted(folder.glob("*.pt7")):
        recorded = np.load(path.with_suffix(".npz"))
        mine = logits(load(path), torch.from_numpy(recorded["inputs"]))
        rows.append({"checkpoint": path.name, **compare(mine, torch.from_numpy(recorded["logits"]))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "authors"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = of_run(arguments.folder, arguments.data_dir) if arguments.what == "run" else of_authors(arguments.folder)
    for row in rows:
        print(row)
    if arguments.out:
        arguments.out.write_text(json.dumps({"circumstances": circumstances(), "measured": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
