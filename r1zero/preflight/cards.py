"""Whether torch can use the GPU that this machine has, and one line with what to type where it cannot."""

import os
import subprocess

DRIVERS = {12: 525, 13: 580}  # CUDA's major version to the oldest of NVIDIA's drivers for it; also in setup.sh
OLD_CUDA = "https://download.pytorch.org/whl/cu126"  # PyTorch's build for CUDA 12.6 has cards down to capability 5.0
ON_THE_CPU = "--config configs/tiny_cpu.yaml trains the tiny model on the CPU"


def found():
    """Name and driver (str, str) of the first GPU that nvidia-smi shows, None where it shows none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):  # not installed, no driver, or no card
        return None
    if not shown:
        return None
    name, driver = shown[0].rsplit(",", 1)
    return name.strip(), driver.strip()


def why_unseen(on_the_cpu=ON_THE_CPU):
    """Why torch sees no GPU where nvidia-smi shows one, as one line (str); None where there is none to be seen.

    on_the_cpu: how to do without it, which the line ends with.
    """
    import torch  # here, as it takes a second

    card = found()
    if card is None:
        return None
    name, driver = card
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return (
            f"CUDA_VISIBLE_DEVICES is {visible.strip() or 'empty'}, which hides this machine's {name}: type unset "
            f"CUDA_VISIBLE_DEVICES; {on_the_cpu}"
        )
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built for the CPU and cannot use this machine's {name}: type pip uninstall "
            f"torch, then pip install -e '.[gpu]'; {on_the_cpu}"
        )
    wanted = DRIVERS.get(int(torch.version.cuda.split(".")[0]))
    if wanted and driver.split(".")[0].isdigit() and int(driver.split(".")[0]) < wanted:
        return (
            f"found driver {driver} for the {name}, wanted {wanted} or newer, which CUDA {torch.version.cuda} of "
            f"torch {torch.__version__} needs: type apt-get install nvidia-driver-{wanted} and restart; {on_the_cpu}"
        )
    hidden = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
    return (
        f"nvidia-smi shows a {name} with driver {driver}, and torch sees no GPU{hidden}: python -c 'import torch; "
        f"torch.cuda.init()' says why; {on_the_cpu}"
    )


def why_too_old():
    """Why torch's build has nothing for the GPU that it sees, as one line (str); None where it can compute on it."""
    import torch

    built = []
    for name in torch.cuda.get_arch_list():  # such as sm_75, sm_90a, compute_120
        architecture, _, number = name.partition("_")
        digits = "".join(digit for digit in number if digit.isdigit())
        if architecture == "sm" and digits:
            built.append(int(digits))
    major, minor = torch.cuda.get_device_capability(0)
    if not built or 10 * major + minor >= min(built):
        return None
    oldest = f"{min(built) // 10}.{min(built) % 10}"
    return (
        f"{torch.cuda.get_device_name(0)} has compute capability {major}.{minor}, and CUDA {torch.version.cuda} of "
        f"torch {torch.__version__} begins at {oldest}: type pip install --force-reinstall "
        f"torch=={torch.__version__.split('+')[0]} --index-url {OLD_CUDA}, and pass --use_vllm false"
    )
