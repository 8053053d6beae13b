"""ONNX files: the graph in `NAME.onnx`, its weights in `NAME.onnx.data`, whatever their size.

In one file they could be no more than 2 GB, and whoever read the graph would have to read them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import ModelProto
from onnx.external_data_helper import load_external_data_for_model


def save(model: ModelProto | ir.Model, path: Path) -> None:
    """Writes both files. Tensors of a few numbers (shapes, scales) stay in the graph."""
    model = model if isinstance(model, ir.Model) else ir.from_proto(model)
    ir.save(model, path, external_data=f"{path.name}.data")


def graph(path: Path) -> ModelProto:
    """What `save` wrote, with references to the weights."""
    return onnx.load(path, load_external_data=False)


def with_weights(model: ModelProto, folder: Path) -> ModelProto:
    """The model or a part of it, once its weights are in it, too."""
    load_external_data_for_model(model, str(folder))
    return model


def copy(path: Path, to: Path) -> None:
    """Both files, of which a graph without weights has one."""
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copyfile(file, to.with_name(file.name.replace(path.name, to.name)))
