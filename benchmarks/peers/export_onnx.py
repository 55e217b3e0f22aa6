"""Exports a BERT cross-encoder to ONNX, in float32 and with int8 weights.

    python export_onnx.py CLASSIFIER FLOAT32_FOLDER INT8_FOLDER

Runs in infinity's environment, which has torch, transformers and ONNX. The int8 model uses the defaults of ONNX
Runtime's dynamic quantisation: int8 weights per tensor, activations quantised at run time.
"""

import shutil
import sys
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoTokenizer, BertForSequenceClassification

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OPSET = 17


def export(classifier: Path, folder: Path) -> Path:
    """Writes model.onnx, with dynamic batch size and length, and the files that it needs."""
    model = BertForSequenceClassification.from_pretrained(classifier, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    example = tokenizer(
        [("a query", "a passage"), ("a query", "another, longer passage")], padding=True, return_tensors="pt"
    )
    copy_files(classifier, folder)
    axes = {name: {0: "batch", 1: "length"} for name in _INPUTS}
    torch.onnx.export(
        model,
        tuple(example[name] for name in _INPUTS),
        str(folder / "model.onnx"),
        input_names=list(_INPUTS),
        output_names=["logits"],
        dynamic_axes=axes | {"logits": {0: "batch"}},
        opset_version=_OPSET,
        dynamo=False,
    )
    return folder / "model.onnx"


def copy_files(classifier: Path, folder: Path) -> None:
    """Copies configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in classifier.glob("*.json"):
        shutil.copy(path, folder)


def main() -> None:
    """Exports both models."""
    classifier, float32, int8 = map(Path, sys.argv[1:])
    model = export(classifier, float32)
    copy_files(classifier, int8)
    quantize_dynamic(model, int8 / "model.onnx", weight_type=QuantType.QInt8)


if __name__ == "__main__":
    main()
