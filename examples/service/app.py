"""Deployed as a service: FastAPI and onnxruntime.

``MODEL=build/examples/digits.onnx uvicorn --app-dir examples/service app:app``, then POST ``{"images": [[...]]}`` to
``/classify``: 64 shades in 0..1 an image, by rows.
"""

from __future__ import annotations

import os
from typing import Annotated

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel, Field

Shade = Annotated[float, Field(ge=0, le=1)]
Image = Annotated[list[Shade], Field(min_length=64, max_length=64)]


class Asked(BaseModel):
    images: Annotated[list[Image], Field(min_length=1, max_length=1000)]


class Answer(BaseModel):
    digits: list[int]
    certainty: list[float]


app = FastAPI(title="Digits")
session = onnxruntime.InferenceSession(os.environ.get("MODEL", "build/examples/digits.onnx"))
input_name = session.get_inputs()[0].name


@app.post("/classify")
def classify(asked: Asked) -> Answer:
    """The digit in each image, and the share of the softmax that it has."""
    images = np.array(asked.images, np.float32).reshape(-1, 1, 8, 8)
    (logits,) = session.run(["output"], {input_name: images})
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return Answer(digits=logits.argmax(1).tolist(), certainty=shares.max(1).round(4).tolist())
