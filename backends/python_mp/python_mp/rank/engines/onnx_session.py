"""ONNX Runtime's session of one segment of a graph, whose weights lie in a file of their own."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
from onnxruntime import InferenceSession

from .onnx_graph import Segment

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def session(segment: Segment, folder: Path, threads: int) -> InferenceSession:
    """Maps the weights from the file in `folder`; what ONNX Runtime arranges anew for its products
    is memory of its own, and the file's pages are let go."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry(WEIGHTS_FOLDER, str(folder.resolve()))
    providers = ["CPUExecutionProvider"]
    return InferenceSession(segment.model.SerializeToString(), options, providers=providers)
