"""From masks to speed: smaller models, sparse layers, sparse files, ONNX."""

from argprune.models.export.choose import Choice as Choice
from argprune.models.export.choose import apply_formats as apply_formats
from argprune.models.export.choose import choose_formats as choose_formats
from argprune.models.export.compressed import Size as Size
from argprune.models.export.compressed import load_compressed as load_compressed
from argprune.models.export.compressed import save_compressed as save_compressed
from argprune.models.export.inputs import example_inputs as example_inputs
from argprune.models.export.inputs import interleaved_seconds as interleaved_seconds
from argprune.models.export.inputs import largest_difference as largest_difference
from argprune.models.export.inputs import median_milliseconds as median_milliseconds
from argprune.models.export.inputs import read_logits as read_logits
from argprune.models.export.layers import FORMATS as FORMATS
from argprune.models.export.layers import SparseLinear as SparseLinear
from argprune.models.export.layers import Unsuitable as Unsuitable
from argprune.models.export.layers import sparse_layer as sparse_layer
from argprune.models.export.loading import load_shrunk as load_shrunk
from argprune.models.export.loading import save_configs as save_configs
from argprune.models.export.onnx import OnnxModel as OnnxModel
from argprune.models.export.onnx import export_onnx as export_onnx
from argprune.models.export.shrink import Shrunk as Shrunk
from argprune.models.export.shrink import shrink as shrink
from argprune.models.export.sparse import EXPORT as EXPORT
from argprune.models.export.sparse import load_sparse as load_sparse
from argprune.models.export.sparse import save_sparse as save_sparse
