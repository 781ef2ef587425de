"""GPUs that torch cannot use, each with its line; nvidia-smi is a script.   bash tests/run.sh tests/test_cards.py"""

import re

import pytest
import torch
from conftest import ROOT
from test_machine import pretend_card

from r1zero.preflight import cards

SMI = """#!/bin/sh
[ "$*" = "--query-gpu=name,driver_version --format=csv,noheader" ] || exit 2
{body}
"""
ONE = 'echo "Tesla T4, 550.54.15"'


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts an nvidia-smi on the PATH that does what `body`, lines of sh, says."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(body):
        (tmp_path / "nvidia-smi").write_text(SMI.format(body=body))
        (tmp_path / "nvidia-smi").chmod(0o755)

    return write


def pretend_build(monkeypatch, cuda, version="2.13.0"):
    """As if torch were built for this CUDA (str, or None) and saw no GPU."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class TestFound:
    def test_first_card_is_named_with_its_driver(self, smi):
        smi(f'{ONE}; echo "NVIDIA H100 80GB HBM3, 550.54.15"')
        assert cards.found() == ("Tesla T4", "550.54.15")

    @pytest.mark.parametrize(
        "body",
        ['echo "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."; exit 9', "exit 0"],
        ids=["no driver", "no card"],
    )
    def test_nothing_where_nvidia_smi_shows_nothing(self, smi, body):
        smi(body)
        assert cards.found() is None and cards.why_unseen() is None

    def test_nothing_where_there_is_no_nvidia_smi(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert cards.found() is None and cards.why_unseen() is None


class TestUnseen:
    def test_driver_that_is_too_old_is_told_beside_the_one_that_is_wanted(self, smi, monkeypatch):
        smi(ONE)
        pretend_build(monkeypatch, "13.0")
        assert cards.why_unseen() == (
            "found driver 550.54.15 for the Tesla T4, wanted 580 or newer, which CUDA 13.0 of torch 2.13.0 needs: "
            "type apt-get install nvidia-driver-580 and restart; --config configs/tiny_cpu.yaml trains the tiny model "
            "on the CPU"
        )

    def test_build_for_the_cpu_is_told_from_an_old_driver(self, smi, monkeypatch):
        smi(ONE)
        pretend_build(monkeypatch, None, "2.13.0+cpu")
        line = cards.why_unseen()
        assert line.startswith("torch 2.13.0+cpu is built for the CPU and cannot use this machine's Tesla T4: type ")
        assert "driver" not in line

    @pytest.mark.parametrize("value", ["", "-1"])
    def test_variable_that_hides_the_card_is_told(self, smi, monkeypatch, value):
        smi(ONE)
        pretend_build(monkeypatch, "13.0")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        line = cards.why_unseen()
        assert line.startswith(f"CUDA_VISIBLE_DEVICES is {value or 'empty'}, which hides this machine's Tesla T4")
        assert "type unset CUDA_VISIBLE_DEVICES" in line

    def test_older_cuda_needs_an_older_driver(self, smi, monkeypatch):
        smi(ONE)
        pretend_build(monkeypatch, "12.6", "2.13.0+cu126")
        assert "python -c 'import torch; torch.cuda.init()' says why" in cards.why_unseen()

    def test_anything_else_says_what_asks_torch(self, smi, monkeypatch):
        smi('echo "Tesla T4, 580.82.07"')
        pretend_build(monkeypatch, "13.0")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        assert "torch sees no GPU with CUDA_VISIBLE_DEVICES=7: python -c" in cards.why_unseen()


class TestTooOld:
    @pytest.fixture
    def line(self, monkeypatch):
        """What is said of a card of this compute capability, for a build with these architectures."""

        def run(capability, built, cuda, version):
            pretend_card(monkeypatch, name="the card")
            monkeypatch.setattr(torch.version, "cuda", cuda)
            monkeypatch.setattr(torch, "__version__", version)
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
            monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
            return cards.why_too_old()

        return run

    CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
    CUDA_12 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]

    def test_v100_is_refused_with_the_build_that_has_it(self, line):
        assert line((7, 0), self.CUDA_13, "13.0", "2.13.0+cu130") == (
            "the card has compute capability 7.0, and CUDA 13.0 of torch 2.13.0+cu130 begins at 7.5: type pip install "
            "--force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126, and pass --use_vllm "
            "false"
        )

    def test_v100_with_that_build_and_cards_from_the_t4_on_are_not(self, line):
        assert line((7, 0), self.CUDA_12, "12.6", "2.13.0+cu126") is None
        assert line((7, 5), self.CUDA_13, "13.0", "2.13.0") is None
        assert line((10, 0), ["sm_90a", "sm_100a"], "13.0", "2.13.0") is None


def test_setup_sh_wants_the_same_driver():
    """The script asks before there is a torch to ask."""
    assert re.search(r"driver%%.*?-lt (\d+)", (ROOT / "setup.sh").read_text())[1] == str(cards.DRIVERS[13])
