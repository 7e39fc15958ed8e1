"""C++ for the CPU, in place of the compilers for GPUs."""

import ctypes
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

COMPILER = os.environ.get("CXX", "c++")

_OF_ONE = """
static float {0}(float a) {{ return __builtin_{0}f(a); }}
static double {0}(double a) {{ return __builtin_{0}(a); }}
"""
_OTHERS = """
#define NAN __builtin_nanf("")
#define INFINITY __builtin_inff()
static float pow(float a, float b) { return __builtin_powf(a, b); }
static double pow(double a, double b) { return __builtin_pow(a, b); }
static float __fmul_rn(float a, float b) { volatile float c = a * b; return c; }
static double __dmul_rn(double a, double b) { volatile double c = a * b; return c; }
"""
FUNCTIONS = _OTHERS + "".join(map(_OF_ONE.format, ("exp", "expm1", "log", "log1p", "sqrt")))
"""What texts for GPUs call; the headers that have most of it take longer than the texts."""


@cache
def library(text: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    """Compile a text, and load it; products and sums are contracted as on a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "text.cpp"), Path(folder, "text.so")
        source.write_text(text, encoding="utf-8")
        options = "-O1", "-ffp-contract=fast", "-march=native", "-shared", "-fPIC"
        subprocess.run([COMPILER, *options, source, "-o", built], check=True)
        return ctypes.CDLL(str(built), mode)
