# SPDX-License-Identifier: Apache-2.0
"""Flags with mistakes, of every command: one line that names the flag, and nothing written."""

from functools import partial

import pytest
from bad_input import good_config, refuses

from paddleseg_deeplab.cli import main as console
from paddleseg_deeplab.cli.main import VERBS, run_verb
from paddleseg_deeplab.utils.visualize import save_image

train, val, predict, export, infer, inspect_model, convert_weights, search_crf, *_ = VERBS
check_dataset, quickstart = "check_dataset", "quickstart"
# Flags that are right; a case comes after them and wins.
CONFIG = "--config c.yml"
RIGHT = {
    train: CONFIG,
    val: CONFIG,
    predict: f"{CONFIG} --model_path none.pdparams --image_path in",
    export: CONFIG,
    inspect_model: CONFIG,
    convert_weights: f"{CONFIG} --source paddleseg --input none.npz --output out.pdparams",
    search_crf: f"{CONFIG} --model_path none.pdparams",
    check_dataset: CONFIG,
    quickstart: CONFIG,
    infer: "--model_dir exported --image_path in",
}
# Wrong for each command that knows the flag.
SHARED = [
    ("--no_such_flag", ["--no_such_flag"]),
    ("--save_dir a_file", ["--save_dir", "a_file"]),
    ("--save_dir a_file/below", ["--save_dir", "a_file"]),
    ("--device tpu:0", ["--device", "tpu:0"]),
    ("--device cpu:x:y", ["--device", "cpu:x:y"]),
    ("--device gpu:99", ["--device", "gpu"]),
    ("--device ''", ["--device"]),
]
CASES = [
    (train, "--config none.yml", ["none.yml"]),
    (train, "--config in", ["no config file in"]),
    (train, "--config a_file", [".yml"]),
    (train, "--iters 0", ["--iters", "0"]),
    (train, "--iters ten", ["--iters", "'ten'"]),
    (train, "--iters 1.5", ["--iters", "'1.5'"]),
    (train, "--batch_size 0", ["--batch_size", "0"]),
    (train, "--batch_size -1", ["--batch_size", "-1"]),
    (train, "--learning_rate fast", ["--learning_rate", "'fast'"]),
    (train, "--learning_rate -1", ["learning_rate", "-1"]),
    (train, "--learning_rate nan", ["learning_rate", "nan"]),
    (train, "--seed -1", ["--seed", "-1"]),
    (train, "--seed x", ["--seed", "'x'"]),
    (train, "--seed 18446744073709551616", ["--seed", "2^64"]),
    (train, "--batch_size 999999999", ["batch_size", "65536"]),
    (train, "--save_dir ''", ["--save_dir", "empty"]),
    (train, "--resume_model ''", ["--resume_model", "empty"]),
    (train, "--num_workers -1", ["--num_workers", "-1"]),
    (train, "--save_interval 0", ["--save_interval", "0"]),
    (train, "--log_iters 0", ["--log_iters", "0"]),
    (train, "--keep_checkpoint_max -1", ["--keep_checkpoint_max", "-1"]),
    (train, "--early_stop_intervals 3", ["--early_stop_intervals", "--do_eval"]),
    (train, "--do_eval --early_stop_intervals 0", ["--early_stop_intervals", "0"]),
    (train, "--precision fp8", ["--precision", "'fp8'"]),
    (train, "--precision fp16 --device cpu", ["--precision", "fp16", "CPU"]),
    (train, "--amp_level O3", ["--amp_level", "'O3'"]),
    (train, "--data_format NCWH", ["--data_format", "'NCWH'"]),
    (train, "--resume_model none", ["none"]),
    (train, "--resume_model in", ["in"]),
    (train, "--resume_model a_file", ["a_file"]),
    (train, "--opts", ["--opts"]),
    (train, "--do_eval --opts val_dataset=None", ["val_dataset"]),
    (train, "--iters 5 6", ["6"]),
    (val, "--config none.yml", ["none.yml"]),
    (val, "--model_path none", ["none"]),
    (val, "--model_path in", ["in"]),
    (val, "--worst -1", ["--worst", "-1"]),
    (val, "--batch_size 0", ["--batch_size", "0"]),
    (val, "--num_workers -2", ["--num_workers", "-2"]),
    (val, "--aug_eval --scales 0", ["scales", "0"]),
    (val, "--aug_eval --scales -1", ["scales", "-1"]),
    (val, "--aug_eval --scales nan", ["scales", "nan"]),
    (val, "--aug_eval --scales inf", ["scales", "inf"]),
    (val, "--aug_eval --scales x", ["--scales", "'x'"]),
    (val, "--is_slide", ["crop_size"]),
    (val, "--is_slide --crop_size 8 8", ["stride"]),
    (val, "--is_slide --crop_size 8", ["--crop_size"]),
    (val, "--is_slide --crop_size 8 8 --stride 9 9", ["stride", "9", "8"]),
    (val, "--is_slide --crop_size 0 8 --stride 4 4", ["crop_size", "0"]),
    (val, "--is_slide --crop_size 8 8 --stride -4 4", ["stride", "-4"]),
    (val, "--precision bf16 --device cpu", ["--precision", "bf16", "CPU"]),
    (val, "--crf maybe", ["--crf", "maybe"]),
    (val, "--crf --crf_params x", ["--crf_params", "'x'"]),
    (val, "--crf --crf_params bilateral_x=3", ["--crf_params", "bilateral_xy"]),
    (val, "--crf --crf_params bilateral_xy=-3", ["--crf_params", "bilateral_xy", "-3"]),
    (val, "--crf --crf_params iterations=1.5", ["--crf_params", "iterations", "1.5"]),
    (predict, "--config none.yml", ["none.yml"]),
    (predict, "--model_path none.pdparams", ["none.pdparams"]),
    (predict, "--image_path none.png", ["none.png"]),
    (predict, "--image_path empty", ["empty", "no images"]),
    (predict, "--image_path none/*.png", ["none/*.png"]),
    (predict, "--image_path=", ["--image_path is empty"]),
    (predict, "--image_path=~none/x", ["~none/x"]),
    (predict, "--outputs mask", ["--outputs", "'mask'"]),
    (predict, "--custom_color 1 2", ["custom_color", "2"]),
    (predict, "--custom_color 1 2 300", ["custom_color", "300"]),
    (predict, "--custom_color red", ["--custom_color", "'red'"]),
    (predict, "--batch_size 0", ["--batch_size", "0"]),
    (predict, "--aug_pred --scales 0", ["scales", "0"]),
    (predict, "--is_slide --crop_size 8 8 --stride 9 9", ["stride"]),
    (export, "--config none.yml", ["none.yml"]),
    (export, "--model_path none", ["none"]),
    (export, "--input_shape 1 3", ["--input_shape"]),
    (export, "--input_shape 1 4 32 32", ["--input_shape", "4", "3"]),
    (export, "--input_shape 1 3 -5 32", ["--input_shape", "-5"]),
    (export, "--input_shape a b c d", ["--input_shape", "'a'"]),
    (export, "--output_op max", ["--output_op", "'max'"]),
    (export, "--format tflite", ["--format", "'tflite'"]),
    (export, "--target tpu", ["--target", "'tpu'"]),
    (export, "--image_path none.png", ["none.png"]),
    (export, "--image_path a_file", ["a_file"]),
    (export, "--data_format NHWC --format onnx", ["--data_format", "NHWC", "onnx"]),
    (inspect_model, "--config none.yml", ["none.yml"]),
    (inspect_model, "--input_size 0 5", ["--input_size", "0"]),
    (inspect_model, "--input_size 5", ["--input_size"]),
    (inspect_model, "--input_size a b", ["--input_size", "'a'"]),
    (inspect_model, "--output_strides 0", ["--output_strides", "0"]),
    (inspect_model, "--output_strides x", ["--output_strides", "'x'"]),
    (inspect_model, "--opts model.type=X", ["model.type", "'X'"]),
    (convert_weights, "--config none.yml", ["none.yml"]),
    (convert_weights, "--source keras", ["--source", "'keras'"]),
    (convert_weights, "--input none.npz", ["none.npz"]),
    (convert_weights, "--input none.h5", ["none.h5"]),
    (convert_weights, "--input in", ["in"]),
    (convert_weights, "--output out.bin", ["out.bin", ".pdparams"]),
    (convert_weights, "--output in", ["in"]),
    (convert_weights, "--output a_file/x.pdparams", ["a_file"]),
    (convert_weights, "--part head", ["--part", "'head'"]),
    (search_crf, "--config none.yml", ["none.yml"]),
    (search_crf, "--model_path none", ["none"]),
    (search_crf, "--images 0", ["--images", "0"]),
    (search_crf, "--iterations 0", ["--iterations", "0"]),
    (search_crf, "--processes -1", ["--processes", "-1"]),
    (search_crf, "--bilateral_xy -5", ["bilateral_xy", "-5"]),
    (search_crf, "--bilateral_rgb 0", ["bilateral_rgb", "0"]),
    (search_crf, "--bilateral_weight x", ["--bilateral_weight", "'x'"]),
    (search_crf, "--bilateral_xy nan", ["bilateral_xy", "nan"]),
    (search_crf, "--gaussian_xy 0", ["gaussian_xy", "0"]),
    (search_crf, "--batch_size 0", ["--batch_size", "0"]),
    (check_dataset, "--config none.yml", ["none.yml"]),
    (check_dataset, "--num_workers -1", ["--num_workers", "-1"]),
    (check_dataset, "--max_samples 0", ["--max_samples", "0"]),
    (check_dataset, "--opts train_dataset.type=X", ["train_dataset.type", "'X'"]),
    (check_dataset, "--opts train_dataset.mode=x", ["train_dataset", "mode", "'x'"]),
    (check_dataset, "--opts train_dataset.num_class=3", ["num_class", "'num_classes'"]),
    (quickstart, "--config none.yml", ["none.yml"]),
    (quickstart, "--least_miou high", ["--least_miou", "'high'"]),
    (infer, "--model_dir none", ["none", "export.py"]),
    (infer, "--config also.yaml", ["--model_dir"]),
    (infer, "--image_path none.png", ["none.png"]),
    (infer, "--outputs mask", ["--outputs", "'mask'"]),
    (infer, "--outputs prob", ["prob", "argmax"]),
    (infer, "--crf", ["CRF", "argmax"]),
    (infer, "--batch_size 0", ["--batch_size", "0"]),
    (infer, "--num_workers -1", ["--num_workers", "-1"]),
    (infer, "--cpu_threads 0", ["--cpu_threads", "0"]),
    (infer, "--benchmark maybe", ["--benchmark", "maybe"]),
    (infer, "--enable_mkldnn x", ["--enable_mkldnn", "x"]),
    (infer, "--precision int4", ["--precision", "'int4'"]),
    (infer, "--use_trt --device cpu", ["--use_trt"]),
    (infer, "--enable_auto_tune", ["--enable_auto_tune", "--use_trt"]),
    (infer, "--auto_tuned_shape_file none", ["none"]),
    (infer, "--min_subgraph_size 0", ["--min_subgraph_size", "0"]),
    (infer, "--trt_min_shape 1 2", ["--trt_min_shape"]),
]
_UNKNOWN = {
    "--save_dir": (convert_weights,),
    "--device": (inspect_model, convert_weights, check_dataset),
}
CASES += [
    (verb, flags, words)
    for verb in RIGHT
    for flags, words in SHARED
    if verb not in _UNKNOWN.get(flags.split()[0], ())
]


def _words(flags):
    return ["" if word == "''" else word for word in flags.split()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good_config(tmp_path)
    for name in ("empty", "exported"):
        (tmp_path / name).mkdir()
    (tmp_path / "a_file").write_text("words\n", encoding="utf-8")
    (tmp_path / "infer.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    save_image(tmp_path / "in" / "a.png", [[[0, 100, 200]] * 16] * 16)
    deploy = "Deploy: {model: model.json, params: model.pdiparams, transforms: []}\n"
    (tmp_path / "exported" / "deploy.yaml").write_text(deploy, encoding="utf-8")
    for name in ("model.json", "model.pdiparams"):
        (tmp_path / "exported" / name).write_text("{}", encoding="utf-8")
    return tmp_path


def _label(case):
    return f"{case[0]} {case[1]}"


@pytest.mark.parametrize("case", CASES, ids=_label)
def test_flags(folder, capsys, case):
    verb, flags, words = case
    refuses(partial(run_verb, verb), [*_words(RIGHT[verb]), *_words(flags)], words, capsys, folder)


REQUIRED = [
    (train, "", "--config"),
    (val, "", "--config"),
    (predict, CONFIG, "--model_path"),
    (predict, f"{CONFIG} --model_path m", "--image_path"),
    (export, "", "--config"),
    (inspect_model, "", "--config"),
    (convert_weights, CONFIG, "--source"),
    (search_crf, CONFIG, "--model_path"),
    (check_dataset, "", "--config"),
    (infer, "--model_dir exported", "--image_path"),
    (infer, "--image_path in", "--model_dir"),
]


@pytest.mark.parametrize("case", REQUIRED, ids=_label)
def test_missing_flags(folder, capsys, case):
    verb, flags, name = case
    refuses(partial(run_verb, verb), _words(flags), [name], capsys, folder)


def test_an_unknown_verb_is_named(folder, capsys):
    assert console.main(["trian"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "error: unknown verb 'trian'. Did you mean 'train'?"
    assert any("train" in line for line in rest)
