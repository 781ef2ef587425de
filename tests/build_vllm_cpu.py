"""Installs a vLLM for the CPU beside the project, for the tests that need the real one: bash tests/vllm.sh does this.

    python tests/build_vllm_cpu.py                  # builds a wheel from vLLM's source package, minutes on two cores
    python tests/build_vllm_cpu.py --wheel PATH     # installs one that was built before

The wheel of the package index is for GPUs alone. What is built here is the least that generates with Qwen2 and its
like on an x86 processor with AVX2: no oneDNN, which CMake would fetch from GitHub, no quantization, no mixture of
experts, no state-space models, no speculative decoding and no Rust. vLLM then takes torch's own matrix products.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from ctypes.util import find_library
from email.parser import HeaderParser
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
# What vLLM asks for on a CPU and no text model needs; its pins of torch and setuptools are for building it
NOT_NEEDED = {"torch", "torchaudio", "torchvision", "torchcodec", "intel-openmp", "setuptools"}
BUILD_TOOLS = (
    *("cmake==3.31.10", "ninja==1.13.2", "packaging==26.3", "setuptools==77.0.3", "setuptools-scm==9.2.2"),
    *("setuptools-rust==1.13.0", "wheel", "jinja2==3.1.6", "regex"),
)
HEAD_SIZES = [32, 64, 128]  # of the tiny model, of Qwen2.5-0.5B, and of the larger ones; each takes time to compile

# In place of vLLM's own file, which builds an extension for each of three kinds of x86 processors, and oneDNN
CMAKE = """
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS ON)
include_directories("${CMAKE_SOURCE_DIR}/csrc")
execute_process(
    COMMAND ${Python_EXECUTABLE} ${CMAKE_SOURCE_DIR}/csrc/cpu/generate_cpu_attn_dispatch.py
    COMMAND_ERROR_IS_FATAL ANY)
define_extension_target(
    _C_AVX2
    DESTINATION vllm
    LANGUAGE CXX
    SOURCES
        csrc/cpu/activation.cpp
        csrc/cpu/cpu_attn.cpp
        csrc/cpu/layernorm.cpp
        csrc/cpu/pos_encoding.cpp
        csrc/cpu/torch_bindings.cpp
        csrc/cpu/utils.cpp
    LIBRARIES numa
    COMPILE_FLAGS -fopenmp -DVLLM_CPU_EXTENSION -mf16c -mavx2
    USE_SABI 3
    WITH_SOABI)
"""

# The operators of those sources, and three names that are only asked for
OPERATORS = {
    *("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "gelu_tanh", "gelu_new", "gelu_fast", "gelu_quick"),
    *("rms_norm", "fused_add_rms_norm", "rotary_embedding", "init_cpu_memory_env"),
    *("cpu_attn_has_isa", "get_scheduler_metadata", "cpu_attn_reshape_and_cache", "cpu_attention_with_kv_cache"),
    *("compute_slot_mapping_kernel_impl", "static_scaled_fp8_quant", "dynamic_scaled_fp8_quant"),
    "dynamic_per_token_scaled_fp8_quant",
}


def pip(*arguments, **environment):
    """Runs pip for this Python. Exits where it fails, with pip's own message above."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    status = subprocess.run(command, env=os.environ | environment).returncode
    if status:
        sys.exit(f"build_vllm_cpu.py: {' '.join(command[1:4])} ... failed; its own message is above")


def replace(path, old, new):
    """Replaces a text that stands exactly once in a file; anything else means another version of vLLM."""
    text = path.read_text()
    if text.count(old) != 1:
        sys.exit(f"build_vllm_cpu.py: {path} holds {old!r} {text.count(old)} times, wanted once: made for vLLM 0.30.0")
    path.write_text(text.replace(old, new))


def edit(source):
    """Leaves in the unpacked source package (Path) what the extension above needs."""
    (source / "cmake" / "cpu_extension.cmake").write_text(CMAKE)

    # Its operators are registered with torch one by one
    bindings = source / "csrc" / "cpu" / "torch_bindings.cpp"
    head, start, library = bindings.read_text().partition("TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {")
    kept = []
    for statement in re.findall(r"ops\.(?:def|impl)\(.*?\);", library, flags=re.DOTALL):
        if re.search(r'"\s*(\w+)', statement)[1] in OPERATORS:
            kept.append(statement)
    bindings.write_text("\n".join([head, start, *kept, "}", "REGISTER_EXTENSION(TORCH_EXTENSION_NAME)", ""]))

    # Attention is compiled for every size of a head apart
    attention = source / "csrc" / "cpu" / "generate_cpu_attn_dispatch.py"
    replace(attention, "HEAD_DIMS_32 = [32, 64, 96, 128, 160, 192, 224, 256, 512]", f"HEAD_DIMS_32 = {HEAD_SIZES}")
    replace(attention, "HEAD_DIMS_16 = [48, 80, 112]", "HEAD_DIMS_16 = []")

    # No extension but that one, and no Rust
    setup = source / "setup.py"
    for name in ("_C", "_C_AVX512"):
        line = f'        ext_modules.append(CMakeExtension(name="vllm.{name}"))\n'
        following = '        ext_modules.append(CMakeExtension(name="vllm._C_AVX'
        replace(setup, line + following, following)
    replace(setup, "    rust_extensions=rust_extensions,\n", "    rust_extensions=[],\n")
    several = "            if torch.cpu._is_avx512_supported():\n                if torch.cpu._is_avx512_bf16"
    one = several.replace("torch.cpu._is_avx512_supported()", "False")
    replace(source / "vllm" / "platforms" / "cpu.py", several, one)


def build(folder):
    """Builds a wheel in `folder` (Path) from the source package of the version that pyproject.toml names."""
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        sys.exit("build_vllm_cpu.py: this processor has no AVX2, for which alone vLLM is built here")
    if not shutil.which("g++") or not Path("/usr/include/numa.h").is_file():
        sys.exit("build_vllm_cpu.py: vLLM is built with g++ and libnuma: type apt-get install g++ libnuma-dev")
    wanted = re.search(r'"vllm==([^"]+)"', (HERE.parent / "pyproject.toml").read_text())[1]
    pip("install", "-q", *BUILD_TOOLS)
    with tempfile.TemporaryDirectory() as scratch:
        # pip asks the package for its metadata, whose version has no +cpu only if it is told so
        pip(
            *("download", "-q", f"vllm=={wanted}", "--no-deps", "--no-binary", "vllm", "--no-build-isolation"),
            *("-d", scratch),
            VLLM_TARGET_DEVICE="empty",
            VLLM_VERSION_OVERRIDE=wanted,
        )
        with tarfile.open(Path(scratch, f"vllm-{wanted}.tar.gz")) as package:
            package.extractall(scratch, filter="data")
        source = Path(scratch, f"vllm-{wanted}")
        edit(source)
        pip(
            *("wheel", "-q", source, "--no-deps", "--no-build-isolation", "-w", folder),
            VLLM_TARGET_DEVICE="cpu",
            SETUPTOOLS_SCM_PRETEND_VERSION=wanted,
            CMAKE_BUILD_TYPE="Release",
            VLLM_DISABLE_SCCACHE="1",
        )
    return next(folder.glob("vllm-*.whl"))


def install(wheel):
    """Installs a wheel (Path) with what it needs on a CPU, in the versions of vllm_constraints.txt."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    needed = []
    for line in metadata.get_all("Requires-Dist"):
        requirement = Requirement(line)
        wanted_here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted_here and requirement.name not in NOT_NEEDED:
            needed.append(line)
    if find_library("numa") is None:
        sys.exit("build_vllm_cpu.py: vLLM needs libnuma: type apt-get install libnuma1")
    pip("install", "-q", *needed, f"torch=={version('torch')}", "-c", HERE / "vllm_constraints.txt")
    pip("install", "-q", "--no-deps", "--force-reinstall", wheel)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="a wheel of vLLM for the CPU; default: one is built")
    wheel = parser.parse_args().wheel
    if wheel is None:
        folder = Path(sys.prefix, "wheels")
        wheel = build(folder)
        print(f"built {wheel}; VLLM_WHEEL={wheel} installs it again", flush=True)
    elif not wheel.is_file():
        sys.exit(f"build_vllm_cpu.py: {wheel} is not there: name a wheel of vLLM for the CPU, or leave it out")
    install(wheel)


if __name__ == "__main__":
    main()
