"""The flags in the README's commands exist.   bash tests/run.sh tests/test_readme.py"""

import re
import shlex

import pytest
from test_training import ROOT
from trl import GRPOConfig, ModelConfig, TrlParser
from trl.scripts.vllm_serve import ScriptArguments as ServerArguments

from train_countdown import ScriptArguments

OURS = (ScriptArguments, GRPOConfig, ModelConfig)
PROGRAMS = {"train_countdown.py": OURS, "train.sh": OURS, "vllm-serve": (ServerArguments,)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_in_the_readme_exist(program):
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [words for words in (shlex.split(line, comments=True) for line in lines) if program in words]
    assert commands, f"no command of the README runs {program}"
    for words in commands:
        flags = words[words.index(program) + 1 :]
        if "--config" in flags:  # TrlParser reads it apart
            del flags[flags.index("--config") : flags.index("--config") + 2]
        assert TrlParser(PROGRAMS[program]).parse_known_args(flags)[1] == [], words
