"""A .tflite file, put together tensor by tensor and operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_TYPES = {"float32": "FLOAT32", "int8": "INT8", "uint8": "UINT8", "int32": "INT32"}


class TFLiteWriter:
    """The tensors and operators of one network, to be written as a .tflite file.

    Tensors are known by the numbers that `tensor` gives out. A tensor that holds data is a constant.
    """

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated

        self.schema: Any = schema_py_generated
        self._buffers = [self.schema.BufferT()]  # the first buffer is the empty one, by the format
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[str, Any] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        data: npt.NDArray[Any] | None = None,
        scale: npt.ArrayLike | None = None,
        zero_point: int = 0,
        axis: int = 0,
    ) -> int:
        """Add a tensor.

        Args:
            name: of the tensor, by which tools show it.
            shape: of the tensor; nothing for a single number.
            dtype: "float32", "int8", "uint8" or "int32".
            data: what it holds, if it is a constant, in that shape.
            scale: what one step of an integer stands for, one number or one for each index along `axis`.
            zero_point: the integer that stands for zero.
            axis: along which the scales differ.

        Returns:
            The number of the tensor.
        """
        tensor = self.schema.TensorT()
        tensor.name, tensor.hasRank = name, True
        tensor.shape = np.array(shape, np.int32)
        tensor.type = getattr(self.schema.TensorType, _TYPES[dtype])
        if data is not None:
            tensor.buffer = self._buffer(np.ascontiguousarray(data, np.dtype(dtype).newbyteorder("<")).tobytes())
        if scale is not None:
            scales = np.array(scale, np.float32).reshape(-1)
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = scales
            tensor.quantization.zeroPoint = np.full(scales.shape, zero_point, np.int64)
            tensor.quantization.quantizedDimension = axis
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def operator(
        self, code: str, inputs: Sequence[int], output: int, options: str = "", version: int = 1, **values: object
    ) -> None:
        """Add an operator, which runs after those added before.

        Args:
            code: of the operator, such as "CONV_2D".
            inputs: the tensors that it takes, in the operator's order.
            output: the tensor that it makes.
            options: the table that its attributes are in, such as "Conv2DOptions", if there are any.
            version: of the operator: the lowest that knows all that is asked of it.
            values: the attributes.
        """
        builtin = getattr(self.schema.BuiltinOperator, code)
        if code not in self._codes:
            self._codes[code] = self.schema.OperatorCodeT()
            self._codes[code].builtinCode, self._codes[code].deprecatedBuiltinCode = builtin, min(builtin, 127)
        self._codes[code].version = max(version, self._codes[code].version)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = list(self._codes).index(code)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if options:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, options + "T")()
            for key, value in values.items():
                if not hasattr(operator.builtinOptions, key):
                    raise AttributeError(f"{options} has no {key}")
                setattr(operator.builtinOptions, key, value)
        self._operators.append(operator)

    def content(self, source: int, result: int, description: str, metadata: dict[str, bytes]) -> bytes:
        """The file.

        Args:
            source: the tensor that the network takes.
            result: the tensor that it makes.
            description: one line for whoever looks into the file.
            metadata: what else is to be kept in the file, by name.
        """
        import flatbuffers

        class Builder(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers has no types
            def StartVector(self, size: int, many: int, alignment: int) -> Any:  # noqa: ANN401
                # The format wants weights at multiples of 16, which the generated code does not see to.
                return super().StartVector(size, many, 16 if size == 1 else alignment)

        graph = self.schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", self._tensors, self._operators
        graph.inputs, graph.outputs = np.array([source], np.int32), np.array([result], np.int32)
        signature = self.schema.SignatureDefT()
        signature.signatureKey = "serving_default"
        signature.inputs, signature.outputs = [self._named(source)], [self._named(result)]
        model = self.schema.ModelT()
        model.version, model.description = 3, description
        model.metadata = [self._metadata(name, data) for name, data in metadata.items()]
        model.operatorCodes, model.subgraphs, model.signatureDefs = list(self._codes.values()), [graph], [signature]
        model.buffers = self._buffers
        builder = Builder(1024 + sum(0 if part.data is None else len(part.data) + 256 for part in self._buffers))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _buffer(self, data: bytes) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def _metadata(self, name: str, data: bytes) -> Any:  # noqa: ANN401
        entry = self.schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(data)
        return entry

    def _named(self, tensor: int) -> Any:  # noqa: ANN401
        entry = self.schema.TensorMapT()
        entry.name, entry.tensorIndex = self._tensors[tensor].name, tensor
        return entry


def metadata_of(path: Path, name: str) -> bytes | None:
    """What a .tflite file keeps under a name, None where there is nothing.

    Raises:
        ValueError: it is not a .tflite file.
    """
    from ai_edge_litert import schema_py_generated

    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise ValueError("it is not a .tflite file")
    model = schema_py_generated.Model.GetRootAs(content)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == name.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy())
    return None
