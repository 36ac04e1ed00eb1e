# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys

import pytest
from places import ROOT

from paddleseg_deeplab.utils import cpu
from paddleseg_deeplab.utils.cpu import thread_count, wanted_environment

THREADS = {"MKL_NUM_THREADS": "2", "FLAGS_paddle_num_threads": "2"}


@pytest.mark.parametrize(
    ("cpuinfo", "extra"),
    [
        ("", {}),
        ("vendor_id : GenuineIntel\nflags : avx2 avx512f\n", {}),
        ("vendor_id : AuthenticAMD\nflags : sse2 avx2\n", {"MKL_DEBUG_CPU_TYPE": "5"}),
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f\n", {"MKL_DEBUG_CPU_TYPE": "7"}),
        ("vendor_id : AuthenticAMD\nflags : sse2\nbugs : avx512f\n", {}),
    ],
)
def test_wanted_environment(cpuinfo, extra):
    assert wanted_environment(2, cpuinfo, {}) == {**THREADS, **extra}


@pytest.mark.parametrize(
    ("openmp", "threads"),
    [("5", "5"), ("4,2", "4"), (" 3 ", "3"), ("", "2"), ("0", "2"), ("all", "2"), ("²", "2")],
)
def test_a_thread_count_for_openmp_serves_the_others(openmp, threads):
    wanted = wanted_environment(2, "", {"OMP_NUM_THREADS": openmp})
    assert wanted == {"MKL_NUM_THREADS": threads, "FLAGS_paddle_num_threads": threads}


def test_thread_count_is_paddle_s(monkeypatch):
    # Paddle itself sets OMP_NUM_THREADS to 1 when it is imported: that is not the answer.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FLAGS_paddle_num_threads", "3")
    assert thread_count() == 3
    monkeypatch.setenv("FLAGS_paddle_num_threads", "many")
    assert thread_count() == len(os.sched_getaffinity(0))


def _import_in_child(environment):
    code = (
        "import json, os, sys; import paddleseg_deeplab;"
        "from paddleseg_deeplab.utils.cpu import environment_report;"
        "print(json.dumps([dict(os.environ), environment_report(), 'paddle' in sys.modules]))"
    )
    ours = (*THREADS, "OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return json.loads(out.stdout)


def test_import_sets_the_threads_before_paddle_and_says_so():
    environment, report, has_paddle = _import_in_child({})
    cores = str(len(os.sched_getaffinity(0)))
    assert environment["MKL_NUM_THREADS"] == cores
    assert environment["FLAGS_paddle_num_threads"] == cores
    assert f"MKL_NUM_THREADS={cores} (set here)" in report
    assert not has_paddle


def test_what_the_user_set_is_respected():
    environment, report, _ = _import_in_child({"MKL_NUM_THREADS": "7"})
    assert environment["MKL_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS=7 (set before)" in report


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_keeping_freed_memory():
    """In a child, since it cannot be undone: done unless switched off."""
    code = "from paddleseg_deeplab.utils.cpu import keep_freed_memory; print(keep_freed_memory())"
    for value, told in (("1", "True"), ("0", "False")):
        environment = {**os.environ, "PADDLESEG_DEEPLAB_KEEP_MEMORY": value}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == told


@pytest.mark.parametrize(
    ("value", "off", "told"),
    [
        ("0", True, False),
        ("false", True, False),
        ("No", True, False),
        (" OFF ", True, False),
        ("", False, False),
        ("1", False, False),
        ("True", False, False),
        ("2", False, True),
        ("disable", False, True),
    ],
)
def test_a_switch_understands_words_and_says_what_it_does_not(
    value, off, told, monkeypatch, caplog
):
    monkeypatch.setattr(cpu.logger, "propagate", True)
    monkeypatch.setenv("PADDLESEG_DEEPLAB_KERNELS", value)
    assert cpu.switched_off("PADDLESEG_DEEPLAB_KERNELS") == off
    # A handler that another test left behind may record a line twice.
    lines = {record.getMessage() for record in caplog.records}
    assert len(lines) == told
    assert all("PADDLESEG_DEEPLAB_KERNELS" in line and repr(value) in line for line in lines)


def test_a_switch_that_is_not_set_is_on(monkeypatch):
    monkeypatch.delenv("PADDLESEG_DEEPLAB_KERNELS", raising=False)
    assert not cpu.switched_off("PADDLESEG_DEEPLAB_KERNELS")
