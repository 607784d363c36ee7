"""Weights from a local file into a new network: the option ``weights`` that every model has.

The file is safetensors, or what ``torch.save`` writes of a state dict (read with ``weights_only``, so no code in it
runs). Its keys are those of the model, or of torchvision's or timm's model of the same architecture. The head is made
anew where the number of classes differs. A problem is identified by the file's content, not by its path.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raybench.errors import UserError
from raybench.files import file_digest

OPTION = "weights"
HEAD = ("head.weight", "head.bias")
COUNTER = "num_batches_tracked"  # of batch norm; not used, and absent from old files
WRAPPERS = ("state_dict", "model", "model_state_dict")  # under which training scripts keep the state dict


def without_weights(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model as its function takes them."""
    return {key: value for key, value in options.items() if key != OPTION}


def load_weights(model: nn.Module, path: Path, name: str, published: str = "") -> bool:
    """Fill a new ``model`` (registered as ``name``) from the file; a model on the device ``meta`` is only checked.

    ``published``: see ``ModelEntry``. Returns whether the head was left as it was made, because the file's is for
    another number of classes. Raises ``UserError`` for a file that cannot be read or is of another architecture.
    """
    own = model.state_dict()
    tensors = _own_names(_read(path, file_digest(path)), own, path, name, published, getattr(model, "origin", {}))
    remade = any(tensors[key].shape != own[key].shape for key in HEAD)
    for key, value in own.items():
        if key in HEAD and remade:
            continue
        if key in tensors and tensors[key].shape != value.shape:
            hint = "use weights of this architecture and image size"
            if tensors[key].ndim == value.ndim == 4 and tensors[key].shape[1] == 3 != value.shape[1]:
                hint = "they are for RGB images, so load the images as RGB"
            raise UserError(
                f"weights in {path} must fit model {name}, got {key} of shape {list(tensors[key].shape)} for "
                f"{list(value.shape)}; {hint}"
            )
        if key in tensors and not value.is_meta:
            value.copy_(tensors[key])  # of the parameter itself: state dicts share storage
    return remade


@functools.lru_cache(maxsize=1)
def _read(path: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a file of this content (the last one stays: a problem's network is built many times)."""
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UserError(
            f"{path} must be a safetensors file or a state dict written by torch.save, got {reason}; convert it"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise UserError(f"{path} must hold named tensors only, got something else; save model.state_dict()")
    return {str(key).removeprefix("module."): value for key, value in content.items()}  # module.: of data parallelism


def _own_names(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    path: Path,
    name: str,
    published: str,
    origin: Mapping[str, str],
) -> dict[str, Tensor]:
    """The tensors under the model's own keys, whichever of its names the file uses."""
    needed = {key for key in own if not key.endswith(COUNTER)}
    layouts = [{key: key for key in own}, dict(origin)]
    if published:
        layouts.append(_published(published, own))
    for names in layouts:
        found = {names[key]: tensor for key, tensor in tensors.items() if key in names}
        if needed <= set(found) and all(key in names for key in tensors):
            return found
    missing, more = sorted(needed - set(tensors)), sorted(set(tensors) - set(own))
    told = f"none named {missing[0]}" if missing else f"also {more[0]}"
    raise UserError(
        f"weights in {path} must be of the architecture of model {name}, got {told} ({len(tensors)} tensors, the model "
        f"has {len(own)}); name the model that they are of"
    )


def _published(published: str, own: Mapping[str, Tensor]) -> dict[str, str]:
    """Key of torchvision's state dict -> key of ours, tensor by tensor in order (empty if they are not as many)."""
    from torchvision import models

    with torch.device("meta"):
        theirs = models.get_model(published, weights=None).state_dict()
    return dict(zip(theirs, own, strict=True)) if len(theirs) == len(own) else {}
