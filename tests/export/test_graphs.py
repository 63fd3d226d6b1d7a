"""Graphs compute what the encoder computes, for any number of images, without timm and without a2mim."""

import json
import shutil
import zipfile

import pytest
import timm
import torch
from torch.export.passes import move_to_device_pass

from a2mim.export import ExportError, graphs, onnx_graph, torch_graphs
from a2mim.export.check import check
from a2mim.export.exporting import prove
from a2mim.export.target import Subject
from a2mim.export.targets import possible
from a2mim.export.verify import lines_of, read_receipt, recheck, verify
from a2mim.pixels import Preprocessing
from a2mim.wiring.networks import build_model

SIZE = 64
PIXELS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "interpolation": "bilinear"}
UNTOUCHED = {"recalibrated": False, "why": "no images were given", "clean": True}
MODELS = {  # name -> (arguments, pixels, is the size free?)
    "xcit_nano_12_p16_224": ({"depth": 1, "img_size": SIZE}, SIZE, True),
    "resnet18": ({"layers": (1, 1, 1, 1)}, SIZE, True),
    "vit_tiny_patch16_224": ({"depth": 2, "img_size": SIZE}, SIZE, False),
    "swin_tiny_patch4_window7_224": (
        {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8), "img_size": SIZE},
        SIZE,
        False,
    ),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)}, SIZE, True),
    "xvit_tiny_p16_224": ({"depth": 1, "img_size": SIZE}, SIZE, True),
    "linglo_b1": ({"depths": (1, 1, 1, 1), "img_size": SIZE}, SIZE, True),
    "crossvit_tiny_240": ({"depth": ((1, 1, 0),), "img_size": 120}, 120, False),
}


def subject_of(name):
    arguments, size, _ = MODELS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, **arguments).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return Subject(model, arguments, Preprocessing.of(PIXELS, size))


def images(number, size, width=None):
    return torch.randn(number, 3, size, width or size, generator=torch.Generator().manual_seed(number))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (torch.as_tensor(found[name]) - value).abs().max() <= 1e-5 * value.abs().max(), name


# to write as ONNX; X-ViT and LinGlo are among the quick ones in PROVEN
SLOW = {*MODELS} - {"resnet18", "vit_tiny_patch16_224", "convnext_atto"}


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MODELS])
def row(request):
    """(subject, the module with all outputs, its program, whether the size is free, pixels)."""
    subject = subject_of(request.param)
    graph, program, free_size = graphs.capture(subject)
    assert free_size == MODELS[request.param][2]
    return subject, graph, program, MODELS[request.param][1]


def shapes_to_try(row):
    subject, _, _, size = row
    return [(1, size, size), (3, size, size)] + [(2, size, 2 * size)] * MODELS[subject.name][2]


def test_torch_export_computes_the_same_for_every_batch_and_free_size(row):
    _, graph, program, _ = row
    with torch.no_grad():
        for shape in shapes_to_try(row):
            assert_same(program.module()(images(*shape)), graph(images(*shape)))


def test_onnx_computes_the_same_for_every_batch_and_free_size(row, tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    subject, graph, program, _ = row
    monkeypatch.setattr(graphs, "capture", lambda s: (graph, program, MODELS[subject.name][2]))  # captured once
    written = onnx_graph.write(subject, tmp_path)
    session = runtime.InferenceSession(tmp_path / "encoder.onnx")
    names = [output.name for output in session.get_outputs()]
    for shape in shapes_to_try(row):
        found = session.run(names, {"input": images(*shape).numpy()})
        with torch.no_grad():
            assert_same(dict(zip(names, found, strict=True)), graph(images(*shape)))
    told = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert told == subject.preprocessing.to_dict() | {"channels": 3}
    free = ["batch", 3, "height", "width"] if MODELS[subject.name][2] else ["batch", 3, row[3], row[3]]
    assert session.get_inputs()[0].name == "input" and session.get_inputs()[0].shape == free
    assert names[0] == "embedding" and session.get_outputs()[0].shape[0] == "batch"
    assert b"/site-packages/" not in (tmp_path / "encoder.onnx").read_bytes()  # nor any other file of this machine
    assert written.details["dynamic"][0] == "batch"


def test_torchscript_computes_the_same_for_every_batch(row, tmp_path):
    subject, graph, _, _ = row
    written = torch_graphs.write_script(subject, tmp_path)
    extra = {torch_graphs.FILE: ""}
    model = torch.jit.load(tmp_path / "encoder.ts", _extra_files=extra)
    shapes = [shape for shape in shapes_to_try(row) if shape[1] == shape[2] or "width" in written.details["dynamic"]]
    with torch.no_grad():
        for shape in shapes:
            assert_same(model(images(*shape)), graph(images(*shape)))
    assert json.loads(extra[torch_graphs.FILE]) == json.loads((tmp_path / torch_graphs.FILE).read_text())


def test_the_outputs_are_timms_own_features(row):
    subject, graph, _, size = row
    with torch.no_grad():
        outputs = graph(images(2, size))
        assert torch.equal(outputs["embedding"], subject.model(images(2, size)))
        if "stage1" in outputs:
            stages = subject.model.forward_intermediates(images(2, size), output_fmt="NCHW", intermediates_only=True)
            last = [name for name in outputs if name.startswith("stage")][-1]
            assert torch.equal(outputs[last], stages[-1])
    assert ("map" in outputs) == (subject.name != "crossvit_tiny_240")
    if subject.name == "vit_tiny_patch16_224":
        tokens = subject.model.forward_features(images(2, size))[:, 1:]
        assert torch.equal(outputs["map"].flatten(2).transpose(1, 2), tokens)
    if subject.name == "swin_tiny_patch4_window7_224":
        assert torch.equal(outputs["map"], subject.model.forward_features(images(2, size)).permute(0, 3, 1, 2))


PROVEN = {
    "onnx": (onnx_graph.TARGET, "xvit_tiny_p16_224"),
    "torch-export": (torch_graphs.EXPORT, "xvit_tiny_p16_224"),
    "torchscript": (torch_graphs.SCRIPT, "linglo_b1"),
}


@pytest.fixture(scope="module", params=PROVEN)
def proven(request, tmp_path_factory):
    """(folder, receipt): loaded in a fresh process that cannot import a2mim, though the architecture is ours."""
    target, name = PROVEN[request.param]
    if target.name == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("proven") / target.name
    return folder, prove(target, subject_of(name), folder, UNTOUCHED)


def test_a_graph_of_our_own_backbone_needs_nothing_of_ours(proven):
    folder, receipt = proven
    assert receipt["mode"] == "loaded" and receipt["largest_difference"] <= 1e-5
    assert "a2mim" not in receipt["versions"] and receipt["dynamic"][0] == "batch"
    assert verify(folder)[0]["mode"] == "loaded"
    assert "import a2mim\n" not in (folder / "README.md").read_text()


def change_onnx(path, change):
    import onnx

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("norm1.bias"):
            change(tensor, model.graph.initializer)
            break
    else:
        raise AssertionError("there is no such tensor")
    onnx.save(model, path)


def rename(tensor, tensors):
    tensor.name += "_"


def drop(tensor, tensors):
    tensors.remove(tensor)


def reshape(tensor, tensors):
    import onnx

    values = onnx.numpy_helper.to_array(tensor)[:-1].copy()
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def perturb(tensor, tensors):
    import onnx

    values = onnx.numpy_helper.to_array(tensor) + 0.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.fixture(scope="module")
def proven_onnx(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("tampered") / "onnx"
    prove(onnx_graph.TARGET, subject_of("vit_tiny_patch16_224"), folder, UNTOUCHED)
    return folder, (folder / "encoder.onnx").read_bytes()


def again(folder):
    """The check as export makes it, without the hashes of the files."""
    receipt = read_receipt(folder)
    return recheck(folder, receipt, lines_of(folder, receipt))


@pytest.mark.parametrize("change", [rename, drop, reshape, perturb])
def test_one_wrong_tensor_in_the_onnx_file_fails_verify_and_the_check_alone(proven_onnx, change):
    folder, content = proven_onnx
    (folder / "encoder.onnx").write_bytes(content)
    change_onnx(folder / "encoder.onnx", change)
    with pytest.raises(ExportError, match=r"encoder\.onnx is not the same"):
        verify(folder)
    problem = again(folder)["problem"]  # as export sees it, without the file's hash
    assert problem and "\n" not in problem
    assert ("features differ" in problem) == (change is perturb)


def test_a_graph_that_computes_something_else_is_no_export(tmp_path, monkeypatch):
    subject = subject_of("resnet18")
    original = graphs.expectations

    def others(graph, *rest):
        expected = original(graph, *rest)
        return expected | {"one": expected["one"] * 1.001}

    monkeypatch.setattr(graphs, "expectations", others)
    with pytest.raises(ExportError, match="features differ by"):
        prove(torch_graphs.SCRIPT, subject, tmp_path / "torchscript", UNTOUCHED)
    assert not (tmp_path / "torchscript").exists()


def test_an_exported_program_names_no_file_of_this_machine_and_holds_its_preprocessing(tmp_path):
    subject = subject_of("resnet18")
    torch_graphs.write_export(subject, tmp_path)
    with zipfile.ZipFile(tmp_path / "encoder.pt2") as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".json"))
    assert b"site-packages" not in text and b'"img_size": [64, 64]' in text


def test_an_exported_program_moves_to_another_device_by_the_lines_of_its_page(tmp_path):
    written = torch_graphs.write_export(subject_of("xcit_nano_12_p16_224"), tmp_path)
    assert written.details["devices"] == ["cpu"]
    assert 'move_to_device_pass(torch.export.load("encoder.pt2"), "cuda").module()' in written.notes
    moved = move_to_device_pass(torch.export.load(tmp_path / "encoder.pt2"), "meta").module()
    assert moved(torch.zeros(2, 3, 64, 64, device="meta"))["embedding"].device.type == "meta"


def test_onnx_without_its_packages_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(onnx_graph, "NEEDED", ("onnx_that_nobody_has",))
    assert onnx_graph.refuse(None) == "it is written with onnx_that_nobody_has: pip install 'a2mim[onnx]'"


def test_a_graph_that_nothing_here_can_run_is_not_vouched_for(proven_onnx, monkeypatch):
    folder, _ = proven_onnx
    monkeypatch.chdir(folder)  # check() goes there
    request = read_receipt(folder)["check"] | {"folder": str(folder), "tensors": {}, "packages": ["no_such_runtime"]}
    assert "no_such_runtime is not installed" in check(request)["problem"]


@pytest.mark.parametrize("change", ["reshape", "perturb"])
def test_one_wrong_tensor_in_the_exported_program_fails_the_check(tmp_path, change):
    folder = tmp_path / "torch-export"
    prove(torch_graphs.EXPORT, subject_of("vit_tiny_patch16_224"), folder, UNTOUCHED)
    program = torch.export.load(folder / "encoder.pt2")
    key = "model.blocks.1.norm1.bias"
    if change == "reshape":
        program.state_dict[key] = torch.nn.Parameter(program.state_dict[key].data[:-1].clone())
    else:
        program.state_dict[key].data += 0.01
    torch.export.save(program, folder / "encoder.pt2")
    with pytest.raises(ExportError, match=r"encoder\.pt2 is not the same"):
        verify(folder)
    assert again(folder)["problem"]


@pytest.mark.parametrize("proven", ["torchscript"], indirect=True)
def test_one_wrong_tensor_in_the_script_fails_verify_and_the_check_alone(proven, tmp_path, monkeypatch):
    folder = shutil.copytree(proven[0], tmp_path / "torchscript")
    script = torch.jit.load(folder / "encoder.ts")
    with torch.no_grad():
        next(p for name, p in script.named_parameters() if name.endswith("norm1.bias")).add_(0.01)
    torch.jit.save(script, folder / "encoder.ts")
    with pytest.raises(ExportError, match=r"encoder\.ts is not the same"):
        verify(folder)
    monkeypatch.chdir(folder)  # check() goes there
    receipt = read_receipt(folder)
    request = {"folder": str(folder), "lines": lines_of(folder, receipt), **receipt["check"]}
    problem = check(request | {"tensors": receipt["tensors"]})["problem"]
    assert "features differ" in problem


def test_a_network_of_ones_own_becomes_a_graph_too(tmp_path):
    built = build_model("torchvision.models.resnet18", SIZE)
    subject = Subject(built.model.eval(), built.model_args, Preprocessing.of(PIXELS, SIZE))
    assert "torchscript" in possible(subject, ["torchscript"]) and {"torch-export"} <= {*possible(subject, ["all"])}
    torch_graphs.write_export(subject, tmp_path)
    found = torch.export.load(tmp_path / "encoder.pt2").module()
    with torch.no_grad():
        assert_same({"embedding": found(images(3, SIZE))["embedding"]}, {"embedding": subject.model(images(3, SIZE))})
