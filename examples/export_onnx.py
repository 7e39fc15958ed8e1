"""Write a loss as a graph of ONNX, for batches of any size, and run it with onnxruntime."""

from pathlib import Path

import ndonnx as ndx
import numpy as np
import onnxruntime

import array_api_losses as xpl

distance = ndx.argument(shape=("N",), dtype=ndx.float32)
label = ndx.argument(shape=("N",), dtype=ndx.int64)
loss, gradient = xpl.value_and_grad(xpl.hinge_embedding_loss)(distance, label, margin=1.0)
graph = ndx.build({"distance": distance, "label": label}, {"loss": loss, "gradient": gradient})
Path("loss.onnx").write_bytes(graph.SerializeToString())

session = onnxruntime.InferenceSession("loss.onnx")
batch = {"distance": np.asarray([1.5, 0.25, 3.0], "float32"), "label": np.asarray([1, -1, -1])}
value, slope = session.run(None, batch)
assert value == xpl.hinge_embedding_loss(batch["distance"], batch["label"])
print("loss", value, "gradient", slope)
