"""Networks as ONNX files: what onnxruntime makes of them is read as any other network's outputs are."""

import json

import numpy as np
import pytest
import torch
from networks import GRID, SIZE, N, inputs, near, plain, small
from tiny import noise
from typer.testing import CliRunner

import meal_gpu
from meal_gpu import cli
from meal_gpu.data.pixels import normalise
from meal_gpu.errors import InputError
from meal_gpu.library.query import query

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
WEIGHTS = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)


def write(file, shape=("batch", 3, "height", "width"), dtype=np.float32, outputs=("logits", "maps"), second=None):
    """A convolution of stride 4: logits ``[B, 4, h, w]``, and their absolute values as maps."""
    from onnx import TensorProto, helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Conv", ["image", "weight"], ["logits"], strides=[4, 4], pads=[1, 1, 1, 1]),
             helper.make_node("Abs", ["logits"], ["maps"])]
    given = [helper.make_tensor_value_info("image", kind, shape)]
    if second:
        given.append(helper.make_tensor_value_info(second, TensorProto.FLOAT, [1]))
    made = [helper.make_tensor_value_info(name, kind, [shape[0], 4, None, None]) for name in outputs]
    graph = helper.make_graph(nodes, "net", given, made, [numpy_helper.from_array(WEIGHTS.astype(dtype), "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, file)
    return file


def same(x):
    return torch.nn.functional.conv2d(x, torch.from_numpy(WEIGHTS), stride=4, padding=1)


@pytest.mark.parametrize("shape", [("batch", 3, "height", "width"), (3, 3, *SIZE), (1, 3, *SIZE)],
                         ids=["dynamic", "batches of 3", "single images"])
def test_any_batch_that_a_file_takes(tmp_path, shape):
    network = meal_gpu.Onnx(write(tmp_path / "net.onnx", shape), "logits")
    answer = query(network, inputs(), GRID, 5, strategy="entropy", batch_size=2, progress=False)
    expected, _ = plain(same, inputs(), SIZE, GRID)
    assert near(answer.scores, expected)
    assert answer.ids.tolist() == torch.argsort(expected, descending=True, stable=True)[:5].tolist()


def test_maps_are_an_output_of_the_file(tmp_path):
    network = meal_gpu.Onnx(write(tmp_path / "net.onnx"), "logits")
    answer = query(network, inputs(), GRID, 4, strategy="meal_ft", features="maps", n_informative=8, progress=False)
    unnamed = query(network.file, inputs(), GRID, 4, strategy="meal_ft", features="maps", n_informative=8,
                    progress=False)
    assert torch.equal(unnamed.ids, answer.ids)  # the other output is that of the logits
    _, vectors = plain(same, inputs(), SIZE, GRID, maps=lambda x: same(x).abs())
    assert torch.allclose(answer.features.double(), vectors, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"Of an ONNX file: the name of an output, logits, maps\."):
        query(network, inputs(), GRID, 4, progress=False)
    with pytest.raises(InputError, match=r"features is 'mapz', .* Did you mean 'maps'\? Maps inside .* exported"):
        query(network, inputs(), GRID, 4, features="mapz", progress=False)


def test_its_input_is_stated_and_never_guessed(tmp_path):
    file, pixels = write(tmp_path / "net.onnx", outputs=["logits"]), noise(N, *SIZE)
    with pytest.raises(InputError, match=r"net\.onnx does not say how its input is normalised: state it by prepare"):
        query(file, pixels, GRID, 3, strategy="entropy", progress=False)
    for prepare, made in (("imagenet", normalise(pixels)), ("unit", pixels.permute(0, 3, 1, 2) / 255),
                          ("bytes", pixels.permute(0, 3, 1, 2).float()),
                          (lambda x: x.permute(0, 3, 1, 2) / 64 - 2, pixels.permute(0, 3, 1, 2) / 64 - 2)):
        answer = query(str(file), pixels, GRID, 3, strategy="entropy", prepare=prepare, progress=False)
        expected = query(same, made, GRID, 3, strategy="entropy", progress=False)
        assert torch.allclose(answer.scores, expected.scores, rtol=1e-3, atol=1e-6)
    with pytest.raises(InputError, match=r"prepare is 'zero_one': give 'imagenet', 'unit', 'bytes'"):
        query(file, pixels, GRID, 3, strategy="entropy", prepare="zero_one", progress=False)


def test_float16_inside(tmp_path):
    network = meal_gpu.Onnx(write(tmp_path / "net.onnx", dtype=np.float16, outputs=["logits"]))
    answer = query(network, inputs(), GRID, 3, strategy="entropy", progress=False)
    assert torch.allclose(answer.scores.double(), plain(same, inputs(), SIZE, GRID)[0], rtol=0.05)


@pytest.mark.parametrize("dynamo", [True, False], ids=["torch.export", "TorchScript"])
@pytest.mark.filterwarnings("ignore")
def test_what_torch_exports(tmp_path, dynamo):
    """By both of its exporters; the newer one may put weights beside the file."""
    pytest.importorskip("onnxscript")
    network = small().eval()
    shapes = ({"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamo else
              {"dynamic_axes": {"image": {0: "batch"}, "logits": {0: "batch"}}})
    torch.onnx.export(network, (inputs()[:2],), str(tmp_path / "net.onnx"), dynamo=dynamo, input_names=["image"],
                      output_names=["logits"], verbose=False, **shapes)
    answer = query(tmp_path / "net.onnx", inputs(), GRID, 5, strategy="entropy", progress=False)
    assert near(answer.scores, plain(network, inputs(), SIZE, GRID)[0])


@pytest.mark.parametrize(("make", "said"), [
    (lambda file: None, r"net\.onnx: there is no such file\. Give an ONNX file"),
    (lambda file: file.write_bytes(b"no network"), r"cannot be opened by onnxruntime: .*\."),
    (write, r"has several outputs: its outputs are logits, maps\. Name that of the logits"),
    (lambda file: write(file, outputs=["logits"], second="more"), r"has 2 inputs \(image, more\)"),
    (lambda file: write(file, (1, 4, *SIZE), outputs=["logits"]), r"takes tensor\(float\) \[1, 4, 64, 96\] as 'image'"),
    (lambda file: write(file, (1, 3, 32, 48), outputs=["logits"]), r"takes images \[32, 48\] .* and \[64, 96\] are"),
], ids=["missing", "damaged", "outputs", "inputs", "channels", "size"])
def test_bad_files_are_told_in_one_sentence(tmp_path, make, said):
    make(tmp_path / "net.onnx")
    with pytest.raises(InputError, match=said) as error:
        query(tmp_path / "net.onnx", inputs(), GRID, 3, strategy="entropy", progress=False)
    assert "\n" not in str(error.value)


def test_without_onnxruntime(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'meal-gpu\[onnx\]'"):
        meal_gpu.Onnx(write(tmp_path / "net.onnx"), "logits")


def test_from_a_shell(make_camvid, tmp_path):
    settings = [f"data.root={make_camvid()}", f"data.store={tmp_path / 'store'}", "data.image_size=[24, 32]",
                "data.grid=[2, 2]", "query.n_query=3", "query.n_informative=8", "query.strategy=meal_ft", "device=cpu"]

    def ask(*arguments):
        return CliRunner().invoke(cli.app, ["query", "camvid", *map(str, arguments),
                                            *(word for one in settings for word in ("--set", one))])

    file = write(tmp_path / "net.onnx", outputs=["logits", "maps"])
    for arguments, said in (([], "Give --predictions DIR or --onnx FILE"),
                            (["--onnx", file], "does not say how its input is normalised. State it: --pixels"),
                            (["--onnx", file, "--pixels", "rgb"], "--pixels is 'rgb'"),
                            (["--predictions", tmp_path, "--pixels", "unit"], "go with --onnx FILE"),
                            (["--onnx", file, "--pixels", "unit"], "has several outputs")):
        assert said in str(ask(*arguments).exception)
    for strategy, more in (("meal_ft", ["--features", "maps"]), ("entropy", [])):
        settings[-2] = f"query.strategy={strategy}"
        result = ask("--onnx", file, "--pixels", "unit", "--out", tmp_path / strategy, *more)
        assert result.exit_code == 0, result.exception
        assert len(json.loads((tmp_path / strategy / "query.json").read_text())["patches"]) == 3
        write(file, outputs=["logits"])
