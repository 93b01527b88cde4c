"""A small copy of an adapter, to ship: in float16, updates of low rank as their factors, without the tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME

from reverie.errors import UserError
from reverie.hf.bases import check_name, load_base, loading
from reverie.hf.load import adapter_tensors, load, read_config
from reverie.hf.low_rank import factored, unfactored
from reverie.hf.save import replacing
from reverie.hf.sums import add_sums


def export_adapter(adapter: str | Path, out: str | Path) -> None:
    """Write what `reverie.hf.load` needs of an adapter. Its tokenizer is that of its base.

    Raises:
        UserError: it is not an adapter, or has weights beyond float16, or the system refuses to write.
    """
    adapter, out = Path(adapter), Path(out)
    check_name(str(adapter))
    with loading("the adapter", str(adapter)):
        saved, tensors = read_config(str(adapter)), adapter_tensors(str(adapter))
        if saved.weights != "adapter":
            raise UserError(f"{adapter} holds a whole model: only adapters are shipped small")
        load(adapter)  # raises for whatever does not fit
        base = load_base(str(saved.base_model), dtype=torch.float32).state_dict()
        tensors = unfactored(str(adapter), tensors, base)
    small = dict[str, Tensor]()
    for name, tensor in tensors.items():
        change = tensor.float() - base[name] if name in saved.trained and tensor.ndim == 2 else None
        small |= (None if change is None else factored(name, change)) or {name: tensor}
    small = {name: x.to(torch.float16).contiguous() for name, x in small.items()}
    for name, x in small.items():
        if not x.isfinite().all():
            raise UserError(f"{adapter} cannot be shipped in float16: {name} has numbers beyond it")
    with replacing(out) as finished:
        save_file(small, finished / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
        for name in (CONFIG_NAME, GENERATION_CONFIG_NAME):
            shutil.copyfile(adapter / name, finished / name)
        config = json.loads((finished / CONFIG_NAME).read_text())
        config.pop("auto_map", None)
        (finished / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        add_sums(finished)
