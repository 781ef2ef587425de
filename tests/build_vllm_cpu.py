"""Build a wheel of vLLM for the CPU from its source package, in minutes on two cores: bash tests/vllm.sh does this.

The wheel of the package index is for GPUs alone. What is built here is the least that generates with Qwen2 and its
like on an x86 processor with AVX2: no oneDNN, which CMake would fetch from GitHub, no quantization, no mixture of
experts, no state-space models, no speculative decoding and no Rust. vLLM then takes torch's own matrix products.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
BUILD_TOOLS = "cmake==3.31.10 ninja==1.13.2 packaging==26.3 setuptools==77.0.3 setuptools-scm==9.2.2 "
BUILD_TOOLS += "setuptools-rust==1.13.0 wheel jinja2==3.1.6 regex"
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
OPERATORS = """
silu_and_mul gelu_and_mul gelu_tanh_and_mul gelu_tanh gelu_new gelu_fast gelu_quick rms_norm fused_add_rms_norm
rotary_embedding init_cpu_memory_env cpu_attn_has_isa get_scheduler_metadata cpu_attn_reshape_and_cache
cpu_attention_with_kv_cache compute_slot_mapping_kernel_impl static_scaled_fp8_quant dynamic_scaled_fp8_quant
dynamic_per_token_scaled_fp8_quant
""".split()


def pip(*arguments, **environment):
    """Run pip for this Python, with more environment variables."""
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, env=os.environ | environment)


def replace(path, old, new):
    """Replace a text that stands exactly once in a file of this version of vLLM."""
    text = path.read_text()
    assert text.count(old) == 1, f"{path} holds {old!r} {text.count(old)} times, wanted once: made for vLLM 0.30.0"
    path.write_text(text.replace(old, new))


def edit(source):
    """Leave in the unpacked source package (Path) what the extension above needs."""
    (source / "cmake" / "cpu_extension.cmake").write_text(CMAKE)

    # Its operators are registered with torch one by one
    bindings = source / "csrc" / "cpu" / "torch_bindings.cpp"
    head, start, library = bindings.read_text().partition("TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {")
    statements = re.findall(r"ops\.(?:def|impl)\(.*?\);", library, flags=re.DOTALL)
    kept = [statement for statement in statements if re.search(r'"\s*(\w+)', statement)[1] in OPERATORS]
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


def main(folder):
    """Build a wheel of the version that pyproject.toml names in a folder."""
    if not shutil.which("g++") or not Path("/usr/include/numa.h").is_file():
        sys.exit("build_vllm_cpu.py: vLLM is built with g++ and libnuma: type apt-get install g++ libnuma-dev")
    wanted = re.search(r'"vllm==([^"]+)"', PYPROJECT.read_text())[1]
    pip("install", "-q", *BUILD_TOOLS.split())
    alone = ("-q", "--no-deps", "--no-build-isolation")
    with tempfile.TemporaryDirectory() as scratch:
        # pip asks the package for its metadata, whose version has no +cpu only if it is told so
        of_metadata = {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": wanted}
        pip("download", *alone, "--no-binary", "vllm", f"vllm=={wanted}", "-d", scratch, **of_metadata)
        source = Path(scratch, f"vllm-{wanted}")
        with tarfile.open(f"{source}.tar.gz") as package:
            package.extractall(scratch, filter="data")
        edit(source)
        of_build = {"VLLM_TARGET_DEVICE": "cpu", "SETUPTOOLS_SCM_PRETEND_VERSION": wanted}
        of_build |= {"CMAKE_BUILD_TYPE": "Release", "VLLM_DISABLE_SCCACHE": "1"}
        pip("wheel", *alone, str(source), "-w", folder, **of_build)


if __name__ == "__main__":
    main(sys.argv[1])
