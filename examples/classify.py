"""Deployed in Python: onnxruntime alone, without PyTorch. ``python examples/classify.py MODEL.onnx FOLDER``"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

model, folder = Path(sys.argv[1]), Path(sys.argv[2])
digits = np.load(folder / "digits.npz")
session = onnxruntime.InferenceSession(model)
(logits,) = session.run(["output"], {session.get_inputs()[0].name: digits["x_test"]})
right = int((logits.argmax(1) == digits["y_test"]).sum())
print(f"{right} of {len(logits)} test digits right")
